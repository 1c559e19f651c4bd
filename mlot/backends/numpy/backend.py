"""The reference backend: float64, one sequence at a time, the equations in `numpy_equations`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot._intervals import rounding
from mlot._typing import ArrayKind, CostKind, HardMatching
from mlot.backends.base import Backend, Transport
from mlot.backends.numpy import equations as eq
from mlot.backends.numpy import text as numpy_text
from mlot.backends.numpy.equations import Floats, Integers
from mlot.backends.numpy.logits import float64, log_probs_of, logits_of
from mlot.backends.numpy.topk import log_distribution, log_distributions
from mlot.sources import Predictions
from mlot.text import TextPositions, TextTargets
from mlot.topk import TopKLogprobs
from mlot.traces import Traces

Mask = NDArray[np.bool_]


class NumpyBackend(Backend):
    """NumPy arrays in, float64 out. Arrays of any floating type are computed in float64."""

    name = "numpy"

    def kind(self, array: NDArray[Any]) -> ArrayKind:
        kinds: dict[str, ArrayKind] = {"f": "float", "i": "integer", "u": "integer", "b": "bool"}
        return kinds.get(array.dtype.kind, "other")

    def device(self, array: NDArray[Any]) -> str:
        return "cpu"

    def convert(self, array: Any, name: str) -> NDArray[Any]:
        if isinstance(array, np.ndarray):
            return array
        if not hasattr(array, "shape"):
            raise TypeError(f"{name}: expected an array, got {type(array).__name__}")
        if getattr(array, "requires_grad", False):
            raise TypeError(f"{name}: the numpy backend has no gradients; pass {name}.detach()")
        if hasattr(array, "is_floating_point") and array.is_floating_point():
            array = array.double()  # NumPy has no bfloat16
        if hasattr(array, "cpu"):
            array = array.cpu()
        return np.asarray(array)

    def from_numpy(self, array: NDArray[Any], device: Any = None) -> NDArray[Any]:
        if device not in (None, "cpu"):
            raise ValueError(f"device: the numpy backend has only 'cpu', got {device!r}")
        return array

    def to_numpy(self, array: NDArray[Any]) -> NDArray[Any]:
        return array

    def stop_gradient(self, array: NDArray[Any]) -> NDArray[Any]:
        return array

    # -- masks and pairs ---------------------------------------------------------------------------------

    def full_mask(self, source: Predictions) -> Mask:
        return np.ones(source.shape[:2], dtype=bool)

    def mask_from_labels(self, labels: Integers, ignore_index: int) -> Mask:
        mask = np.zeros(labels.shape, dtype=bool)
        mask[:, :-1] = labels[:, 1:] != ignore_index
        return mask

    def index_pairs(self, student_mask: Mask, teacher_mask: Mask) -> Integers:
        batch, width = len(student_mask), min(student_mask.shape[1], teacher_mask.shape[1])
        pairs = np.full((batch, width, 2), -1, dtype=np.int64)
        for n in range(batch):
            student, teacher = np.flatnonzero(student_mask[n]), np.flatnonzero(teacher_mask[n])
            shorter = min(len(student), len(teacher))
            pairs[n, :shorter] = np.stack([student[:shorter], teacher[:shorter]], axis=1)
        return pairs

    def restrict_pairs(self, pairs: Integers, student_mask: Mask, teacher_mask: Mask) -> Integers:
        result = np.full(pairs.shape, -1, dtype=np.int64)
        for n, rows in enumerate(pairs):
            for p, (i, j) in enumerate(rows):
                if i >= 0 and j >= 0 and student_mask[n, i] and teacher_mask[n, j]:
                    result[n, p] = i, j
        return result

    def count_pairs(self, pairs: Integers) -> Floats:
        return np.asarray((pairs[:, :, 0] >= 0).sum(axis=1), dtype=np.float64)

    def count_positions(self, mask: Mask) -> Floats:
        return np.asarray(mask.sum(axis=1), dtype=np.float64)

    # -- selection ---------------------------------------------------------------------------------------

    def select(
        self,
        source: Predictions,
        mask: Mask,
        *,
        k: int,
        temperature: float,
        extra_temperatures: tuple[float, ...],
        standardize: bool,
    ) -> Traces:
        columns = np.zeros((source.shape[0], k), dtype=np.int64)
        for n in range(len(columns)):
            log_probs = log_probs_of(source, n, mask[n], temperature, standardize)
            columns[n] = eq.heaviest_columns(np.exp(log_probs), k)
        return self.take(
            source,
            columns,
            mask,
            temperature=temperature,
            extra_temperatures=extra_temperatures,
            standardize=standardize,
        )

    def select_sparse(
        self,
        source: TopKLogprobs,
        mask: Mask,
        *,
        k: int,
        temperature: float,
        extra_temperatures: tuple[float, ...],
    ) -> Traces:
        batch, length, vocabulary = source.shape
        columns, mass = np.zeros((batch, k), dtype=np.int64), np.zeros((batch, k))
        kept = np.full((batch, length, k), -np.inf)
        normalizers = np.zeros((batch, length, len(extra_temperatures)))
        for n in range(batch):
            rows, sums, base = np.flatnonzero(mask[n]), np.zeros(vocabulary), np.zeros(length)
            for _, log_probs, _ in log_distributions(source, n, rows, temperature):
                sums += np.exp(log_probs)
            columns[n] = np.argsort(-sums, kind="stable")[:k]
            mass[n] = sums[columns[n]]
            for i, log_probs, base[i] in log_distributions(source, n, rows, temperature):
                kept[n, i] = log_probs[columns[n]]
            for m, extra in enumerate(extra_temperatures):
                for i, _, there in log_distributions(source, n, rows, extra):
                    normalizers[n, i, m] = there - temperature / extra * base[i]
        return Traces(columns, kept, normalizers, mass, mask, vocabulary, temperature, extra_temperatures)

    def take(
        self,
        source: Predictions,
        columns: Integers,
        mask: Mask,
        *,
        temperature: float,
        extra_temperatures: tuple[float, ...],
        standardize: bool,
    ) -> Traces:
        batch, length, vocabulary = source.shape
        kept = np.full((batch, length, columns.shape[1]), -np.inf)
        normalizers = np.zeros((batch, length, len(extra_temperatures)))
        mass = np.zeros(columns.shape)
        for n in range(batch):
            log_probs = log_probs_of(source, n, mask[n], temperature, standardize)
            kept[n, mask[n]] = log_probs[:, columns[n]]
            mass[n] = np.exp(log_probs[:, columns[n]]).sum(axis=0)
            for m, extra in enumerate(extra_temperatures):
                normalizers[n, mask[n], m] = eq.log_normalizer(log_probs, temperature, extra)
        return Traces(
            columns,
            kept,
            normalizers,
            mass,
            mask,
            int(vocabulary),
            temperature,
            extra_temperatures,
            standardize,
        )

    def keep(self, traces: Traces, index: Integers) -> Traces:
        return Traces(
            np.take_along_axis(traces.columns, index, axis=1),
            np.take_along_axis(traces.log_probs, index[:, None, :], axis=2),
            traces.log_normalizers,
            np.take_along_axis(traces.column_mass, index, axis=1),
            traces.mask,
            traces.vocab_size,
            traces.temperature,
            traces.extra_temperatures,
            traces.standardize,
        )

    # -- costs, matching, transport ----------------------------------------------------------------------

    def token_cost(
        self, student: Traces, teacher: Traces, pairs: Integers, *, kind: CostKind, temperature: float | None
    ) -> Floats:
        cost = np.zeros((len(pairs), teacher.k, student.k))
        log_student, log_teacher = float64(student.at(temperature)), float64(teacher.at(temperature))
        for n in range(len(cost)):
            i, j = _paired(pairs[n])
            s = log_student[n, i]
            cost[n] = eq.token_cost(np.exp(s), np.exp(log_teacher[n, j]), s, kind)
        return cost

    def assign(self, cost: Floats, *, method: HardMatching) -> Integers:
        columns = np.zeros(cost.shape[:2], dtype=np.int64)
        for n, matrix in enumerate(cost):
            columns[n] = eq.assignment(float64(matrix), method)
        return columns

    def sequence_cost(
        self,
        student: Traces,
        teacher: Traces,
        *,
        kind: CostKind,
        temperature: float | None,
        coupling: Floats | None = None,
    ) -> Floats:
        cost = np.zeros((len(teacher.mask), teacher.mask.shape[1], student.mask.shape[1]))
        log_student, log_teacher = float64(student.at(temperature)), float64(teacher.at(temperature))
        for n in range(len(cost)):
            s, t = log_student[n, student.mask[n]], log_teacher[n, teacher.mask[n]]
            if coupling is not None:
                with np.errstate(divide="ignore"):
                    s = np.log(np.exp(s) @ coupling[n].T)
            block = np.ix_(teacher.mask[n], student.mask[n])
            cost[n][block] = eq.sequence_cost(np.exp(s), np.exp(t), s, kind)
        return cost

    def marginals(self, student_mask: Mask, teacher_mask: Mask, like: NDArray[Any]) -> tuple[Floats, Floats]:
        both = np.asarray(student_mask.any(axis=1) & teacher_mask.any(axis=1))

        def uniform(mask: Mask) -> Floats:
            return np.where(mask & both[:, None], 1.0 / np.maximum(mask.sum(axis=1, keepdims=True), 1), 0.0)

        return uniform(teacher_mask), uniform(student_mask)

    def sinkhorn(
        self,
        cost: Floats,
        a: Floats,
        b: Floats,
        *,
        epsilon: float,
        n_iter: int,
        tol: float | None,
        cost_bound: float | None,
    ) -> Transport:
        return _transport(cost, a, b, lambda c, x, y: eq.sinkhorn(c, x, y, epsilon, n_iter, tol))

    def emd(self, cost: Floats, a: Floats, b: Floats) -> Transport:
        return _transport(cost, a, b, lambda c, x, y: (eq.emd(c, x, y), 0))

    # -- divergences -------------------------------------------------------------------------------------

    def had(self, student: Traces, teacher: Traces, pairs: Integers) -> Floats:
        result = np.zeros(len(pairs))
        for n in range(len(pairs)):
            i, j = _paired(pairs[n])
            s, t = float64(student.log_probs[n, i]), float64(teacher.log_probs[n, j])
            result[n] = eq.had(np.exp(s), np.exp(t))
        return result

    def sl(self, student: Traces, teacher: Traces, pairs: Integers) -> Floats:
        result = np.zeros(len(pairs))
        for n in range(len(pairs)):
            i, j = _paired(pairs[n])
            s, t = float64(student.log_probs[n, i]), float64(teacher.log_probs[n, j])
            result[n] = eq.sl(s, np.exp(t))
        return result

    def uld(
        self,
        student: Predictions,
        teacher: Predictions,
        student_mask: Mask,
        teacher_mask: Mask,
        pairs: Integers,
    ) -> Floats:
        result = np.zeros(len(pairs))
        for n in range(len(pairs)):
            i, j = _paired(pairs[n])
            s = np.exp(eq.log_probabilities(logits_of(student, n, i), 1.0))
            t = np.exp(eq.log_probabilities(logits_of(teacher, n, j), 1.0))
            result[n] = eq.uld(s, t)
        return result

    # -- the plan from the text --------------------------------------------------------------------------

    def text_targets(
        self,
        teacher: Predictions | TopKLogprobs,
        text: TextPositions,
        student_mask: Mask,
        teacher_mask: Mask,
        *,
        k: int,
        temperature: float,
        min_served: float,
    ) -> TextTargets:
        plan, shape = text.plan, student_mask.shape
        k = min(k, plan.student_vocab_size)
        ids, log_probs = np.full((*shape, k), -1), np.full((*shape, k), -np.inf)
        rest, served = np.zeros((2, *shape))
        for n, position in numpy_text.positions(text.rows, student_mask, teacher_mask):
            i, j = position.student, position.teacher
            probabilities, missing = zip(
                *(self._distribution(teacher, n, j + m, temperature) for m in range(position.chain)),
                strict=True,
            )
            tokens = text.teacher_ids[n, j + 1 : j + 1 + position.chain].tolist()
            chain = np.prod([t[token] for t, token in zip(probabilities, tokens, strict=False)])
            first = tokens[0] if tokens else -1
            mass, there = numpy_text.carried(probabilities[0], position, first, float(chain), plan)
            share = mass.sum() / (there + missing[0]) if mass.sum() > 0 else 0.0
            if 0 < share >= min_served:
                served[n, i] = share
                ids[n, i], log_probs[n, i], rest[n, i] = numpy_text.likeliest(mass / mass.sum(), k)
        return TextTargets(ids, log_probs, rest, served, plan.student_vocab_size, temperature)

    def _distribution(
        self, source: Predictions | TopKLogprobs, n: int, j: int, temperature: float
    ) -> tuple[Floats, float]:
        """Probabilities at a position, and the mass of tokens that are not known."""
        if isinstance(source, TopKLogprobs):
            listed = np.zeros(source.shape[2])
            ids = source.ids[n, j][source.ids[n, j] >= 0]
            listed[ids] = np.exp(log_distribution(source, n, j, temperature)[0][ids])
            missing = max(1 - float(listed.sum()), 0.0)
            return listed, 0.0 if missing <= rounding(float(np.finfo(source.logprobs.dtype).eps)) else missing
        return np.exp(eq.log_probabilities(logits_of(source, n, slice(j, j + 1)), temperature))[0], 0.0

    def text_terms(
        self,
        student: Predictions,
        targets: TextTargets,
        has_target: Mask,
        columns: Integers,
        mask: Mask,
        *,
        temperature: float,
        extra_temperatures: tuple[float, ...],
    ) -> tuple[Floats, Floats, Floats, Traces]:
        had, sl, listed = np.zeros((3, len(mask)))
        for n, i in np.argwhere(has_target).tolist():
            log_s = eq.log_probabilities(logits_of(student, n, slice(i, i + 1)), temperature)[0]
            ids = targets.ids[n, i][targets.ids[n, i] >= 0]
            log_q = float64(targets.log_probs[n, i])[targets.ids[n, i] >= 0]
            # What is not listed counts as one token.
            log_rest = np.logaddexp.reduce(np.delete(log_s, ids), initial=-np.inf)
            t = np.append(np.exp(log_q), targets.rest[n, i])[None]
            s = np.append(log_s[ids], log_rest)[None]
            had[n] += eq.had(np.exp(s), t)
            sl[n] += eq.sl(s, t)
            listed[n] += np.exp(log_s[ids]).sum()
        traces = self.take(
            student,
            columns,
            mask,
            temperature=temperature,
            extra_temperatures=extra_temperatures,
            standardize=False,
        )
        return had, sl, listed, traces

    def inner(self, plan: Floats, cost: Floats) -> Floats:
        terms = eq.times(plan, cost)
        return np.asarray(terms.sum(axis=tuple(range(1, plan.ndim))), dtype=np.float64)


def _paired(pairs: Integers) -> tuple[Integers, Integers]:
    """Student rows and teacher rows of one sequence's pairs."""
    real = pairs[pairs[:, 0] >= 0]
    return real[:, 0], real[:, 1]


def _transport(
    cost: Floats, a: Floats, b: Floats, solve: Callable[[Floats, Floats, Floats], tuple[Floats, int]]
) -> Transport:
    """Solve each sequence on the rows and columns that have weight."""
    cost, a, b = float64(cost), float64(a), float64(b)
    plan, value, error = np.zeros(cost.shape), np.zeros(len(cost)), np.zeros(len(cost))
    rounds = np.zeros(len(cost), dtype=np.int64)
    for n in range(len(cost)):
        rows, columns = a[n] > 0, b[n] > 0
        if rows.any() and columns.any():
            block = np.ix_(rows, columns)
            plan[n][block], rounds[n] = solve(cost[n][block], a[n][rows], b[n][columns])
            value[n] = eq.times(plan[n][block], cost[n][block]).sum()
        error[n] = eq.marginal_error(plan[n], a[n], b[n])
    return Transport(plan, value, error, rounds)
