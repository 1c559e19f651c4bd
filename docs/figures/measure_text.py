"""Measurements of the plan from the text; `measure.py` calls them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import mlot

LISTED = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
POOLED = (1, 2, 4, 8, 24)
SHARPENED = (1, 2, 4, 8)
COLUMNS = 50


@dataclass(frozen=True)
class Sides:
    """What both models predict, which positions count, and where these are in the text."""

    student: np.ndarray
    teacher: np.ndarray
    student_mask: np.ndarray
    teacher_mask: np.ndarray
    pairs: np.ndarray
    text: mlot.TextPositions


def text(data: Sides) -> dict[str, Any]:
    """What the plan serves, what listing costs, and how much of the mass a matching puts on equal strings."""
    return served(data) | {"rest": rest(data), "same_bytes": same_bytes(data), "sharpened": sharpened(data)}


def served(data: Sides) -> dict[str, Any]:
    """Shares of positions and of mass that are served, by reading."""
    real = data.text.rows[..., 0] >= 0
    depth, chain = data.text.rows[..., 2], data.text.rows[..., 8]
    numbers: dict[str, Any] = {
        "positions": int(data.student_mask.sum()),
        "boundaries": int((real & (depth == 0)).sum()),
        "inside": int((real & (depth > 0)).sum()),
        "chained": int((real & (chain > 1)).sum()),
        "served_mass": {},
    }
    for reading in ("canonical", "longest"):
        targets = made(data, k=1, reading=reading)
        has_target = targets.served > 0
        numbers["served_mass"][reading] = float(targets.served[has_target].mean())
        numbers[f"targets_{reading}"] = int(has_target.sum())
    return numbers


def made(data: Sides, k: int, reading: str = "canonical") -> mlot.TextTargets:
    """Targets of the k likeliest tokens."""
    plan = data.text.plan
    if reading != plan.reading:
        arrays = (getattr(plan, name) for name in ("order", "offsets", "longest", "canonical"))
        others = (plan.segmentation, plan.equal, plan.roles, plan.student_vocab_size, plan.teacher_vocab_size)
        plan = mlot.TextPlan(*arrays, *others, reading=reading)
    return mlot.text_targets(
        data.teacher,
        mlot.TextPositions(data.text.rows, data.text.teacher_ids, plan),
        student_mask=data.student_mask,
        teacher_mask=data.teacher_mask,
        k=k,
    )


def rest(data: Sides) -> dict[str, list[float]]:
    """Terms for each position, and what HAD may miss, against the number of listed tokens."""
    probs = probabilities(data.student)
    numbers: dict[str, list[float]] = {"k": list(LISTED), "rest": [], "had": [], "bound": [], "sl": []}
    for k in LISTED:
        targets = made(data, k)
        config = mlot.MultiLevelOTConfig(k=k, matching="text", sd_weight=0)
        result = mlot.multi_level_ot(data.student, targets, student_mask=data.student_mask, config=config)
        ids = targets.ids
        s = np.where(ids >= 0, np.take_along_axis(probs, np.maximum(ids, 0), axis=-1), 0)
        missed = 2 * np.minimum(targets.rest, np.maximum(1 - s.sum(-1), 0))
        has_target = targets.served > 0
        numbers["rest"].append(float(targets.rest[has_target].mean()))
        numbers["had"].append(float(result.had))
        numbers["bound"].append(float(missed[has_target].mean()))
        numbers["sl"].append(float(result.sl))
    return numbers


def same_bytes(data: Sides) -> dict[str, Any]:
    """Share of the kept mass on the token of the same bytes, by cost and number of texts read as one."""
    numbers: dict[str, Any] = {"texts": list(POOLED), "l1": [], "log": [], "l1_by_index": [], "possible": []}
    same = counterparts(data.text.plan)
    for size in POOLED:
        values: dict[str, list[float]] = {name: [] for name in numbers if name != "texts"}
        for sides in groups(data, size):
            traces = mlot.select(sides["teacher"], sides["teacher_mask"], k=COLUMNS)
            mass = traces.column_mass[0]
            values["possible"].append(float(mass[same[traces.columns[0]] >= 0].sum() / mass.sum()))
            for cost in ("l1", "log"):
                values[cost].append(share(matched(sides, cost), data.text.plan))
            values["l1_by_index"].append(share(matched(sides | {"pairs": None}, "l1"), data.text.plan))
        for name, each in values.items():
            numbers[name].append(float(np.mean(each)))
    return numbers


def sharpened(data: Sides, size: int = 8) -> dict[str, Any]:
    """The same with the teacher's logits times a factor, so many texts read as one.

    ``overlaps``: share of the kept mass in columns whose counterpart has more than half of its own mass in
    common with them.
    """
    numbers: dict[str, Any] = {"factor": list(SHARPENED), "l1": [], "log": [], "overlaps": []}
    same = counterparts(data.text.plan)
    for factor in SHARPENED:
        values: dict[str, list[float]] = {"l1": [], "log": [], "overlaps": []}
        for sides in groups(data, size):
            sides["teacher"] = factor * sides["teacher"]
            for cost in ("l1", "log"):
                result = matched(sides, cost)
                values[cost].append(share(result, data.text.plan))
            columns = result.teacher_columns[0][same[result.teacher_columns[0]] >= 0]
            i, j = sides["pairs"][0].T
            t = probabilities(sides["teacher"][0, j])[:, columns]
            s = probabilities(sides["student"][0, i])[:, same[columns]]
            mass, common = t.sum(0), np.minimum(t, s).sum(0)
            values["overlaps"].append(float(mass[2 * common > s.sum(0)].sum() / mass.sum()))
        for name, each in values.items():
            numbers[name].append(float(np.mean(each)))
    return numbers


def counterparts(plan: mlot.TextPlan) -> np.ndarray:
    """Student token of the same bytes, or role, for each teacher token; -1: none."""
    same = np.full(plan.teacher_vocab_size, -1)
    same[plan.order] = plan.equal
    same[plan.roles[:, 0]] = plan.roles[:, 1]
    return same


def matched(sides: dict[str, Any], cost: str) -> mlot.MultiLevelOTResult:
    """The loss with the optimal matching by a cost."""
    config = mlot.MultiLevelOTConfig(k=COLUMNS, token_cost=cost, sd_weight=0, n_iter=1)
    return mlot.multi_level_ot(**sides, config=config)


def share(result: mlot.MultiLevelOTResult, plan: mlot.TextPlan) -> float:
    """Share of the kept mass that is matched with the token of the same bytes."""
    return float(result.diagnostics(plan).same_bytes[0])


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax."""
    return np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))


def groups(data: Sides, size: int) -> Iterator[dict[str, Any]]:
    """So many texts at a time as one sequence."""
    for start in range(0, len(data.pairs) - size + 1, size):
        yield as_one(data, slice(start, start + size))


def as_one(data: Sides, texts: slice) -> dict[str, Any]:
    """Several texts as one sequence."""
    lengths = data.student.shape[1], data.teacher.shape[1]
    shifted = [
        row[row[:, 0] >= 0] + np.array(lengths) * number for number, row in enumerate(data.pairs[texts])
    ]
    return {
        "student": data.student[texts].reshape(1, -1, data.student.shape[2]),
        "teacher": data.teacher[texts].reshape(1, -1, data.teacher.shape[2]),
        "student_mask": data.student_mask[texts].reshape(1, -1),
        "teacher_mask": data.teacher_mask[texts].reshape(1, -1),
        "pairs": np.concatenate(shifted)[None],
    }
