"""The mixin that gives a transformers ``Trainer`` the loss of MultiLevelOT, and the Trainer that has it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from mlot import LinearHead, MultiLevelOTResult, MultiTeacherResult, TextPlan
from mlot._hf.heads import HeadShape
from mlot.nn import DistillationTerms, MultiLevelOTLoss
from mlot.training import _validate
from mlot.training._arguments import MultiLevelOTTrainingArguments
from mlot.training._batch import Batch
from mlot.training._bits import example_sums
from mlot.training._collator import DistillationCollator
from mlot.training._evaluation import EvaluationMixin
from mlot.training._fit import fit
from mlot.training._given import student_of, teacher_of
from mlot.training._heads import head_shape, through_head
from mlot.training._on_policy import Generator, on_policy, without_cross_entropy
from mlot.training._teacher import Predicted, make_predictor
from mlot.training._terms import DIAGNOSTICS, TEXT_DIAGNOSTICS, RunningTerms

_logger = logging.getLogger("mlot.training")


class MultiLevelOTMixin(EvaluationMixin):
    r"""Gives a subclass of ``transformers.Trainer`` the loss of MultiLevelOT.

    Write it first, before the Trainer that it changes, and let the settings be both kinds:

    .. code-block:: python

        @dataclass
        class MyArguments(MultiLevelOTTrainingArguments, TheirArguments): ...

        class MyTrainer(MultiLevelOTMixin, TheirTrainer): ...

    TRL's ``SFTTrainer`` with its ``SFTConfig`` is one that this works with: its defaults hold, the collator
    prepares the examples, and ``max_length`` is the student's there, if that is less than the collator's. The
    mixin replaces ``compute_loss`` and ``get_batch_samples``, and adds to ``log``, ``evaluation_loop``,
    ``prediction_step`` and checkpoints; see `MultiLevelOTTrainer` for what they do.
    """

    args: MultiLevelOTTrainingArguments
    criterion: Any

    # `compute_loss` divides by the tokens of the whole accumulated batch itself.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str | Path | None = None,
        args: MultiLevelOTTrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        teacher: Any = None,
        criterion: nn.Module | None = None,
        generator: Generator | None = None,
        callbacks: list[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        args = _validate.arguments(args)
        model, teacher = student_of(model, args), teacher_of(teacher, args)
        _validate.student(model)
        _validate.teacher(teacher, model, args, criterion)
        _validate.unused(kwargs)
        _validate.collator(data_collator, teacher)
        _validate.not_empty("train_dataset", train_dataset)
        _validate.not_empty("eval_dataset", eval_dataset)
        self._on_policy = on_policy(args, teacher, criterion, data_collator, train_dataset, generator)
        if isinstance(data_collator, DistillationCollator):
            _validate.settings_of_others(args, kwargs)
            fit(data_collator, model, teacher, args)
            _validate.packed(data_collator.packed, teacher, args, criterion)
            if args.tokenize_ahead:
                tell = args.should_log
                train_dataset = data_collator.prepare_all("train_dataset", train_dataset, tell=tell)
                eval_dataset = data_collator.prepare_all("eval_dataset", eval_dataset, tell=tell)
            _validate.saved_examples(teacher, data_collator, "train_dataset", train_dataset)
            if args.eval_distillation:
                _validate.saved_examples(teacher, data_collator, "eval_dataset", eval_dataset)
        _validate.even_shares(args, train_dataset)
        super().__init__(
            cast(Any, model),
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            callbacks=[
                RunningTerms(),
                *(self._on_policy.callbacks if self._on_policy else ()),
                *(callbacks or []),
            ],
            **kwargs,
        )
        # Before `loss_is_scaled_for_ga` existed, this is what kept the Trainer from dividing the loss again.
        self.model_accepts_loss_kwargs = True
        self._plan: TextPlan | None = getattr(data_collator, "plan", None)
        if criterion is None:
            criterion = MultiLevelOTLoss(args.ot_config(), args.alpha, overwrite_logits=args.overwrite_logits)
        self.criterion = criterion
        self._running.plan = self._plan
        self.teacher = teacher
        self._predictions_of = make_predictor(teacher, args, self.criterion, self._plan)
        self._head: HeadShape | None = None
        if args.use_linear_head:
            self._head = head_shape(cast(nn.Module, self.model), "student")
        self._evaluated: list[Tensor] = []

    # -- the loss ----------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """Take the micro-batches of one step, and count the tokens that the student is asked for in them.

        Other than transformers, which counts by what it knows of the model's own loss, this counts what the
        loss here divides by, so that it depends on no model class or version.
        """
        self._begin_step()
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        if self._on_policy is not None:
            student = self.accelerator.unwrap_model(self.model)
            step = self.state.global_step
            self._running.add(**self._on_policy.replace(student, batches, step, device))
        count = torch.stack([batch["labels"][:, 1:].ne(-100).sum() for batch in batches]).sum().to(device)
        if self._over_processes:
            count = self.accelerator.gather(count).sum() / self.get_tp_size()
        return batches, count.clamp(min=1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Compute the loss of a micro-batch.

        Args:
            model: the student, as the Trainer has wrapped it.
            inputs: what the collator made; see `DistillationCollator`.
            return_outputs: whether to return the model's outputs as well, which forms logits.
            num_items_in_batch: what every term is divided by: the tokens that the student is asked for in
                the whole accumulated batch, on all processes. ``None`` means those of this micro-batch.

        Returns:
            The loss, a scalar, and the outputs if asked for.
        """
        batch = Batch.of(inputs)
        items = batch.targets.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        averaged_over = 1
        if num_items_in_batch is not None and self._over_processes:
            # The count is that of all processes, and their gradients are averaged.
            averaged_over = self.accelerator.num_processes // self.get_tp_size()
        predicted = self._predicted_by_teacher(batch)

        def terms_of(student: Tensor | LinearHead) -> DistillationTerms:
            terms = self._terms_of(student, predicted, batch, items)
            return terms if batch.on_policy is None else without_cross_entropy(terms, self.criterion)

        outputs = None
        if self._head is None or return_outputs:
            outputs = model(**batch.student)
            terms = terms_of(outputs.logits)
            loss = terms.loss
        else:
            made: list[DistillationTerms] = []

            def loss_of(head: LinearHead) -> dict[str, Tensor]:
                made.append(terms_of(head))
                return {"loss": made[0].loss}

            loss = through_head(model, batch.student, self._head, loss_of)["loss"]
            terms = made[0]
        if model.training:
            self._remember(terms, batch, averaged_over)
        loss = loss * averaged_over
        return (loss, outputs) if return_outputs else loss

    def _predicted_by_teacher(self, batch: Batch) -> Predicted | None:
        if self._predictions_of is None or not getattr(self.criterion, "alpha", True):
            return None
        return self._predictions_of(batch, batch.labels.device)

    def _terms_of(
        self,
        student: Tensor | LinearHead,
        predicted: Predicted | None,
        batch: Batch,
        items: Tensor | int,
    ) -> DistillationTerms:
        if predicted is None:
            nll = example_sums(student, batch)[:, 0].sum() / items
            return DistillationTerms(nll, nll, torch.zeros_like(nll))
        pairs = self.compared_pairs(batch)
        teacher = predicted[0]
        if isinstance(teacher, list):
            teacher, pairs = [replace(each, pairs=pairs) for each in teacher], None
        given = (student, teacher, batch.labels, predicted[1], items)
        if hasattr(self.criterion, "terms"):
            places = {}
            if batch.packed:
                places["student_position_ids"] = batch.student["position_ids"]
                places["teacher_position_ids"] = batch.teacher.get("position_ids")
            terms: DistillationTerms = self.criterion.terms(*given, pairs=pairs, **places)
            return terms
        loss = self.criterion(*given, pairs=pairs)
        nll = example_sums(student, batch)[:, 0].sum().detach() / items
        return DistillationTerms(loss, nll, loss.detach() - nll)

    @property
    def _over_processes(self) -> bool:
        return bool(self.args.world_size > 1 and self.args.average_tokens_across_devices)

    # -- logs --------------------------------------------------------------------------------------------

    @property
    def _running(self) -> RunningTerms:
        return next(cb for cb in self.callback_handler.callbacks if isinstance(cb, RunningTerms))

    def _begin_step(self) -> None:
        running = self._running
        if running.starting:
            running.starting = False
            kept = cast("dict[str, Any]", self.state.stateful_callbacks).get(RunningTerms.__name__)
            if self.state.global_step and kept:
                running.restore(kept)
                self._tr_loss += running.loss
                # which is drained into this sum, of the steps of this call alone
                self._total_loss_scalar -= running.loss
                self._globalstep_last_logged = running.since
            else:
                running.begin(self.state.global_step)
                running.logs = 0
        running.begin_step()

    def _remember(self, terms: DistillationTerms, batch: Batch, averaged_over: int) -> None:
        values = {"ce": terms.cross_entropy}
        transports = _transports(terms)
        # With the text's plan and no weight SD is not computed.
        with_sd = self.args.sd_weight or self.args.matching != "text"
        computed = ("had", "sl", "sd") if with_sd else ("had", "sl")
        for name in computed if transports else ():
            values[name] = sum(weight * getattr(result, name) for weight, result in transports)
        if transports:
            kept = [(result, batch.targets) for _, result in transports]
            if terms.sequences:
                kept = [(each, each._evidence.student_positions.sum()) for each in terms.sequences]
            for result, positions in kept if self.args.log_diagnostics_every else ():
                self._running.keep(result, positions)
        elif terms.loss is not terms.cross_entropy:
            values["distillation"] = terms.distillation
        self._running.add(**{name: value.detach() * averaged_over for name, value in values.items()})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and add the terms of the loss, each a mean over steps and processes since the last time."""
        running = self._running
        steps = self.state.global_step - running.since
        if "loss" in logs and steps > 0:
            means = {name: value / steps for name, value in self._averaged(running.sums).items()}
            running.logs += 1
            every = self.args.log_diagnostics_every
            if every and running.logs % every == 0:
                means |= self._diagnostics()
            if any(math.isnan(means.get(name, 0.0)) for name in ("ce", "had", "sl", "sd", "distillation")):
                _logger.warning(
                    "the loss is not a number at step %d: training has diverged", self.state.global_step
                )
            logs = logs | means
            running.begin(self.state.global_step)
        super().log(logs, start_time)

    def _averaged(self, sums: dict[str, Any]) -> dict[str, float]:
        """Means over processes; all of them must get here."""
        if not sums:
            return {}
        values = torch.stack(
            [torch.as_tensor(value, dtype=torch.float64).cpu().reshape(()) for value in sums.values()]
        )
        if self.args.world_size > 1:
            table = self.accelerator.gather(values.to(self.args.device)[None])
            values = table.mean(dim=0).cpu()
        return dict(zip(sums, values.tolist(), strict=True))

    def _diagnostics(self) -> dict[str, float]:
        table = self._running.diagnostics()
        if self.args.world_size > 1:
            table = self.accelerator.gather(table.to(self.args.device)[None]).sum(dim=0).cpu()
        return {
            name: total / count
            for name, (total, count) in zip((*DIAGNOSTICS, *TEXT_DIAGNOSTICS), table.tolist(), strict=False)
            if count
        }

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        running = self._running
        own, loss = dict(running.sums), running.loss
        running.sums = dict(self._averaged(own))
        running.loss = self._averaged({"loss": self._tr_loss})["loss"]
        states = cast("dict[str, Any]", self.state.stateful_callbacks)
        states.setdefault(RunningTerms.__name__, running.state())
        try:
            super()._save_checkpoint(*args, **kwargs)
        finally:
            running.sums, running.loss = own, loss


class MultiLevelOTTrainer(MultiLevelOTMixin, Trainer):
    r"""Distils a teacher into a student that may have another tokenizer: a ``transformers.Trainer``.

    .. math:: \mathcal L = \mathrm{CE} + \alpha\,(\mathrm{HAD} + \beta\,\mathrm{SL} + \gamma\,\mathrm{SD})

    (eq. 21). Every term is a sum over positions divided by one number: the tokens that the student is asked
    to predict in the whole accumulated batch, on all processes. So a batch gives the same gradient however it
    is cut into micro-batches and spread over processes. HAD and SL sum over pairs, of which there are no more
    than tokens; ``paired_share`` in the logs says how many of each.

    Its logs hold, beside the ``loss``, ``ce`` and the unweighted ``had``, ``sl`` and ``sd`` (of several
    teachers, the sums by the teachers' weights), means over the steps since the last log; and of the last
    step, means over its sequences: ``teacher_kept_mass``, ``student_kept_mass``, ``matching_gap`` and
    ``marginal_error`` as `mlot.Diagnostics` has them, and ``paired_share``. An evaluation asks the student
    alone and reports ``eval_loss`` and ``eval_ce``, the mean cross-entropy of all labels, and
    ``eval_bits_per_byte``, which compares between tokenizers; with ``args.eval_distillation`` the teacher
    is asked, too, and ``eval_had``, ``eval_sl``, ``eval_sd`` and ``eval_distillation`` are there.

    Args:
        model: the student, a causal language model, or a folder or the id in the cache from which it is read.
        args: settings.
        rest: what ``transformers.Trainer`` takes third and later.
        teacher: a causal language model, which is put in evaluation mode, moved as ``args`` say and else left
            as it is; or a `mlot.saved.SavedTeacher`, and then no model of the teacher is needed; or the
            folder of either, or a model's id in the cache; or a sequence of `mlot.Teacher` with such sources
            and their weights, all of which read the tokens of the collator's one teacher tokenizer. ``None``
            with ``alpha=0``: cross-entropy alone.
        criterion: a loss to use in place of `mlot.nn.MultiLevelOTLoss` with the settings in ``args``, called
            as that one; its ``terms`` are logged where it has them.
        generator: what answers prompts for ``args.on_policy`` in place of transformers' ``generate``: see
            `mlot.training.Generator`.
        callbacks: as ``transformers.Trainer`` takes them.
        kwargs: what ``transformers.Trainer`` takes besides; ``data_collator`` is a `DistillationCollator`, or
            makes batches as that does.

    Raises:
        TypeError, ValueError: something does not fit: a model without a causal head, an empty data set, a
            saved teacher made otherwise or without some examples. The message says what. Nothing was trained.

    Source: Cui et al., AAAI 2025.
    """


def _transports(terms: DistillationTerms) -> list[tuple[float, MultiLevelOTResult]]:
    """The transport from each teacher, and its weight; none where the loss is another."""
    if isinstance(terms.ot, MultiLevelOTResult):
        return [(1.0, terms.ot)]
    if isinstance(terms.ot, MultiTeacherResult):
        return list(zip(terms.ot.weights, terms.ot.results, strict=True))
    return []
