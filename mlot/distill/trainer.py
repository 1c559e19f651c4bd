"""A transformers ``Trainer`` whose loss is MultiLevelOT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from mlot.nn import MultiLevelOTLoss

#: Prefix of the teacher's tensors in a batch.
_TEACHER = "teacher_"


class DistillationTrainer(Trainer):
    r"""Trains a causal language model by cross-entropy, and by MultiLevelOT where there is a teacher.

    .. math:: \mathcal L = \mathrm{CE} + \alpha\,(\mathrm{HAD} + \beta\,\mathrm{SL} + \gamma\,\mathrm{SD})

    every term divided by the number of tokens that the student predicts in the whole accumulated batch, so
    that a batch gives the same gradient however it is cut into micro-batches. Batches are those of
    `PairCollator`; the teacher's tensors are passed over where there is no teacher.

    Its logs hold, beside the loss, the terms ``ce``, ``had``, ``sl`` and ``sd``, unweighted, and at
    evaluation ``eval_bits_per_byte``.

    Args:
        model: the student.
        args: settings; ``remove_unused_columns`` must be False, or the teacher's tensors never arrive.
        teacher: a causal language model, used in evaluation mode and left as it is. ``None``: cross-entropy
            alone.
        criterion: the loss; ``None`` means one with the paper's settings. It needs a teacher.
        measure: gives bits per byte of the model on held-out text, for the evaluations that ``args`` asks
            for.
        kwargs: what ``transformers.Trainer`` takes besides.

    Raises:
        ValueError: ``remove_unused_columns`` is left on, or there is a criterion without a teacher.
    """

    # `compute_loss` divides by the tokens of the whole accumulated batch itself.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        teacher: PreTrainedModel | None = None,
        criterion: MultiLevelOTLoss | None = None,
        measure: Callable[[nn.Module], float] | None = None,
        **kwargs: Any,
    ) -> None:
        if args.remove_unused_columns:
            raise ValueError("args: expected remove_unused_columns=False, got True")
        if criterion is not None and teacher is None:
            raise ValueError("criterion: expected None without a teacher, got a loss")
        super().__init__(model=model, args=args, **kwargs)
        # Before `loss_is_scaled_for_ga` existed, this is what kept the Trainer from dividing the loss again.
        self.model_accepts_loss_kwargs = True
        self.teacher = None if teacher is None else _frozen(teacher, args.device)
        self.criterion = MultiLevelOTLoss() if criterion is None else criterion
        self.measure = measure
        self._sums: dict[str, Tensor] = {}
        self._steps_summed_from = 0

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """Take the micro-batches of one step, and count the tokens that the student predicts in them.

        transformers 5.23 counts ``labels[..., 1:] != -100`` for models whose loss it knows to shift labels,
        ``labels != -100`` for others, and nothing for models that take no loss arguments; earlier versions
        never shift. Our labels hold -100 in the first place, so that the first two agree. The count is made
        here all the same: the loss must not depend on which model class, or version, it meets.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        predicted = torch.stack([batch["labels"][:, 1:].ne(-100).sum() for batch in batches]).sum().to(device)
        if self.args.world_size > 1:
            predicted = self.accelerator.gather(predicted).sum()
        return batches, predicted

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Compute the loss of a micro-batch; without ``num_items_in_batch``, its own mean."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        labels = inputs["labels"]
        if num_items_in_batch is None:
            num_items_in_batch = labels[:, 1:].ne(-100).sum().clamp(min=1)
        if self.teacher is None:
            loss = _cross_entropy(outputs.logits, labels) / num_items_in_batch
            self._remember(ce=loss)
        else:
            with torch.no_grad():
                taught = self.teacher(
                    input_ids=inputs[_TEACHER + "input_ids"],
                    attention_mask=inputs[_TEACHER + "attention_mask"],
                )
            terms = self.criterion.terms(
                outputs.logits,
                taught.logits,
                labels,
                inputs[_TEACHER + "labels"],
                num_items_in_batch,
                pairs=inputs.get("pairs"),
            )
            loss = terms.loss
            self._remember(ce=terms.cross_entropy)
            if terms.ot is not None:
                self._remember(had=terms.ot.had, sl=terms.ot.sl, sd=terms.ot.sd)
        if self.args.world_size > 1:
            # the count is that of all processes, and their gradients are averaged
            loss = loss * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure bits per byte and log it."""
        if self.measure is None:
            raise ValueError("measure: expected a function of the model, got None")
        metrics = {f"{metric_key_prefix}_bits_per_byte": self.measure(self._module)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and add the terms of the loss, each a mean over the steps since the last time."""
        steps = self.state.global_step - self._steps_summed_from
        if "loss" in logs and steps > 0:
            logs = logs | {name: float(total) / steps for name, total in self._sums.items()}
            self._sums = {}
            self._steps_summed_from = self.state.global_step
        super().log(logs, start_time)

    @property
    def _module(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def _remember(self, **terms: Tensor) -> None:
        if self._module.training:
            for name, value in terms.items():
                self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value.detach()


def _frozen(model: Any, device: torch.device) -> Any:
    return model.to(device).eval()


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of the next tokens, summed."""
    logits = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    return nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100, reduction="sum"
    )
