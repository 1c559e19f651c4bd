"""What storing log-probabilities in a narrow type may change in the loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot import _arguments, _checks
from mlot._storage import DTYPES
from mlot.traces import Traces


@dataclass(frozen=True)
class StorageError:
    r"""Bounds on the error that the storage type causes in each term of the loss, whatever the student.

    With :math:`t` the teacher's probabilities as they were selected and :math:`\tilde t` those stored, over
    the kept columns :math:`l` and the valid positions :math:`i`:

    .. math:: |\Delta\mathrm{HAD}| \le \sum_i \sum_l |t_l(i) - \tilde t_l(i)|, \qquad
              |\Delta\mathrm{SL}| \le \max_{i,l} \Big|\frac{\tilde t_l(i)}{t_l(i)} - 1\Big| \cdot \mathrm{SL},
              \qquad |\Delta C_{ij}| \le \sum_l |t^{(\tau)}_l(i) - \tilde t^{(\tau)}_l(i)|

    The bound on HAD holds for a given map of columns and for the optimal one (eqs. 11, 14), that on SL for a
    given map (eq. 16). :math:`C` is the sequence cost; the value of exact transport moves by no more than the
    mean of that sum over the positions, times :math:`T_s`.

    Of targets, the bounds on HAD and SL hold with :math:`q` in place of :math:`t`, the rest being one more
    token. Of the likeliest tokens, they are of the teacher's probabilities: with :math:`\epsilon` the bound
    for SL, a probability of the targets that are made from them changes by at most
    :math:`2 \epsilon / (1 - \epsilon)` of itself, where the student's token reaches into one token of the
    teacher and no threshold is crossed (see `mlot.text_targets`).

    Attributes:
        dtype: storage type.
        k: columns or tokens kept.
        positions: number of positions that the figures are of.
        kept_mass: share of the probability mass, of the teacher or of the targets, in what is kept, a mean
            over positions.
        probability_max: largest absolute error of a probability.
        had_mean: bound on the error of HAD for each pair, a mean over positions.
        had_max: the same at the worst position.
        sl_relative: bound on the error of SL, as a share of SL.
        cost_mean: bound on the error of an entry of the sequence cost, a mean over positions, at the worst of
            the further temperatures; 0 if there are none.
        cost_max: the same at the worst position.
    """

    dtype: str
    k: int
    positions: int = 0
    kept_mass: float = 0.0
    probability_max: float = 0.0
    had_mean: float = 0.0
    had_max: float = 0.0
    sl_relative: float = 0.0
    cost_mean: float = 0.0
    cost_max: float = 0.0

    @property
    def probability_mean(self) -> float:
        """Mean absolute error of a probability of the kept columns."""
        return self.had_mean / self.k

    def as_dict(self) -> dict[str, Any]:
        """Every figure by its name."""
        return asdict(self)


def storage_error(traces: Traces, dtype: str) -> StorageError:
    """Measure what storing traces in a type would change.

    Args:
        traces: as `mlot.select` returns them.
        dtype: ``"float16"``, ``"float32"`` or ``"float64"``.

    Returns:
        `StorageError` over all valid positions.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.

    >>> import numpy as np, mlot
    >>> from mlot.saved import storage_error
    >>> traces = mlot.select(np.random.default_rng(0).normal(size=(2, 5, 40)), k=10)
    >>> storage_error(traces, "float64").had_max
    0.0
    >>> storage_error(traces, "float16").had_max < 1e-3
    True
    """
    _arguments.traces("traces", traces)
    _checks.choice("dtype", dtype, tuple(DTYPES))
    xp, _ = _arguments.resolve({"traces": traces}, None)
    mask = xp.to_numpy(traces.mask)
    return error_of(
        xp.to_numpy(traces.log_probs)[mask],
        xp.to_numpy(traces.log_normalizers)[mask],
        tuple(traces.temperature / each for each in traces.extra_temperatures),
        dtype,
    )


def stored(log_probs: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Log-probabilities in a storage type; what is too small for it becomes minus infinity."""
    with np.errstate(over="ignore"):
        return log_probs.astype(DTYPES[dtype])


def stored_normalizers(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Normalisers and masses in their storage type, at least float32: few, and much depends on them."""
    return values.astype(np.float64 if dtype == "float64" else np.float32)


def error_of(
    log_probs: NDArray[Any],
    normalizers: NDArray[Any],
    ratios: tuple[float, ...],
    dtype: str,
    rest: NDArray[Any] | None = None,
) -> StorageError:
    """`storage_error` of the valid positions ``(R, k)``, ``(R, n)``; ratios are those of the temperatures.

    ``rest`` ``(R,)`` is what all tokens have together that targets do not list: it counts as one more.
    """
    rows, k = log_probs.shape
    if rows == 0:
        return StorageError(dtype, k)
    kept = stored(log_probs, dtype)
    t = np.exp(log_probs.astype(np.float64))
    kept_mass = float(t.sum(axis=1).mean())
    read = np.exp(kept.astype(np.float64))
    if rest is not None:
        t = np.column_stack([t, rest])
        read = np.column_stack([read, stored_normalizers(rest, dtype)])
    wrong = np.abs(read - t)
    relative = np.divide(wrong, t, out=np.zeros_like(t), where=t > 0)
    cost_mean = cost_max = 0.0
    for n, ratio in enumerate(ratios):
        exact = normalizers[:, n : n + 1]
        rounded = stored_normalizers(exact, dtype)
        # In the types in which `Traces.at` computes: what it rounds is part of the error.
        sides = ratio * kept.astype(rounded.dtype) - rounded, ratio * log_probs - exact
        off = np.abs(np.subtract(*(np.exp(each.astype(np.float64)) for each in sides))).sum(axis=1)
        cost_mean, cost_max = max(cost_mean, float(off.mean())), max(cost_max, float(off.max()))
    per_row = wrong.sum(axis=1)
    return StorageError(
        dtype,
        k,
        rows,
        kept_mass,
        float(wrong.max()),
        float(per_row.mean()),
        float(per_row.max()),
        float(relative.max()),
        cost_mean,
        cost_max,
    )


_MEANS, _MAXIMA = (
    ("kept_mass", "had_mean", "cost_mean"),
    ("probability_max", "had_max", "sl_relative", "cost_max"),
)


def merged(errors: Iterable[StorageError], dtype: str, k: int) -> StorageError:
    """Figures over several sets of positions; the order matters to the last bit of the means alone."""
    errors = list(errors)
    total = sum(each.positions for each in errors)
    figures: dict[str, float] = {
        name: max((getattr(each, name) for each in errors), default=0.0) for name in _MAXIMA
    }
    for name in _MEANS:
        summed = sum(each.positions * getattr(each, name) for each in errors)
        figures[name] = summed / total if total else 0.0
    return StorageError(dtype, k, total, **figures)
