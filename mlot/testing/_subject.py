"""The backend under test: handing it arrays, reading its results, and measuring how far off they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlot._registry import find_backend
from mlot._typing import Array
from mlot.backends import get_backend
from mlot.backends.base import Backend
from mlot.sources import LinearHead
from mlot.testing._oracle import Floats, TraceData
from mlot.testing._problems import Model
from mlot.traces import Traces

#: What a check yields: what was compared, and by how much it was off.
Errors: TypeAlias = Iterator[tuple[str, float]]


class Gradient(Protocol):
    """How to differentiate through a backend: a function of the backend's arrays, by each of them.

    Called with a function that takes as many arrays as are given and returns a scalar array, and with the
    arrays; returns the gradient by each, of the backend's own kind, zeros where the function does not depend
    on it.
    """

    def __call__(self, function: Callable[..., Array], arrays: Sequence[Array]) -> Sequence[Array]:
        """Differentiate."""


class MismatchError(Exception):
    """A result is not of the form it should have."""


class Subject:
    """One backend, on one device and in one precision."""

    def __init__(self, name: str, device: object, single: bool, gradient: Gradient | None) -> None:
        self.name, self.single = name, single
        self.xp: Backend = get_backend(name)
        self.gradient = _default_gradient(self.xp) if gradient is None else gradient
        self.wanted_device = device
        self._handed: list[tuple[NDArray[Any], Array]] = []
        probe = self.array(np.zeros(1))
        self.device = self.xp.device(probe)
        #: What to pass as ``backend=``: nothing if the type of the arrays leads there.
        self.hint = None if find_backend(probe) == name else name

    def array(self, values: NDArray[Any]) -> Array:
        """One of the backend's arrays; floating values in the precision of the check."""
        values = self.held(values)
        array = self.xp.from_numpy(values.copy(), self.wanted_device)
        self._handed.append((values, array))
        return array

    def held(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values as they are in the precision of the check."""
        return (
            values.astype(np.float32 if self.single else np.float64) if values.dtype.kind == "f" else values
        )

    def source(self, model: Model, *arrays: Array) -> Array:
        """A model's predictions, made of other arrays of the backend if given."""
        parts = arrays or tuple(self.array(array) for array in model.arrays)
        if not model.is_head:
            return parts[0]
        return LinearHead(
            parts[0],
            parts[1],
            parts[2] if len(parts) == 3 else None,
            softcap=model.softcap,
            scale=model.scale,
        )

    def traces(
        self, data: TraceData, log_probs: Array | None = None, normalizers: Array | None = None
    ) -> Traces:
        """Traces of the backend's arrays."""
        return Traces(
            self.array(data.columns),
            self.array(data.log_probs) if log_probs is None else log_probs,
            self.array(data.log_normalizers) if normalizers is None else normalizers,
            self.array(data.column_mass),
            self.array(data.mask),
            *(data.vocab_size, data.temperature, data.extra, data.standardize),
        )

    def read(self, array: Array, kind: str = "float") -> NDArray[Any]:
        """Values of one of the backend's arrays, floating ones in float64."""
        if self.xp.device(array) != self.device:
            raise MismatchError(f"expected a result on {self.device}, got one on {self.xp.device(array)}")
        values = np.asarray(self.xp.to_numpy(array))
        actual = {"f": "float", "i": "integer", "u": "integer", "b": "bool"}.get(values.dtype.kind, "other")
        if actual != kind:
            raise MismatchError(f"expected a result of kind {kind}, got {values.dtype}")
        return values.astype(np.float64) if kind == "float" else values

    def reset(self) -> None:
        """Forget what was handed out."""
        self._handed.clear()

    def check_arguments(self) -> None:
        """Check that nothing handed out since `reset` was changed.

        Raises:
            MismatchError: an operation wrote into its argument.
        """
        for values, array in self._handed:
            if not np.array_equal(
                np.asarray(self.xp.to_numpy(array)), values, equal_nan=values.dtype.kind == "f"
            ):
                raise MismatchError("an argument was written into")


def error_of(array: NDArray[Any], truth: ArrayLike, magnitude: ArrayLike | None = None) -> float:
    """Largest deviation from the truth, relative to the scale of each entry of the first axis.

    The scale is by default the largest finite magnitude of the truth there. Where it is 0 the result must be
    exactly right, as it must where the truth is infinite. NaN is infinitely wrong.
    """
    truth = np.asarray(truth, dtype=np.float64)
    if array.shape != truth.shape:
        raise MismatchError(f"expected shape {truth.shape}, got {array.shape}")
    if truth.size == 0:
        return 0.0
    rows = truth.reshape(len(truth), -1) if truth.ndim else truth.reshape(1, 1)
    got = array.astype(np.float64).reshape(rows.shape)
    finite = np.isfinite(rows)
    if not np.array_equal(got[~finite], rows[~finite]):
        return np.inf
    size = (
        np.abs(np.where(finite, rows, 0.0)).max(axis=1)
        if magnitude is None
        else np.broadcast_to(magnitude, len(rows))
    )
    with np.errstate(invalid="ignore"):
        deviation = np.abs(np.where(finite, got - rows, 0.0)).max(axis=1)
    worst = 0.0
    for off, unit in zip(deviation.tolist(), np.asarray(size, dtype=np.float64).tolist(), strict=True):
        if off != 0:  # NaN is not 0
            worst = max(worst, off / unit if unit > 0 and np.isfinite(off) else np.inf)
    return worst


def exactly(array: NDArray[Any], truth: ArrayLike) -> float:
    """0 if equal, else infinity."""
    truth = np.asarray(truth)
    if array.shape != truth.shape:
        raise MismatchError(f"expected shape {truth.shape}, got {array.shape}")
    return 0.0 if np.array_equal(array, truth) else np.inf


def torch_gradient(function: Callable[..., Array], arrays: Sequence[Array]) -> Sequence[Array]:
    """`Gradient` of torch: what is detached has a gradient of zero."""
    import torch

    leaves = [array.detach().clone().requires_grad_(True) for array in arrays]
    value = function(*leaves)
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)


def _default_gradient(xp: Backend) -> Gradient | None:
    own: Gradient | None = getattr(xp, "gradient", None)
    return torch_gradient if own is None and xp.name == "torch" else own


def total(subject: Subject, array: Array, weights: Floats) -> Array:
    """Weighted sum of all entries of one of the backend's arrays, a scalar of its kind."""
    return (array * subject.array(weights)).sum()


def labelled(label: str, errors: Errors) -> Errors:
    """Put a label before what was compared."""
    for what, error in errors:
        yield f"{label}: {what}", error
