"""Evaluation: the student alone by bits per byte, and on request the terms of the loss, teacher included."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer

from mlot import (
    LinearHead,
    MultiLevelOTConfig,
    MultiLevelOTResult,
    mask_from_labels,
    multi_level_ot,
    multi_teacher_ot,
)
from mlot._hf.heads import HeadShape
from mlot.training._arguments import MultiLevelOTTrainingArguments
from mlot.training._batch import Batch
from mlot.training._bits import example_sums, metrics_of
from mlot.training._heads import through_head
from mlot.training._teacher import Predicted

if TYPE_CHECKING:  # the mixin is used with Trainers alone, whose attributes type checkers are to know
    _Base = Trainer
else:
    _Base = object

#: Columns that the terms add to those of `example_sums`.
_TERMS = ("distillation", "had", "sl", "sd")


class EvaluationMixin(_Base):
    """The part of `MultiLevelOTMixin` that evaluates."""

    args: MultiLevelOTTrainingArguments
    _head: HeadShape | None
    _evaluated: list[Tensor]

    def _predicted_by_teacher(self, batch: Batch) -> Predicted | None:
        raise NotImplementedError

    def compared_pairs(self, batch: Batch) -> Tensor | None:
        """Pairs of a batch that HAD and SL compare; ``None``: by index, or those of the text.

        Raises:
            ValueError: the batch lacks them.
        """
        if self.args.pairs == "index" or self.args.matching == "text":
            return None
        if batch.pairs is None:
            raise ValueError("pairs: expected 'index' for batches without pairs, got 'boundary'")
        return batch.pairs

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Predict held-out text with the student, and add up what `evaluation_loop` reports."""
        batch = Batch.of(self._prepare_inputs(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            predicted = self._predicted_by_teacher(batch) if self.args.eval_distillation else None

            def sums_of(student: Tensor | LinearHead) -> Tensor:
                sums = example_sums(student, batch)
                if predicted is None:
                    return sums
                terms = term_sums(
                    student, predicted, batch, self.compared_pairs(batch), self.args.ot_config()
                )
                return torch.cat([sums, terms.to(sums)], dim=1)

            logits = None
            if self._head is None or not prediction_loss_only:
                logits = model(**batch.student).logits
                sums = sums_of(logits)
            else:
                sums = through_head(model, batch.student, self._head, sums_of)
        # Examples that only fill the last batch up are left out by this.
        self._evaluated.append(self.accelerator.gather_for_metrics(sums))
        loss = sums[:, 0].sum() / sums[:, 1].sum().clamp(min=1)
        return (loss, None, None) if prediction_loss_only else (loss, logits, batch.labels)

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        """Evaluate; ``loss`` and ``ce`` are means over all labels, ``bits_per_byte`` is over all bytes.

        With ``eval_distillation`` also ``had``, ``sl`` and ``sd``, and ``distillation``, their weighted sum,
        each summed over positions and divided by the number of labels, as in training.
        """
        self._evaluated = []
        # A loader draws a seed, so that dropout after an evaluation would be other than without it.
        with torch.random.fork_rng(devices=[]):
            output = super().evaluation_loop(dataloader, description, *args, **kwargs)
        prefix = args[2] if len(args) > 2 else kwargs.get("metric_key_prefix", "eval")
        metrics = cast("dict[str, float]", output.metrics)
        metrics.update(metrics_of([sums[:, :4] for sums in self._evaluated], prefix))
        if self._evaluated and self._evaluated[0].shape[1] > 4:
            totals = torch.cat(self._evaluated).double().sum(dim=0).tolist()
            for name, value in zip(_TERMS, totals[4:], strict=True):
                if value == value:  # with the text's plan and no weight SD is not computed
                    metrics[f"{prefix}_{name}"] = value / max(totals[1], 1.0)
        self._evaluated = []
        return output


def term_sums(
    student: Tensor | LinearHead,
    predicted: Predicted,
    batch: Batch,
    pairs: Tensor | None,
    config: MultiLevelOTConfig,
) -> Tensor:
    """Sums of the loss between both models and of its terms for each example, ``(B, 4)``."""
    mask = mask_from_labels(batch.labels)
    teacher, labels = predicted
    settings: dict[str, Any] = {"student_mask": mask, "config": config, "reduction": "none"}
    weights, results = [1.0], list[MultiLevelOTResult]()
    if isinstance(teacher, list):
        several = [
            replace(each, pairs=pairs, mask=None if given is None else mask_from_labels(given))
            for each, given in zip(teacher, labels, strict=True)
        ]
        made = multi_teacher_ot(student, several, **settings)
        weights, results = list(made.weights), list(made.results)
    else:
        counted = None if labels is None else mask_from_labels(labels)
        results = [multi_level_ot(student, teacher, teacher_mask=counted, pairs=pairs, **settings)]
    columns = [
        sum(weight * getattr(each, name) for weight, each in zip(weights, results, strict=True))
        for name in ("loss", "had", "sl", "sd")
    ]
    return torch.stack(cast("list[Tensor]", columns), dim=1)
