"""The command: ``python -m mlot.distill``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mlot.distill.errors import DistillError
from mlot.distill.options import QUICK, Options
from mlot.distill.output import is_stopped_run
from mlot.distill.run import run

_DESCRIPTION = """\
Distil a student from a teacher that has another tokenizer, offline. Without --teacher and --student, both
tokenizers and both models are made and trained on the spot, and the student is trained twice from the same
start: by cross-entropy alone, and with MultiLevelOT. What comes out, bits per byte of held-out text above
all, is reported as it was measured, in a page for a browser. A stopped run continues with --resume."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; ``None`` means those of the process.

    Returns:
        Exit status: 0, 2 where something that was asked for cannot be done, 130 when interrupted.
    """
    given = {name: value for name, value in vars(_parser().parse_args(argv)).items() if value is not None}
    errors = Console(stderr=True)
    try:
        quick = QUICK if given.pop("quick") else {}
        run(Options(**(quick | given)), Console(), errors)
    except DistillError as error:
        print(f"mlot.distill: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = is_stopped_run(Path(given.get("output", Options.output)))
        hint = "the same command with --resume continues it" if kept else "nothing was written"
        print(f"mlot.distill: interrupted; {hint}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mlot.distill",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # No defaults here, so that what was typed can be told from what was not: --quick has its own.
    run_ = parser.add_argument_group("the run")
    run_.add_argument("--quick", action="store_true", help="a smaller run, of about a minute on two cores")
    run_.add_argument("--output", metavar="DIR", help="folder for what comes out (distill-output)")
    run_.add_argument(
        "--overwrite",
        action="store_true",
        default=None,
        help="use the folder even if it holds other files, which stay, or a stopped run, which goes",
    )
    run_.add_argument(
        "--checkpoint-every",
        type=int,
        metavar="N",
        help="steps after which a stopped run can continue; 0 for never (at each evaluation)",
    )
    run_.add_argument(
        "--resume",
        action="store_true",
        default=None,
        help="continue the stopped run in the folder; where there is none, begin",
    )
    run_.add_argument(
        "--seed", type=int, help="of the split, the initial weights and the order of the data (0)"
    )
    run_.add_argument(
        "--threads", type=int, help="CPU threads (1 for models made here, torch's own choice for others)"
    )

    text = parser.add_argument_group("text")
    text.add_argument(
        "--text",
        metavar="FILE",
        help="UTF-8 text; or .jsonl, whose lines hold text, prompt and completion, or messages "
        "(the docstrings of Python's standard library)",
    )
    text.add_argument("--held-out", type=float, metavar="SHARE", help=_help("held_out", "share held out"))
    text.add_argument("--length", type=int, help=_help("length", "most tokens of a window of text"))

    models = parser.add_argument_group("models")
    models.add_argument(
        "--teacher", metavar="DIR", help="a causal language model with its tokenizer; needs --student"
    )
    models.add_argument(
        "--student", metavar="DIR", help="the same for the student, where its training starts"
    )
    models.add_argument(
        "--save-teacher", metavar="DIR", help="save the teacher's predictions there, and train from them"
    )
    models.add_argument(
        "--saved-teacher",
        metavar="DIR",
        help="train from predictions saved earlier; of --teacher only the tokenizer is read",
    )
    models.add_argument(
        "--baseline",
        action=argparse.BooleanOptionalAction,
        help="train a second student by cross-entropy alone, to compare (yes where models are made here)",
    )
    for side in ("teacher", "student"):
        for name, what in (("vocabulary", "tokens"), ("width", "width"), ("layers", "blocks")):
            key = f"{side}_{name}"
            models.add_argument(
                f"--{side}-{name}", type=int, metavar="N", help=_help(key, f"{what} of the {side}")
            )

    training = parser.add_argument_group("training")
    training.add_argument("--steps", type=int, help=_help("steps", "steps of each student"))
    training.add_argument("--learning-rate", type=float, help=_help("learning_rate", "peak, of the students"))
    training.add_argument("--teacher-steps", type=int, help=_help("teacher_steps", "steps of the teacher"))
    training.add_argument(
        "--teacher-learning-rate", type=float, help=_help("teacher_learning_rate", "peak, of the teacher")
    )
    training.add_argument("--batch-size", type=int, help=_help("batch_size", "windows in a batch"))
    training.add_argument("--accumulation", type=int, help=_help("accumulation", "batches in a step"))
    training.add_argument("--evaluations", type=int, help=_help("evaluations", "points of a curve"))

    loss = parser.add_argument_group("MultiLevelOT")
    loss.add_argument("--alpha", type=float, help=_help("alpha", "weight of the distillation term"))
    loss.add_argument("--k", type=int, help=_help("k", "columns kept"))
    loss.add_argument(
        "--matching",
        choices=("optimal", "greedy", "rank", "sinkhorn"),
        help=_help("matching", "of the columns"),
    )
    loss.add_argument(
        "--pairs",
        choices=("boundary", "index"),
        help=_help("pairs", "compare positions that have read the same bytes, or those of the same number"),
    )
    loss.add_argument("--temperature", type=float, help=_help("temperature", "of the token level"))
    loss.add_argument(
        "--sequence-temperature", type=float, help=_help("sequence_temperature", "of the sequence level")
    )
    return parser


def _help(name: str, what: str) -> str:
    default = Options.__dataclass_fields__[name].default
    quick = f"; {QUICK[name]} with --quick" if name in QUICK else ""
    return f"{what} ({default}{quick})"
