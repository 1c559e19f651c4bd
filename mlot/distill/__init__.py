"""A command that distils a student from a teacher with another tokenizer, offline, and reports what came out.

``python -m mlot.distill`` runs it; see `mlot.distill.cli`. It trains with `mlot.training`, which is there for
one's own scripts, too.
"""

from importlib import import_module
from typing import Any

from mlot._needed import HF_PACKAGES, require_packages

require_packages(__name__, "demo", (*HF_PACKAGES, "matplotlib>=3.9", "jinja2>=3.1", "rich>=13"))

#: Where public names come from; imported when they are asked for, since the command starts without them.
_MODULES = {
    "DistillError": "mlot.distill.errors",
    "Examples": "mlot.training._windows",
    "Piece": "mlot.training._windows",
    "Score": "mlot.training._score",
    "difference_interval": "mlot.training._score",
    "evaluate_bits": "mlot.training._score",
    "make_pieces": "mlot.training._windows",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
