"""Curves from what a trainer logged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_BITS = "eval_bits_per_byte"
#: Of a trainer's log, what is no term of training.
_NO_TERMS = ("step", "epoch", "total_flos", "num_input_tokens_seen")


def bits_curve(history: Iterable[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Pairs of step and bits per byte in a trainer's log."""
    return sorted({int(entry["step"]): float(entry[_BITS]) for entry in history if _BITS in entry}.items())


def logged_terms(history: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """For each number that a trainer logged while training, pairs of step and value."""
    terms: dict[str, dict[int, float]] = {}
    for entry in history:
        for name, value in entry.items():
            other = name in _NO_TERMS or name.startswith(("eval_", "train_"))
            if not other and isinstance(value, int | float):
                terms.setdefault(name, {})[int(entry["step"])] = float(value)
    return {name: sorted(points.items()) for name, points in terms.items()}
