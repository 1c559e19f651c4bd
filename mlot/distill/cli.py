"""The command: ``python -m mlot.distill``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mlot import MultiLevelOTConfig
from mlot.distill.errors import DistillError, is_write_failure
from mlot.distill.options import (
    QUICK,
    LossOptions,
    ModelOptions,
    RunOptions,
    TextOptions,
    TrainingOptions,
    typed,
)
from mlot.distill.output import is_stopped_run

_PROGRAM = "python -m mlot.distill"
_DESCRIPTION = """\
Distil a student from a teacher that has another tokenizer, offline. Without --teacher and --student, both
tokenizers and both models are made and trained on the spot, and the student is trained twice from the same
start: by cross-entropy alone, and with MultiLevelOT. What comes out, bits per byte of held-out text above
all, is reported as it was measured, in a page for a browser. A stopped run continues with --resume. All
arguments of transformers.TrainingArguments are options, too (--bf16, --num-train-epochs and so on);
--help-training lists them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; ``None`` means those of the process.

    Returns:
        Exit status: 0, 2 where something that was asked for cannot be done, 130 when interrupted.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if {"-h", "--help"} & set(words):  # before anything heavy is imported
        _print_help()
        return 0

    from rich.console import Console

    from mlot.distill.arguments import CommandArguments, Settings
    from mlot.distill.run import run

    parser = _parser(CommandArguments)
    if "--help-training" in words:
        parser.print_help()
        return 0
    for action in parser._actions:  # what is not typed is told from what is
        action.default = argparse.SUPPRESS
    given: dict[str, Any] = vars(parser.parse_args(words))
    try:
        run(Settings.of(**given), Console(), Console(stderr=True))
    except (DistillError, OSError) as error:
        print(f"mlot.distill: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mlot.distill: interrupted; {_what_is_left(given)}", file=sys.stderr)
        return 130
    except Exception as error:
        if not is_write_failure(error):
            raise
        print(
            f"mlot.distill: error: --output: a file could not be written ({error}), as on a full disk; "
            f"{_what_is_left(given)}",
            file=sys.stderr,
        )
        return 2
    return 0


def _what_is_left(given: Mapping[str, Any]) -> str:
    """What a run that did not come to its end left."""
    kept = is_stopped_run(Path(given.get("output_dir", TrainingOptions.output_dir)))
    return "the same command with --resume continues it" if kept else "nothing was written"


def _print_help() -> None:
    """Help on our own options, those of the loss, and the usual ones of training."""
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        usage="%(prog)s [options]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group_type: Any
    for group_type in (RunOptions, TextOptions, ModelOptions, TrainingOptions, LossOptions):
        group = parser.add_argument_group(group_type._argument_group_name)
        hints = get_type_hints(group_type)
        for each in fields(group_type):
            hint, value = hints[each.name], each.name.rpartition("_")[2].upper()
            for kind_of in (hint, *get_args(hint)):
                if get_origin(kind_of) is Literal:
                    value = "{" + ",".join(get_args(kind_of)) + "}"
                elif kind_of is bool:
                    value = "[no]" if each.default in (True, None) else ""
            quick = f"; {QUICK[each.name]} with --quick" if each.name in QUICK else ""
            default = getattr(MultiLevelOTConfig(), each.name, each.default)
            shown = "" if default is None or default is False else f" ({default}{quick})"
            options: dict[str, Any] = {"metavar": value} if value else {"action": "store_true"}
            group.add_argument(typed(each.name), help=each.metadata["help"].rstrip(".") + shown, **options)
    parser.print_help()


def _parser(arguments: Any) -> Any:
    """The parser of everything: our options, and the arguments of training and loss."""
    from transformers import HfArgumentParser

    option_types: Any = (RunOptions, TextOptions, ModelOptions, arguments)
    parser: Any = HfArgumentParser(
        option_types, prog=_PROGRAM, usage="%(prog)s [options]", allow_abbrev=False
    )
    baseline = parser._option_string_actions["--baseline"]
    baseline.nargs, baseline.const = "?", True
    parser.add_argument("--no-baseline", dest="baseline", action="store_false", help="train no such student")
    return parser
