"""An example trainer: distils a student from a teacher that has another tokenizer, offline.

``python -m mlot.distill`` runs it; see `mlot.distill.cli`. `DistillationTrainer` and `PairCollator` serve
one's own training scripts.
"""

import importlib.util

_NEEDED = ("torch", "transformers", "tokenizers", "accelerate", "matplotlib", "rich")
_missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
if _missing:
    raise ImportError(
        f'mlot.distill needs {", ".join(_missing)}, not installed here; pip install "mlot[distill]"',
        name=_missing[0],
    )

from mlot.distill.data import Collator, PairCollator, PrefixPairs, Window, WindowDataset, make_windows  # noqa: E402
from mlot.distill.errors import DistillError  # noqa: E402
from mlot.distill.evaluation import Score, difference_interval, evaluate_bits  # noqa: E402
from mlot.distill.trainer import DistillationTrainer  # noqa: E402

__all__ = [
    "Collator",
    "DistillError",
    "DistillationTrainer",
    "PairCollator",
    "PrefixPairs",
    "Score",
    "Window",
    "WindowDataset",
    "difference_interval",
    "evaluate_bits",
    "make_windows",
]
