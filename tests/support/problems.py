"""Random problems of awkward shapes, and how closely two computations of one quantity must agree."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import strategies as st

import mlot

BACKENDS = ("numpy", "torch")
TERMS = ("loss", "had", "sl", "sd")


@dataclass(frozen=True)
class Problem:
    """Logits of two models on the same sequences, with masks and perhaps pairs; arrays of one kind."""

    student: object
    teacher: object
    student_mask: object = None
    teacher_mask: object = None
    pairs: object = None

    def arguments(self) -> dict[str, object]:
        return {
            "student": self.student,
            "teacher": self.teacher,
            "student_mask": self.student_mask,
            "teacher_mask": self.teacher_mask,
            "pairs": self.pairs,
        }

    def to(self, backend: str, dtype: torch.dtype = torch.float64) -> Problem:
        if backend == "numpy":
            return self
        values = {
            name: None if value is None else torch.from_numpy(np.ascontiguousarray(value))
            for name, value in self.arguments().items()
        }
        values["student"] = values["student"].to(dtype)
        values["teacher"] = values["teacher"].to(dtype)
        return Problem(**values)

    def row(self, n: int) -> Problem:
        """One sequence of the batch."""
        return Problem(**{k: None if v is None else v[n : n + 1] for k, v in self.arguments().items()})

    def with_(self, **changes: object) -> Problem:
        return replace(self, **changes)


def random_mask(rng: np.random.Generator, batch: int, length: int, style: str) -> np.ndarray | None:
    """Masks as they occur: none, interior gaps, right or left padding, and sequences that are empty."""
    if style == "none":
        return None
    if style == "gaps":
        return rng.random((batch, length)) < 0.7
    sizes = rng.integers(0, length + 1, size=(batch, 1))
    right = np.arange(length) < sizes
    return right if style == "right" else right[:, ::-1].copy()


def random_pairs(rng: np.random.Generator, batch: int, t_s: int, t_t: int) -> np.ndarray:
    """Some monotone pairs for each sequence, -1 padded, in a width of their own."""
    width = int(rng.integers(0, min(t_s, t_t) + 2))
    pairs = np.full((batch, width, 2), -1)
    for n in range(batch):
        count = int(rng.integers(0, min(width, t_s, t_t) + 1))
        pairs[n, :count, 0] = np.sort(rng.choice(t_s, count, replace=False))
        pairs[n, :count, 1] = np.sort(rng.choice(t_t, count, replace=False))
    return pairs


def make_problem(
    seed: int,
    batch: int = 2,
    t_s: int = 5,
    t_t: int = 7,
    v_s: int = 23,
    v_t: int = 31,
    spread: float = 2.0,
    masks: str = "none",
    pairs: bool = False,
) -> Problem:
    rng = np.random.default_rng(seed)
    return Problem(
        spread * rng.normal(size=(batch, t_s, v_s)),
        spread * rng.normal(size=(batch, t_t, v_t)),
        random_mask(rng, batch, t_s, masks),
        random_mask(rng, batch, t_t, masks),
        random_pairs(rng, batch, t_s, t_t) if pairs else None,
    )


@st.composite
def problems(draw: st.DrawFn, max_batch: int = 3, pairs: bool | None = None) -> Problem:
    """Shapes that trip code up: single positions, one column, V < k, T_s != T_t, empty sequences."""
    return make_problem(
        seed=draw(st.integers(0, 2**32 - 1)),
        batch=draw(st.integers(1, max_batch)),
        t_s=draw(st.integers(1, 9)),
        t_t=draw(st.integers(1, 9)),
        v_s=draw(st.sampled_from([1, 2, 3, 7, 16, 33])),
        v_t=draw(st.sampled_from([1, 2, 5, 8, 17, 40])),
        spread=draw(st.sampled_from([0.3, 2.0, 8.0])),
        masks=draw(st.sampled_from(["none", "gaps", "right", "left"])),
        pairs=draw(st.booleans()) if pairs is None else pairs,
    )


@st.composite
def configs(
    draw: st.DrawFn, matchings: tuple[str, ...] = ("optimal", "greedy", "rank")
) -> mlot.MultiLevelOTConfig:
    matching = draw(st.sampled_from(matchings))
    k = draw(st.sampled_from([1, 4, 10, 50] + ([None] if matching == "rank" else [])))
    return mlot.MultiLevelOTConfig(
        k=k,
        matching=matching,
        pool=None if k is None else draw(st.sampled_from([None, k, 2 * k + 1])),
        temperature=draw(st.sampled_from([1.0, 0.7, 2.0])),
        sequence_temperature=draw(st.sampled_from([2.0, 1.0, 3.5])),
        standardize=draw(st.booleans()),
        epsilon=draw(st.sampled_from([0.1, 0.03, 1.0])),
        n_iter=draw(st.sampled_from([1, 5, 20])),
        tol=draw(st.sampled_from([None, 1e-3])),
        sequence_cost=draw(st.sampled_from(["l1", "log"])),
    )


def as_numpy(value: object) -> np.ndarray:
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy()


def rounding(problem: Problem, config: mlot.MultiLevelOTConfig | None = None) -> float:
    """Absolute error that rounding the inputs alone may cause in a sum over positions, in float64.

    Log-probabilities carry an error of the size of the largest scaled logit times the unit of rounding;
    standardising divides it by a deviation that cancels digits, Sinkhorn by the regularisation.
    """
    config = mlot.MultiLevelOTConfig() if config is None else config
    size, positions = 1.0, 1
    for logits in (as_numpy(problem.student), as_numpy(problem.teacher)):
        if logits.size == 0:
            continue
        largest = np.abs(logits).max(initial=1.0) / min(config.temperature, config.sequence_temperature)
        if config.standardize and logits.shape[-1] > 1:
            deviation = logits.std(axis=-1, ddof=1).min() + 1e-4
            largest *= (1 + np.abs(logits).max() / deviation) / deviation
        size = max(size, float(largest))
        positions += logits.shape[0] * logits.shape[1]
    return 8 * np.finfo(float).eps * positions * size * (1 + 1 / config.epsilon)


def assert_close(got: object, want: object, rtol: float, floor: float, name: str) -> None:
    """Relative agreement, down to what rounding of the inputs allows."""
    got, want = as_numpy(got), as_numpy(want)
    assert got.shape == want.shape, name
    same = (got == want) | (np.abs(got - want) <= rtol * np.abs(want) + floor)
    assert same.all(), f"{name}: got {got}, want {want}, difference {np.abs(got - want).max()}"


def terms_in_autocast(matching: str, kind: str, enabled: bool) -> list[torch.Tensor]:
    """Every term in float32, and the gradient of their sum, with autocast to bfloat16 or without."""
    problem = make_problem(5, masks="gaps").to("torch", torch.float32)
    leaf = problem.student.clone().requires_grad_()
    config = mlot.MultiLevelOTConfig(k=8, matching=matching, token_cost=kind, sequence_cost=kind)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        result = mlot.multi_level_ot(**problem.with_(student=leaf).arguments(), config=config)
    return [*(getattr(result, term) for term in TERMS), *torch.autograd.grad(result.loss, leaf)]
