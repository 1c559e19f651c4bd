"""Models that are given by name: a folder, or the id of a repository in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlot import Teacher
from mlot._hf.loading import load_weights
from mlot.training._arguments import MultiLevelOTTrainingArguments


def student_of(model: Any, args: MultiLevelOTTrainingArguments) -> Any:
    """The student, read if it was given by name, as ``model_init_kwargs`` of TRL's settings say."""
    if not isinstance(model, str | Path):
        return model
    return load_weights(model, "model", **(getattr(args, "model_init_kwargs", None) or {}))


def teacher_of(teacher: Any, args: MultiLevelOTTrainingArguments, name: str = "teacher") -> Any:
    """A teacher or several, models and saved ones read where they were given by name."""
    if isinstance(teacher, str | Path):
        if (Path(teacher) / "manifest.json").is_file():
            from mlot.saved import SavedTeacher

            return SavedTeacher(teacher)
        dtype = args.teacher_dtype
        return load_weights(
            teacher, name, dtype="auto" if dtype is None else str(dtype).removeprefix("torch.")
        )
    if not isinstance(teacher, Sequence):
        return teacher
    return [
        replace(each, source=teacher_of(each.source, args, f"{name}[{n}]"))
        if isinstance(each, Teacher) and isinstance(each.source, str | Path)
        else each
        for n, each in enumerate(teacher)
    ]
