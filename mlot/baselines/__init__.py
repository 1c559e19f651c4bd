"""Losses of others between vocabularies, in short forms to compare the plan from the text with.

All take the `mlot.TextPositions` that the plan from the text takes, and use those positions at which both
models have read the same bytes: rows of depth 0. Each is written from its definition, in plain operations on
NumPy arrays (in float64) or torch tensors; they are not tuned for speed. The teacher is a constant.
"""

from mlot.baselines._prefix import byte_prefix
from mlot.baselines._projection import StringProjection, projected_kl, string_projection
from mlot.baselines._spans import span_likelihood
from mlot.baselines._strings import equal_strings

__all__ = [
    "StringProjection",
    "byte_prefix",
    "equal_strings",
    "projected_kl",
    "span_likelihood",
    "string_projection",
]
