"""Checks of arguments that are arrays, together with each other; all are done before any computation."""

from __future__ import annotations

import math
import sys
from typing import Any, cast

from mlot import _checks, _resolve
from mlot._composite import Composite
from mlot._resolve import type_name
from mlot._typing import Array
from mlot.backends.base import Backend
from mlot.sources import Source
from mlot.traces import Traces


def resolve(arguments: dict[str, Any], backend: str | None) -> tuple[Backend, list[Any]]:
    """As `mlot._resolve.resolve`, for what computes."""
    xp, values = _resolve.resolve(arguments, backend)
    return cast(Backend, xp), values


def source_and_mask(xp: Backend, name: str, source: Source, mask_name: str, mask: Array | None) -> Array:
    """Check a source and its mask; return the mask, made if there was none."""
    if isinstance(source, Composite):
        source._check(xp, name)
    else:
        if len(source.shape) != 3:
            raise ValueError(f"{name}: expected logits (B, T, V), got shape {tuple(source.shape)}")
        _floating(xp, name, source)
    if source.shape[2] == 0:
        raise ValueError(
            f"{name}: expected a vocabulary of at least one column, got shape {tuple(source.shape)}"
        )
    if mask is None:
        return source._mask(xp) if isinstance(source, Composite) else xp.full_mask(source)
    _mask(xp, mask_name, mask, source.shape[:2], name)
    if isinstance(source, Composite):
        source._check_mask(xp, mask_name, mask, name)
    return mask


def student_source(name: str, source: Any) -> None:
    """Require a source that can be a student."""
    if isinstance(source, Composite) and source._no_student:
        raise TypeError(
            f"{name}: expected logits, a LinearHead or Traces, since {source._no_student}, "
            f"got {type_name(source)}"
        )


def whole_source(name: str, source: Any, why: str) -> None:
    """Require a source of which every column can be read."""
    if isinstance(source, Composite) and not source._whole:
        raise TypeError(f"{name}: expected logits or a LinearHead, since {why}, got {type(source).__name__}")


def same_batch(student: Source, teacher: Source, name: str = "teacher") -> None:
    """Require sources of one batch size."""
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"{name}: expected the batch size of student, {student.shape[0]}, got {teacher.shape[0]} "
            f"(student {tuple(student.shape)}, teacher {tuple(teacher.shape)})"
        )


def pairs(
    xp: Backend,
    value: Array | None,
    student: Source,
    teacher: Source,
    student_mask: Array,
    teacher_mask: Array,
    name: str = "pairs",
) -> Array:
    """Check pairs of positions, or make them by index; return them with invalid ones blanked."""
    if value is None:
        return xp.index_pairs(student_mask, teacher_mask)
    batch = student.shape[0]
    if len(value.shape) != 3 or value.shape[0] != batch or value.shape[2] != 2:
        raise ValueError(f"{name}: expected ({batch}, P, 2), got shape {tuple(value.shape)}")
    if xp.kind(value) != "integer":
        raise TypeError(f"{name}: expected integers, got {value.dtype}")
    if value.shape[0] and value.shape[1]:
        for side, who, length in ((0, "student", student.shape[1]), (1, "teacher", teacher.shape[1])):
            column = value[:, :, side]
            low, high = int(column.min()), int(column.max())
            if low < -1 or high >= length:
                raise ValueError(
                    f"{name}: expected {who} positions from 0 to {length - 1} (or -1 for no pair), "
                    f"got {low if low < -1 else high}"
                )
    return xp.restrict_pairs(value, student_mask, teacher_mask)


def compared(
    student: Any, teacher: Any, student_mask: Any, teacher_mask: Any, position_pairs: Any, backend: str | None
) -> tuple[Backend, Any, Any, Array, Array, Array]:
    """Find the backend of two sources and check what of them is compared; masks and pairs may be None."""
    arguments = {
        "student": student,
        "teacher": teacher,
        "student_mask": student_mask,
        "teacher_mask": teacher_mask,
        "pairs": position_pairs,
    }
    xp, (student, teacher, student_mask, teacher_mask, position_pairs) = resolve(arguments, backend)
    student_mask = source_and_mask(xp, "student", student, "student_mask", student_mask)
    teacher_mask = source_and_mask(xp, "teacher", teacher, "teacher_mask", teacher_mask)
    same_batch(student, teacher)
    position_pairs = pairs(xp, position_pairs, student, teacher, student_mask, teacher_mask)
    return xp, student, teacher, student_mask, teacher_mask, position_pairs


def columns(name: str, value: Array, xp: Backend, source: Source) -> None:
    """Require columns ``(B, k)`` of a source."""
    if xp.kind(value) != "integer":
        raise TypeError(f"{name}: expected integers, got {value.dtype}")
    if len(value.shape) != 2 or value.shape[0] != source.shape[0] or not value.shape[1]:
        raise ValueError(f"{name}: expected ({source.shape[0]}, k), got shape {tuple(value.shape)}")
    if value.shape[0]:
        low, high = int(value.min()), int(value.max())
        if low < 0 or high >= source.shape[2]:
            raise ValueError(f"{name}: expected 0 to {source.shape[2] - 1}, got {low if low < 0 else high}")


def traces(name: str, value: Any) -> None:
    """Require traces."""
    if not isinstance(value, Traces):
        raise TypeError(f"{name}: expected Traces (see mlot.select), got {type_name(value)}")


def matched_traces(student: Any, teacher: Any) -> None:
    """Require traces of one batch and one number of columns."""
    traces("student", student)
    traces("teacher", teacher)
    same_batch(student, teacher)
    if student.k != teacher.k:
        raise ValueError(
            f"student: expected matched traces of {teacher.k} columns, as the teacher, got {student.k}"
        )


def shared_temperature(student: Traces, teacher: Traces, temperature: float | None) -> None:
    """Require a temperature that both traces serve."""
    _checks.divisor("temperature", temperature, allow_none=True)
    if temperature is not None:
        student.require(temperature)
        teacher.require(temperature)
    elif student.temperature != teacher.temperature:
        raise ValueError(
            "temperature: expected one that both traces serve, got None with student at "
            f"{student.temperature} and teacher at {teacher.temperature}"
        )


def num_items(value: Any) -> None:
    """Require a positive number or a scalar array, which is taken as it is."""
    if value is None:
        return
    if not hasattr(value, "shape"):
        _checks.number("num_items", value)
        return
    if math.prod(value.shape) != 1:
        raise ValueError(f"num_items: expected one number, got shape {tuple(value.shape)}")
    if can_look(value) and not 0 < (number := float(value)) < math.inf:
        raise ValueError(f"num_items: expected a finite number > 0, got {number:g}")


def can_look(array: Array) -> bool:
    """Whether looking at a value costs nothing: on a device it would mean to wait, and to break a graph."""
    return str(getattr(array, "device", "cpu")) == "cpu" and not _compiling()


def _compiling() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.compiler.is_compiling())


def _mask(xp: Backend, name: str, mask: Array, shape: tuple[int, ...], of: str) -> None:
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, as {of}, got {tuple(mask.shape)}")
    if xp.kind(mask) != "bool":
        raise TypeError(f"{name}: expected booleans, got {mask.dtype}")


def _floating(xp: Backend, name: str, array: Array) -> None:
    if xp.kind(array) != "float":
        raise TypeError(f"{name}: expected floating-point numbers, got {array.dtype}")
