"""MultiLevelOT: the loss and what it found on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot import _arguments, _checks
from mlot._selection import select_columns
from mlot._typing import Array, Reduction
from mlot.backends.base import Backend
from mlot.config import MultiLevelOTConfig, checked_config
from mlot.divergences import check_reduction, reduce_sums, sequence_transport
from mlot.matching import default_pool, matching_gap
from mlot.sources import Source
from mlot.traces import Traces


@dataclass(frozen=True)
class Diagnostics:
    """How well a loss could be computed, one number for each sequence.

    Attributes:
        pairs: number of paired positions.
        teacher_kept_mass: share of the teacher's probability that its kept columns carry, from 0 to 1.
        student_kept_mass: the same for the student's matched columns.
        matching_gap: bound on how far the matched cost is from the optimum over the whole vocabulary
            (`mlot.matching_gap`); NaN where no such bound exists (other matchings than ``"optimal"`` with the
            L1 cost).
        marginal_error: L1 distance of the sequence-level plan's marginals from the uniform ones.
    """

    pairs: NDArray[np.float64]
    teacher_kept_mass: NDArray[np.float64]
    student_kept_mass: NDArray[np.float64]
    matching_gap: NDArray[np.float64]
    marginal_error: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MultiLevelOTResult:
    """Value of MultiLevelOT, its terms, and the columns behind it.

    Attributes:
        loss: weighted sum of the terms, reduced.
        had: HAD (eq. 14), unweighted, reduced the same way.
        sl: SL (eq. 16), unweighted, reduced the same way.
        sd: Sinkhorn distance (eqs. 17-20), unweighted, reduced the same way.
        teacher_columns: columns kept of the teacher, ``(B, k)``, heaviest first.
        student_columns: the student's column matched with each, ``(B, k)``; with ``matching="sinkhorn"``, the
            student's k heaviest.
        plan: transport plan between positions, ``(B, T_t, T_s)``, or ``None`` unless asked for.
        coupling: with ``matching="sinkhorn"``, the plan between columns scaled to rows of about 1,
            ``(B, k, k)``.
    """

    loss: Array
    had: Array
    sl: Array
    sd: Array
    teacher_columns: Array
    student_columns: Array
    plan: Array | None = None
    coupling: Array | None = None
    _evidence: dict[str, Any] = field(default_factory=dict, repr=False)

    def diagnostics(self) -> Diagnostics:
        """Compute `Diagnostics`; this waits for the device and may solve assignments on the host."""
        found = {name: np.asarray(_to_host(self._evidence, name), dtype=np.float64) for name in _HOST}
        return Diagnostics(
            found["pairs"],
            _share(found["teacher_mass"].sum(axis=1), found["teacher_positions"]),
            _share(found["student_mass"].sum(axis=1), found["student_positions"]),
            self._gap(),
            found["marginal_error"],
        )

    def _gap(self) -> NDArray[np.float64]:
        gap = np.full(self.teacher_columns.shape[0], np.nan)
        if "cost" not in self._evidence:
            return gap
        cost, index, log_probs, pairs, outside = (_to_host(self._evidence, name) for name in _GAP)
        for n in range(len(gap)):
            real = pairs[n, pairs[n, :, 1] >= 0]
            teacher_mass = np.exp(log_probs[n, real[:, 1]].astype(np.float64)).sum(axis=0)
            # A column's mass counts a position once; over the pairs it may count as often as that is paired.
            repeats = np.bincount(real[:, 0]).max(initial=1)
            gap[n] = matching_gap(
                cost[n].astype(np.float64), index[n], teacher_mass, float(repeats * outside[n])
            )
        return gap


_HOST = ("pairs", "teacher_mass", "student_mass", "teacher_positions", "student_positions", "marginal_error")
_GAP = ("cost", "index", "teacher_log_probs", "pair_positions", "outside_mass")


def multi_level_ot(
    student: Source,
    teacher: Source,
    *,
    student_mask: Array | None = None,
    teacher_mask: Array | None = None,
    pairs: Array | None = None,
    config: MultiLevelOTConfig | None = None,
    reduction: Reduction = "mean",
    num_items: float | Array | None = None,
    backend: str | None = None,
    return_plan: bool = False,
) -> MultiLevelOTResult:
    r"""Multi-level optimal transport between the predictions of two models (eqs. 10-20).

    .. math:: \mathcal L = w_\mathrm{HAD}\,\mathrm{HAD} + \beta\,\mathrm{SL} + \gamma\,\mathrm{SD}

    The teacher's k heaviest columns of each sequence are selected and matched with columns of the student;
    HAD and SL compare the matched traces at paired positions, SD transports whole positions.

    Gradients flow to the student (and to the teacher, if it wants them) through every term, the truncated
    Sinkhorn included; the selected columns and the matching are constants. The gradient is the true one
    wherever the selection and the matching are locally constant.

    Args:
        student: logits ``(B, T_s, V_s)``, a `LinearHead`, a `mlot.distributed.VocabShard`, or `Traces` of at
            least ``config.pool`` columns.
        teacher: logits ``(B, T_t, V_t)``, a `LinearHead`, a `mlot.distributed.VocabShard`,
            `TopKLogprobs`, or `Traces` of at least ``config.k`` columns.
        student_mask: positions whose prediction counts, ``(B, T_s)`` booleans (see `mask_from_labels`);
            ``None`` means all.
        teacher_mask: the same for the teacher, ``(B, T_t)``.
        pairs: ``(B, P, 2)`` integers ``[student position, teacher position]``, padded by -1. ``None`` pairs
            the i-th valid position of one with the i-th of the other. Pairs whose positions are masked out
            are left out.
        config: settings; ``None`` means the paper's.
        reduction: ``"none"``: the literal sums of each sequence, ``(B,)``; ``"sum"``: their sum; ``"mean"``:
            each term divided by the number of positions it sums over in the batch, pairs for HAD and SL, the
            student's valid positions for SD.
        num_items: with ``"mean"``, the number to divide every term by instead: the positions of a whole
            accumulated or distributed batch.
        backend: name of a backend; ``None`` finds it from the type of the arrays.
        return_plan: keep the transport plan in the result.

    Returns:
        `MultiLevelOTResult`. A sequence that has no pairs, or no valid position on one of the sides, adds
        exactly 0 to the terms concerned, and no gradient.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range.

    Source: Cui et al., "Multi-Level Optimal Transport for Universal Cross-Tokenizer Knowledge Distillation on
    Language Models", AAAI 2025, arXiv 2412.14528.

    >>> import numpy as np, mlot
    >>> rng = np.random.default_rng(0)
    >>> student, teacher = rng.normal(size=(2, 5, 30)), rng.normal(size=(2, 7, 40))
    >>> result = mlot.multi_level_ot(student, teacher, config=mlot.MultiLevelOTConfig(k=8))
    >>> bool(np.isclose(result.loss, result.had + 0.1 * result.sl + 0.1 * result.sd))
    True
    """
    config = checked_config(config)
    check_reduction(reduction, num_items)
    _checks.flag("return_plan", return_plan)
    _arguments.student_source("student", student)
    xp, student, teacher, student_mask, teacher_mask, pairs = _arguments.compared(
        student, teacher, student_mask, teacher_mask, pairs, backend
    )
    k, pool = columns_of(config, student, teacher)
    student_traces = traces_of(xp, student, student_mask, pool, config, "student")
    teacher_traces = traces_of(xp, teacher, teacher_mask, k, config, "teacher")
    return loss_of(xp, student_traces, teacher_traces, pairs, config, reduction, num_items, return_plan)


def traces_of(
    xp: Backend, source: Source, mask: Array, k: int, config: MultiLevelOTConfig, name: str
) -> Traces:
    extra = (config.sequence_temperature,)
    return select_columns(xp, source, mask, k, config.temperature, extra, config.standardize, name)


def columns_of(config: MultiLevelOTConfig, student: Source, teacher: Source) -> tuple[int, int]:
    """Number of teacher columns and of student columns to select."""
    k = min(student.shape[2], teacher.shape[2], config.k if config.k is not None else student.shape[2])
    if config.matching in ("rank", "sinkhorn"):
        return k, k
    pool = max(default_pool(k) if config.pool is None else config.pool, k)
    return k, min(pool, student.shape[2])


def loss_of(
    xp: Backend,
    student: Traces,
    teacher: Traces,
    pairs: Array,
    config: MultiLevelOTConfig,
    reduction: Reduction,
    num_items: float | Array | None,
    return_plan: bool,
) -> MultiLevelOTResult:
    evidence: dict[str, Any] = {"xp": xp}
    coupling = None
    if config.matching in ("optimal", "greedy"):
        student = match(xp, student, teacher, pairs, config, evidence)
    if config.matching == "sinkhorn":
        coupling, had, sl = _soft_terms(xp, student, teacher, pairs, config)
    else:
        had, sl = xp.had(student, teacher, pairs), xp.sl(student, teacher, pairs)
    sd, transport = sequence_transport(
        xp,
        student,
        teacher,
        temperature=config.sequence_temperature,
        kind=config.sequence_cost,
        epsilon=config.epsilon,
        n_iter=config.n_iter,
        tol=config.tol,
        coupling=coupling,
    )
    pair_counts, positions = xp.count_pairs(pairs), xp.count_positions(student.mask)
    evidence.update(
        pairs=pair_counts,
        teacher_mass=teacher.column_mass,
        student_mass=student.column_mass,
        teacher_positions=xp.count_positions(teacher.mask),
        student_positions=positions,
        marginal_error=transport.marginal_error,
    )
    had = reduce_sums(had, pair_counts, reduction, num_items)
    sl = reduce_sums(sl, pair_counts, reduction, num_items)
    sd = reduce_sums(sd, positions, reduction, num_items)
    return MultiLevelOTResult(
        weighted(((config.had_weight, had), (config.sl_weight, sl), (config.sd_weight, sd))),
        had,
        sl,
        sd,
        teacher.columns,
        student.columns,
        transport.plan if return_plan else None,
        coupling,
        {name: value if name == "xp" else xp.stop_gradient(value) for name, value in evidence.items()},
    )


def match(
    xp: Backend,
    student: Traces,
    teacher: Traces,
    pairs: Array,
    config: MultiLevelOTConfig,
    evidence: dict[str, Any],
) -> Traces:
    """Student traces with a column for each of the teacher's, chosen among the pooled ones."""
    fixed_student, fixed_teacher = student.map(xp.stop_gradient), teacher.map(xp.stop_gradient)
    cost = xp.token_cost(fixed_student, fixed_teacher, pairs, kind=config.token_cost, temperature=None)
    index = xp.assign(cost, method="greedy" if config.matching == "greedy" else "optimal")
    if config.matching == "optimal" and config.token_cost == "l1":
        whole = student.k == student.vocab_size
        lightest = student.column_mass[:, -1]
        evidence.update(
            cost=cost,
            index=index,
            teacher_log_probs=teacher.log_probs,
            pair_positions=pairs,
            outside_mass=lightest * 0 - np.inf if whole else lightest,
        )
    return xp.keep(student, index)


def _soft_terms(
    xp: Backend, student: Traces, teacher: Traces, pairs: Array, config: MultiLevelOTConfig
) -> tuple[Array, Array, Array]:
    """Coupling between columns by Sinkhorn, and HAD and SL under it; a permutation gives the hard terms."""
    cost = xp.token_cost(student, teacher, pairs, kind=config.token_cost, temperature=None)
    everything = xp.full_mask(cost)
    a, b = xp.marginals(everything, everything, cost)
    found = xp.sinkhorn(
        cost, a, b, epsilon=config.epsilon, n_iter=config.n_iter, tol=config.tol, cost_bound=None
    )
    coupling = teacher.k * found.plan
    absolute = (
        cost
        if config.token_cost == "l1"
        else xp.token_cost(student, teacher, pairs, kind="l1", temperature=None)
    )
    logarithmic = (
        cost
        if config.token_cost == "log"
        else xp.token_cost(student, teacher, pairs, kind="log", temperature=None)
    )
    return coupling, xp.inner(coupling, absolute), xp.inner(coupling, logarithmic)


def weighted(terms: tuple[tuple[float, Array], ...]) -> Array:
    """Weighted sum; a weight of zero leaves a term out, even an infinite one."""
    first, *others = (weight * value for weight, value in terms if weight != 0)
    return sum(others, start=first)


def _to_host(evidence: dict[str, Any], name: str) -> NDArray[Any]:
    value: NDArray[Any] = evidence["xp"].to_numpy(evidence[name])
    return value


def _share(mass: NDArray[np.float64], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(mass, positions, out=np.zeros_like(mass), where=positions > 0)
