"""A command that distils a student from a teacher with another tokenizer, offline, and reports what came out.

``python -m mlot.distill`` runs it; see `mlot.distill.cli`. It trains with `mlot.training`, which is there for
one's own scripts, too.
"""

from mlot._needed import HF_PACKAGES, require_packages

require_packages(__name__, "demo", (*HF_PACKAGES, "matplotlib>=3.9", "jinja2>=3.1", "rich>=13"))

from mlot.distill.errors import DistillError  # noqa: E402
from mlot.distill.evaluation import Score, difference_interval, evaluate_bits  # noqa: E402
from mlot.distill.pieces import Examples, Piece, make_pieces  # noqa: E402

__all__ = [
    "DistillError",
    "Examples",
    "Piece",
    "Score",
    "difference_interval",
    "evaluate_bits",
    "make_pieces",
]
