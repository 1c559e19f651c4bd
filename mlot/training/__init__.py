"""Training with transformers: a ``Trainer`` whose loss is MultiLevelOT, its settings, and its batches.

The student and the teacher may have different tokenizers; the teacher may run beside the student or have been
saved (`mlot.saved`).
"""

from mlot._needed import HF_PACKAGES, require_packages

require_packages(__name__, "hf", HF_PACKAGES)

from mlot._examples import read_rows as read_examples  # noqa: E402
from mlot._hf.pairs import Truncation  # noqa: E402
from mlot.training._arguments import MultiLevelOTTrainingArguments  # noqa: E402
from mlot.training._collator import DistillationCollator  # noqa: E402
from mlot.training._examples import PreparedDataset  # noqa: E402
from mlot.training._on_policy import Generator  # noqa: E402
from mlot.training._trainer import MultiLevelOTMixin, MultiLevelOTTrainer  # noqa: E402

__all__ = [
    "DistillationCollator",
    "Generator",
    "MultiLevelOTMixin",
    "MultiLevelOTTrainer",
    "MultiLevelOTTrainingArguments",
    "PreparedDataset",
    "Truncation",
    "read_examples",
]
