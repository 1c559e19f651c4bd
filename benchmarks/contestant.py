"""A computation that takes part in a benchmark, and what was found out about it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Contestant:
    """Something to run, and what it is said to compute.

    Attributes:
        name: unique within one benchmark.
        quantity: what it computes. The first contestant of a quantity is the reference of the others.
        forward: returns the value, a scalar or ``(B,)``; ``None`` if it cannot run here.
        wanted: tensors whose gradients are computed.
        baseline: name of the contestant that ratios refer to.
        constants: the other input tensors.
        claims: whether it is meant to have the value and the gradient of the reference.
        remark: how it differs, or why it cannot run here.
        ours: whether it is mlot's.
    """

    name: str
    quantity: str
    forward: Callable[[], Tensor] | None
    wanted: tuple[Tensor, ...]
    baseline: str
    constants: tuple[Tensor, ...] = ()
    claims: bool = True
    remark: str = ""
    ours: bool = False


@dataclass
class Row:
    """What was measured of a contestant; ``None`` where nothing was.

    Attributes:
        name, quantity, baseline, claims, remark, ours: of the contestant.
        section: heading that the row stands under.
        point: sizes, where they differ between rows.
        status: ``"measured"``, ``"not installed"`` or what went wrong.
        value: sum of the value's entries.
        value_difference: largest relative difference from the reference's value.
        gradient_norm: Euclidean norm over all wanted gradients.
        gradient_difference: norm of the difference from the reference's gradient, relative to its norm.
        agrees: whether both differences are within tolerance.
        is_reference: whether it is what the others of its quantity are compared with.
        seconds: forward and backward together, each timed run.
        peak_bytes: most memory that was in use beyond the inputs.
        gradient_bytes: size of the wanted gradients, which are part of the peak.
        saved_bytes: what autograd keeps between forward and backward, beyond the inputs.
        time_ratio: time over the baseline's in the same round, the median; ``time_ratio_spread``: quartiles.
        memory_ratio: peak memory over the baseline's.
    """

    name: str
    quantity: str
    baseline: str
    claims: bool
    remark: str
    ours: bool
    section: str = ""
    point: dict[str, Any] = field(default_factory=dict)
    status: str = "measured"
    value: float | None = None
    value_difference: float | None = None
    gradient_norm: float | None = None
    gradient_difference: float | None = None
    agrees: bool | None = None
    is_reference: bool = False
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    gradient_bytes: int | None = None
    saved_bytes: int | None = None
    time_ratio: float | None = None
    time_ratio_spread: tuple[float, float] | None = None
    memory_ratio: float | None = None

    @classmethod
    def of(cls, contestant: Contestant) -> Row:
        return cls(
            contestant.name,
            contestant.quantity,
            contestant.baseline,
            contestant.claims,
            contestant.remark,
            contestant.ours,
            section=contestant.quantity,
        )

    @property
    def median_seconds(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def beyond_gradient_bytes(self) -> int | None:
        if self.peak_bytes is None or self.gradient_bytes is None:
            return None
        return self.peak_bytes - self.gradient_bytes

    @property
    def is_bad(self) -> bool:
        """Whether it breaks a claim, or is ours and did not run."""
        return (self.claims and self.agrees is False) or (self.ours and self.status != "measured")


@dataclass(frozen=True)
class Findings:
    """What one benchmark found."""

    rows: list[Row]
    bandwidth: dict[str, Any] | str | None = None
    notes: tuple[str, ...] = ()
