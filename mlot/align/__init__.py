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
from mlot.align._text_positions import (
    TEXT_POSITION_FIELDS,
    UNSERVED_REASONS,
    batch_text_positions,
    text_positions,
)
from mlot.align._text_report import TextReport, text_report
from mlot.align._tokens import TokenBytes
from mlot.align._vocabulary_map import VocabularyMap

__all__ = [
    "TEXT_POSITION_FIELDS",
    "UNSERVED_REASONS",
    "AlignmentReport",
    "TextReport",
    "TokenBytes",
    "VocabularyMap",
    "batch_pairs",
    "batch_text_positions",
    "byte_ranges",
    "draw",
    "pairs",
    "plot",
    "report",
    "text_positions",
    "text_report",
    "vocabulary_overlap",
]
