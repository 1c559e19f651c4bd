"""What the sources ask of a backend: operations on its arrays that compute nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot._typing import Array, ArrayKind


class ArrayOperations(ABC):
    """Describing, converting and masking arrays of one kind; `mlot.backends.Backend` adds what computes."""

    name: str

    @abstractmethod
    def kind(self, array: Array) -> ArrayKind:
        """Kind of number that the array holds."""

    @abstractmethod
    def device(self, array: Array) -> str:
        """Device that the array lives on, as text."""

    @abstractmethod
    def convert(self, array: Array, name: str) -> Array:
        """Turn another backend's array into one of this one's, for an explicit ``backend=``.

        Raises:
            TypeError: it cannot be done, or would lose a gradient; the message starts with ``name``.
        """

    @abstractmethod
    def from_numpy(self, array: NDArray[np.generic], device: Any = None) -> Array:
        """Turn a NumPy array into one of this backend's."""

    @abstractmethod
    def to_numpy(self, array: Array) -> NDArray[np.generic]:
        """Values of one of this backend's arrays as NumPy; gradients are left behind."""

    @abstractmethod
    def stop_gradient(self, array: Array) -> Array:
        """Return the array as a constant for differentiation."""

    @abstractmethod
    def full_mask(self, source: Any) -> Array:
        """Mask ``(B, T)`` that excludes nothing, on the device of the source."""
