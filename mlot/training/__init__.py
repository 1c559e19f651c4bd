"""Training with transformers: a ``Trainer`` whose loss is MultiLevelOT, its settings, and its batches.

The student and the teacher may have different tokenizers; the teacher may run beside the student or have been
saved (`mlot.saved`).
"""

import importlib.util

_NEEDED = ("torch", "transformers", "accelerate")
_missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
if _missing:
    raise ImportError(
        f'mlot.training needs {", ".join(_missing)}, not installed here; pip install "mlot[distill]"',
        name=_missing[0],
    )

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
