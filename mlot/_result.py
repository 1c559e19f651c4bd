"""What a loss returns: its terms, the columns behind it, and how well it could be computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlot._arrays import ArrayOperations
from mlot._typing import Array
from mlot.matching import matching_gap
from mlot.text import TextPlan


class MatchEvidence(NamedTuple):
    """What a bound on the matching needs."""

    cost: Array
    index: Array
    teacher_log_probs: Array
    pairs: Array
    outside_mass: Array


@dataclass(frozen=True, eq=False)
class Evidence:
    """What diagnostics are computed from; constants for differentiation."""

    xp: ArrayOperations
    pairs: Array
    teacher_mass: Array
    student_mass: Array
    teacher_positions: Array
    student_positions: Array
    marginal_error: Array
    served_mass: Array
    match: MatchEvidence | None = None

    def host(self, array: Array) -> NDArray[np.float64]:
        """Values of an array on the host."""
        values: NDArray[Any] = self.xp.to_numpy(array)
        return values.astype(np.float64)


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
        same_bytes: share of the teacher's kept mass that the matching puts on the student token of the same
            bytes; NaN where no plan is given, or no columns are matched.
        served_mass: with ``matching="text"``, mean over the positions that have a target of the share of the
            teacher's mass that is carried over, else NaN.
    """

    pairs: NDArray[np.float64]
    teacher_kept_mass: NDArray[np.float64]
    student_kept_mass: NDArray[np.float64]
    matching_gap: NDArray[np.float64]
    marginal_error: NDArray[np.float64]
    same_bytes: NDArray[np.float64]
    served_mass: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MultiLevelOTResult:
    """Value of MultiLevelOT, its terms, and the columns behind it.

    Attributes:
        loss: weighted sum of the terms, reduced.
        had: HAD (eq. 14), unweighted, reduced the same way.
        sl: SL (eq. 16), unweighted, reduced the same way.
        sd: Sinkhorn distance (eqs. 17-20), unweighted, reduced the same way; with ``matching="text"`` and a
            weight of 0 it is not computed, and NaN.
        teacher_columns: columns kept of the teacher, ``(B, k)``, heaviest first.
        student_columns: the student's column matched with each, ``(B, k)``; with ``matching="sinkhorn"``, the
            student's k heaviest; with ``matching="text"`` both are the student's columns of the targets.
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
    _evidence: Evidence = field(kw_only=True, repr=False)

    def diagnostics(self, plan: TextPlan | None = None) -> Diagnostics:
        """Compute `Diagnostics`; this waits for the device and may solve assignments on the host.

        Args:
            plan: the plan between both vocabularies, from which the share on equal strings is told.
        """
        evidence = self._evidence
        teacher_mass = evidence.host(evidence.teacher_mass)
        positions = evidence.host(evidence.teacher_positions)
        return Diagnostics(
            evidence.host(evidence.pairs),
            _ratio(teacher_mass.sum(axis=1), positions),
            _ratio(
                evidence.host(evidence.student_mass).sum(axis=1), evidence.host(evidence.student_positions)
            ),
            self._gap(),
            evidence.host(evidence.marginal_error),
            self._same_bytes(plan, teacher_mass),
            evidence.host(evidence.served_mass),
        )

    def _same_bytes(self, plan: TextPlan | None, mass: NDArray[np.float64]) -> NDArray[np.float64]:
        if plan is None or self.coupling is not None or not self.teacher_columns.shape[1]:
            return np.full(len(mass), np.nan)
        columns = self._evidence.host(self.teacher_columns).astype(np.int64)
        matched = self._evidence.host(self.student_columns).astype(np.int64)
        same = np.full(max(plan.teacher_vocab_size, columns.max(initial=0) + 1), -1)
        same[plan.order] = plan.equal
        same[plan.roles[:, 0]] = plan.roles[:, 1]
        return _ratio((mass * (same[columns] == matched)).sum(axis=1), mass.sum(axis=1))

    def _gap(self) -> NDArray[np.float64]:
        gap = np.full(self.teacher_columns.shape[0], np.nan)
        match = self._evidence.match
        if match is None:
            return gap
        cost, index, log_probs, pairs, outside = map(self._evidence.host, match)
        for n in range(len(gap)):
            if np.isnan(cost[n]).any():
                continue  # a model that has diverged
            real = pairs[n, pairs[n, :, 1] >= 0].astype(np.int64)
            teacher_mass = np.exp(log_probs[n, real[:, 1]]).sum(axis=0)
            # A column's mass counts a position once; over the pairs it may count as often as that is paired.
            repeats = np.bincount(real[:, 0]).max(initial=1)
            gap[n] = matching_gap(
                cost[n], index[n].astype(np.int64), teacher_mass, float(repeats * outside[n])
            )
        return gap


def _ratio(mass: NDArray[np.float64], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(mass, positions, out=np.zeros_like(mass), where=positions > 0)
