"""Several teachers at once: a weighted set of sources, each with its own mask, pairs and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlot import _arguments, _checks
from mlot._result import MultiLevelOTResult
from mlot._selection import select_columns
from mlot._typing import Array, Reduction
from mlot.backends.base import Backend
from mlot.config import MultiLevelOTConfig, checked_config
from mlot.divergences import check_reduction, weighted
from mlot.losses import columns_of, loss_of, traces_of
from mlot.sources import Source
from mlot.targets import require_targets, text_loss
from mlot.traces import Traces


@dataclass(frozen=True, eq=False)
class Teacher:
    """One of several teachers.

    Args:
        source: logits ``(B, T_t, V_t)``, a `LinearHead`, `TopKLogprobs`, `Traces`, or `TextTargets` for
            ``matching="text"``.
        weight: factor of this teacher's loss; with 0 it is computed and left out of the sum.
        mask: positions whose prediction counts, ``(B, T_t)`` booleans; ``None`` means all.
        pairs: ``(B, P, 2)`` integers ``[student position, teacher position]``, padded by -1; ``None`` pairs
            by index.
        config: settings for this teacher; ``None`` means those given for all.

    Raises:
        TypeError, ValueError: ``weight`` or ``config`` is of the wrong kind or out of range.
    """

    source: Source
    weight: float = 1.0
    mask: Array | None = None
    pairs: Array | None = None
    config: MultiLevelOTConfig | None = None

    def __post_init__(self) -> None:
        _checks.number("weight", self.weight, allow_zero=True)
        checked_config(self.config)


@dataclass(frozen=True, eq=False)
class MultiTeacherResult:
    """Value of a loss with several teachers, and what each of them gave.

    Attributes:
        loss: sum of weight times loss over the teachers, reduced.
        results: what `multi_level_ot` gives for each teacher, in their order.
        weights: weight of each.
    """

    loss: Array
    results: tuple[MultiLevelOTResult, ...]
    weights: tuple[float, ...]


def multi_teacher_ot(
    student: Source,
    teachers: Sequence[Teacher],
    *,
    student_mask: Array | None = None,
    config: MultiLevelOTConfig | None = None,
    reduction: Reduction = "mean",
    num_items: float | Array | None = None,
    backend: str | None = None,
    return_plan: bool = False,
) -> MultiTeacherResult:
    r"""Multi-level optimal transport from several teachers to one student.

    .. math:: \mathcal L = \sum_m w_m \mathcal L_m

    with the loss :math:`\mathcal L_m` of eqs. (10)-(20) for each teacher, as `multi_level_ot` computes it.
    The student's vocabulary is passed over once, forward and backward, for all teachers whose settings have
    the same ``temperature`` and ``standardize`` (which decide what its heaviest columns are); what other
    temperatures need is computed in the same pass.

    Args:
        student: logits ``(B, T_s, V_s)``, a `LinearHead`, or `Traces` that serve every teacher's settings.
        teachers: at least one `Teacher`, of vocabularies and lengths of their own.
        student_mask: positions whose prediction counts, ``(B, T_s)`` booleans; ``None`` means all.
        config: settings for the teachers that bring none; ``None`` means the paper's.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, as for `multi_level_ot`; means are taken for each
            teacher by its own counts.
        num_items: with ``"mean"``, the number to divide every term by instead.
        backend: name of a backend; ``None`` finds it from the type of the arrays.
        return_plan: keep the transport plans in the results.

    Returns:
        `MultiTeacherResult`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range; messages name the teacher.

    >>> import numpy as np, mlot
    >>> rng = np.random.default_rng(0)
    >>> student = rng.normal(size=(2, 5, 30))
    >>> teachers = [mlot.Teacher(rng.normal(size=(2, 7, 40)), weight=0.7),
    ...             mlot.Teacher(rng.normal(size=(2, 6, 20)), weight=0.3)]
    >>> result = mlot.multi_teacher_ot(student, teachers, config=mlot.MultiLevelOTConfig(k=8))
    >>> first, second = result.results
    >>> bool(np.isclose(result.loss, 0.7 * first.loss + 0.3 * second.loss))
    True
    """
    teachers = _checked_teachers(teachers)
    default = checked_config(config)
    check_reduction(reduction, num_items)
    _checks.flag("return_plan", return_plan)
    _arguments.student_source("student", student)
    arguments: dict[str, Any] = {"student": student, "student_mask": student_mask}
    for m, teacher in enumerate(teachers):
        for name in ("source", "mask", "pairs"):
            arguments[f"teachers[{m}].{name}"] = getattr(teacher, name)
    xp, (student, student_mask, *parts) = _arguments.resolve(arguments, backend)
    student_mask = _arguments.source_and_mask(xp, "student", student, "student_mask", student_mask)
    configs = [default if teacher.config is None else teacher.config for teacher in teachers]
    sides = []
    for m, each in enumerate(configs):
        name, (source, mask, pairs) = f"teachers[{m}]", parts[3 * m : 3 * m + 3]
        mask = _arguments.source_and_mask(xp, f"{name}.source", source, f"{name}.mask", mask)
        _arguments.same_batch(student, source, f"{name}.source")
        require_targets(each, source, f"{name}.source")
        if each.matching == "text":
            sides.append((source, mask, pairs, 0, 1))
            continue
        pairs = _arguments.pairs(xp, pairs, student, source, student_mask, mask, f"{name}.pairs")
        sides.append((source, mask, pairs, *columns_of(each, student, source)))
    columns = [(each, side[4]) for each, side in zip(configs, sides, strict=True) if each.matching != "text"]
    selected = _student_traces(xp, student, student_mask, columns)
    results = []
    for m, (each, (source, mask, pairs, k, pool)) in enumerate(zip(configs, sides, strict=True)):
        if each.matching == "text":
            results.append(
                text_loss(xp, student, source, student_mask, each, reduction, num_items, return_plan)
            )
            continue
        traces = traces_of(xp, source, mask, k, each, f"teachers[{m}].source")
        pooled = traces_of(xp, selected[_key(each)], student_mask, pool, each, "student")
        results.append(loss_of(xp, pooled, traces, pairs, each, reduction, num_items, return_plan))
    weights = tuple(float(teacher.weight) for teacher in teachers)
    loss = weighted(tuple(zip(weights, (result.loss for result in results), strict=True)))
    return MultiTeacherResult(loss, tuple(results), weights)


def _checked_teachers(teachers: Any) -> Sequence[Teacher]:
    if not isinstance(teachers, Sequence) or isinstance(teachers, str):
        raise TypeError(f"teachers: expected a sequence of Teacher, got {type(teachers).__name__}")
    if not teachers:
        raise ValueError("teachers: expected at least one Teacher, got none")
    for m, teacher in enumerate(teachers):
        if not isinstance(teacher, Teacher):
            raise TypeError(f"teachers[{m}]: expected a Teacher, got {type(teacher).__name__}")
    if all(teacher.weight == 0 for teacher in teachers):
        raise ValueError("teachers: expected one with a positive weight, got only weights of 0")
    return teachers


def _key(config: MultiLevelOTConfig) -> tuple[float, bool]:
    """What decides the order of the student's columns."""
    return config.temperature, config.standardize


def _student_traces(
    xp: Backend, student: Source, mask: Array, columns: list[tuple[MultiLevelOTConfig, int]]
) -> dict[tuple[float, bool], Traces]:
    """The student's traces for each key, as many columns and temperatures as any of its teachers needs."""
    selected = {}
    for key in dict.fromkeys(_key(config) for config, _ in columns):
        members = [(config, pool) for config, pool in columns if _key(config) == key]
        extra = tuple(dict.fromkeys(config.sequence_temperature for config, _ in members))
        most = max(pool for _, pool in members)
        selected[key] = select_columns(xp, student, mask, most, key[0], extra, key[1], "student")
    return selected
