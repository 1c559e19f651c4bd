"""Training with transformers: a ``Trainer`` whose loss is MultiLevelOT, its settings, and its batches.

The student and the teacher may have different tokenizers; the teacher may run beside the student or have been
saved (`mlot.saved`).
"""

from mlot._needed import require_packages

#: Before these, a Trainer scales the loss of accumulated batches once more, or a resumed run is another one.
_NEEDED = ("torch", "transformers>=5.21", "accelerate>=1.10")
require_packages(__name__, "distill", _NEEDED)

from mlot.training._arguments import MultiLevelOTTrainingArguments  # noqa: E402
from mlot.training._collator import DistillationCollator  # noqa: E402
from mlot.training._examples import PreparedDataset, Truncation  # noqa: E402
from mlot.training._trainer import MultiLevelOTMixin, MultiLevelOTTrainer  # noqa: E402

__all__ = [
    "DistillationCollator",
    "MultiLevelOTMixin",
    "MultiLevelOTTrainer",
    "MultiLevelOTTrainingArguments",
    "PreparedDataset",
    "Truncation",
]
