"""Teachers: a model that is run beside the student, or one whose predictions were saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from mlot import (
    LinearHead,
    MultiLevelOTConfig,
    Teacher,
    TextPlan,
    TextPositions,
    TextTargets,
    TopKLogprobs,
    Traces,
    mask_from_labels,
    select,
    text_targets,
)
from mlot._composite import arrays_of
from mlot._hf.heads import HeadShape
from mlot.nn import MultiLevelOTLoss
from mlot.training._arguments import MultiLevelOTTrainingArguments
from mlot.training._batch import Batch
from mlot.training._heads import head_shape, hidden_states
from mlot.training._keys import keys_of

#: What a teacher predicted, and the labels that say what of it counts (``None`` for traces): of several
#: teachers, a list of each.
Predicted: TypeAlias = tuple[Any, Any]


class Predictor(Protocol):
    """Gives a teacher's predictions for a batch, on a device."""

    def __call__(self, batch: Batch, device: torch.device) -> Predicted: ...


def given_teachers(teacher: Any) -> list[Teacher]:
    """Teachers, each with its weight, whether one or several were given."""
    if teacher is None:
        return []
    return list(teacher) if isinstance(teacher, Sequence) else [Teacher(teacher)]


def make_predictor(
    teacher: Any, args: MultiLevelOTTrainingArguments, criterion: nn.Module, plan: TextPlan | None = None
) -> Predictor | None:
    """Place what was given as a teacher, and make of it what predicts; ``None`` of ``None``."""
    if teacher is None:
        return None
    # Other losses may need more of a teacher than its heaviest columns.
    ours = criterion.config if type(criterion) is MultiLevelOTLoss else None
    given = given_teachers(teacher)
    made = [_predictor(each.source, args, ours and (each.config or ours), plan) for each in given]
    return SeveralTeachers(given, made) if isinstance(teacher, Sequence) else made[0]


def _predictor(
    source: Any,
    args: MultiLevelOTTrainingArguments,
    config: MultiLevelOTConfig | None,
    plan: TextPlan | None,
) -> Predictor:
    if not isinstance(source, nn.Module):
        return SavedModel(source, config, plan)
    placed = getattr(source, "hf_device_map", None) is not None
    device = torch.device(args.device if args.teacher_device is None else args.teacher_device)
    dtype = args.teacher_dtype
    return ModelTeacher(
        source,
        device=None if placed else device,
        dtype=None if dtype is None else getattr(torch, dtype.removeprefix("torch.")),
        linear_head=args.use_teacher_linear_head,
        config=config,
        plan=plan,
    )


class ModelTeacher:
    """A model that is only read: evaluation mode, no gradient, its own type and device.

    Args:
        model: a causal language model.
        device: where to move it; ``None`` leaves it.
        dtype: what to cast its weights to; ``None`` leaves them.
        linear_head: whether its logits are never formed.
        config: settings by which columns are selected, or targets made, on the teacher's device, so that no
            logits outlive its turn or change device; ``None`` hands on logits.
        plan: the plan from the text, for ``matching="text"``.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device | None,
        dtype: torch.dtype | None = None,
        linear_head: bool = False,
        config: MultiLevelOTConfig | None = None,
        plan: TextPlan | None = None,
    ) -> None:
        if dtype is not None:
            model.to(dtype=dtype)
        if device is not None:
            model.to(device=device)
        self.model = model.eval()
        self.config, self.plan = config, plan
        self._head: HeadShape | None = head_shape(model, "teacher") if linear_head else None

    @torch.no_grad()
    def __call__(
        self, batch: Batch, device: torch.device
    ) -> tuple[Tensor | LinearHead | Traces | TextTargets, Tensor | None]:
        """Run the model on the teacher's part of a batch."""
        labels = batch.teacher_labels
        if labels is None or not batch.teacher:
            raise ValueError(
                "inputs: expected teacher_input_ids and teacher_labels among them, for the teacher"
            )
        if self.model.training:
            self.model.eval()
        home = _input_device(self.model)
        inputs = {
            name: value.to(home) if isinstance(value, Tensor) else value
            for name, value in batch.teacher.items()
        }
        prediction: Tensor | LinearHead
        if self._head is None:
            prediction = self.model(**inputs).logits
        else:
            prediction = hidden_states(self.model, inputs, self._head)
        if self.config is not None and self.config.matching == "text":
            counted = mask_from_labels(labels)
            return targets_of(prediction, batch, counted, self.config, self.plan).map(
                lambda array: array.to(device)
            ), None
        if self.config is None or self.config.k is None or batch.packed:
            return _moved(prediction, device), labels
        where = prediction.hidden.device if isinstance(prediction, LinearHead) else prediction.device
        traces = select(
            prediction,
            mask_from_labels(labels.to(where)),
            k=self.config.k,
            temperature=self.config.temperature,
            extra_temperatures=(self.config.sequence_temperature,),
            standardize=self.config.standardize,
        )
        return traces.map(lambda array: array.to(device)), None


def targets_of(
    source: Tensor | LinearHead | TopKLogprobs,
    batch: Batch,
    counted: Tensor | None,
    config: MultiLevelOTConfig,
    plan: TextPlan | None,
) -> TextTargets:
    """What a teacher says in the student's tokens; ``counted`` are its positions that count."""
    if plan is None or batch.text_positions is None:
        raise ValueError(
            "inputs: expected text_positions among them, of a collator with pairs='text', got none"
        )
    where = arrays_of(source)[0].device
    ids: Tensor = batch.teacher["input_ids"]
    return text_targets(
        source,
        TextPositions(batch.text_positions.to(where), ids.to(where), plan),
        student_mask=mask_from_labels(batch.labels.to(where)),
        teacher_mask=None if counted is None else counted.to(where),
        k=plan.student_vocab_size if config.k is None else config.k,
        temperature=config.temperature,
    )


class SavedModel:
    """A teacher whose predictions were saved; see `mlot.saved`.

    Args:
        saved: a `mlot.saved.SavedTeacher`.
        config: settings of the loss; with ``matching="text"`` targets are made of the likeliest tokens.
        plan: the plan from the text, for that.
    """

    def __init__(
        self, saved: Any, config: MultiLevelOTConfig | None = None, plan: TextPlan | None = None
    ) -> None:
        self.saved, self.config, self.plan = saved, config, plan

    def __call__(
        self, batch: Batch, device: torch.device
    ) -> tuple[Traces | TopKLogprobs | TextTargets, None]:
        """Look a batch's examples up."""
        targets = self.saved.manifest.keep == "targets"
        keys = batch.target_keys if targets else batch.teacher_keys
        if keys is None:
            name = "target_keys" if targets else "teacher_keys"
            raise ValueError(f"inputs: expected {name} among them, for a saved teacher")
        by_text = self.config is not None and self.config.matching == "text"
        length = None
        if by_text:
            length = (batch.labels if targets else batch.teacher["input_ids"]).shape[1]
        source: Any = self.saved.batch(keys_of(keys), length=length, backend="torch", device=str(device))
        if targets:
            return _at_places(source, batch.student.get("position_ids")), None
        if by_text:
            assert self.config is not None
            source = targets_of(source, batch, None, self.config, self.plan)
        return source, None


def _at_places(targets: TextTargets, place: Tensor | None) -> TextTargets:
    """Targets where a batch has the student's tokens; ``place`` is ``None`` if it is padded on the right."""
    if place is None:
        return targets
    return targets.map(
        lambda array: array.take_along_dim(place.reshape(*place.shape, *[1] * (array.dim() - 2)), dim=1)
    )


class SeveralTeachers:
    """Teachers that read the same tokens, each with its weight.

    Args:
        given: the teachers, whose sources are models or saved.
        predictors: one for each.
    """

    def __init__(self, given: list[Teacher], predictors: list[Predictor]) -> None:
        self._given = given
        self._predictors = predictors

    def __call__(self, batch: Batch, device: torch.device) -> tuple[list[Teacher], list[Tensor | None]]:
        """Ask them one after the other."""
        teachers, labels = [], []
        for given, predict in zip(self._given, self._predictors, strict=True):
            source, counted = predict(batch, device)
            teachers.append(replace(given, source=source))
            labels.append(counted)
        return teachers, labels


def _input_device(model: nn.Module) -> torch.device:
    """Where a model, in one place or in several, takes its token ids."""
    getter: Any = getattr(model, "get_input_embeddings", None)
    embedding = None if getter is None else getter()
    weight = getattr(embedding, "weight", None)
    if isinstance(weight, Tensor) and weight.device.type != "meta":
        return weight.device
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def _moved(source: Tensor | LinearHead, device: torch.device) -> Tensor | LinearHead:
    return source.map(lambda array: array.to(device)) if isinstance(source, LinearHead) else source.to(device)
