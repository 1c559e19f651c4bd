"""Optimal transport between the predictions of two language models with different tokenizers."""

from mlot._result import Diagnostics, MultiLevelOTResult
from mlot._selection import select
from mlot._version import __version__
from mlot.backends import Backend, BackendSpec, available_backends, get_backend, register_backend
from mlot.bounds import TruncationBounds, truncation_bounds
from mlot.config import MultiLevelOTConfig
from mlot.costs import sequence_cost, token_cost
from mlot.divergences import had, sinkhorn_distance, sl, uld
from mlot.losses import multi_level_ot
from mlot.masks import mask_from_labels
from mlot.matching import assign, matching_gap
from mlot.sources import LinearHead
from mlot.targets import text_targets
from mlot.teachers import MultiTeacherResult, Teacher, multi_teacher_ot
from mlot.text import TextPlan, TextPositions, TextTargets
from mlot.topk import TopKLogprobs
from mlot.traces import Traces
from mlot.transport import TransportResult, emd, sinkhorn

__all__ = [
    "Backend",
    "BackendSpec",
    "Diagnostics",
    "LinearHead",
    "MultiLevelOTConfig",
    "MultiLevelOTResult",
    "MultiTeacherResult",
    "Teacher",
    "TextPlan",
    "TextPositions",
    "TextTargets",
    "TopKLogprobs",
    "Traces",
    "TransportResult",
    "TruncationBounds",
    "__version__",
    "assign",
    "available_backends",
    "emd",
    "get_backend",
    "had",
    "mask_from_labels",
    "matching_gap",
    "multi_level_ot",
    "multi_teacher_ot",
    "register_backend",
    "select",
    "sequence_cost",
    "sinkhorn",
    "sinkhorn_distance",
    "sl",
    "text_targets",
    "token_cost",
    "truncation_bounds",
    "uld",
]
