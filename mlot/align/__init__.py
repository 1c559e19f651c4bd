"""Positions of two tokenizations that mean the same, found on the bytes of their common text.

>>> from mlot.align import TokenBytes, pairs
>>> student = TokenBytes([0, 1, 2], starts=[0, 0, 3], ends=[0, 3, 7], special=[True, False, False], total=7)
>>> teacher = TokenBytes([5, 6, 7], starts=[0, 2, 3], ends=[2, 3, 7], special=[False, False, False], total=7)
>>> pairs(student, teacher)  # after "<s>" "The" and after "Th" "e", both predict " cat"
array([[1, 1]])
"""

from mlot.align._draw import draw, plot
from mlot.align._pairs import batch_pairs, pairs
from mlot.align._ranges import byte_ranges
from mlot.align._report import AlignmentReport, report, vocabulary_overlap
from mlot.align._tokens import TokenBytes

__all__ = [
    "AlignmentReport",
    "TokenBytes",
    "batch_pairs",
    "byte_ranges",
    "draw",
    "pairs",
    "plot",
    "report",
    "vocabulary_overlap",
]
