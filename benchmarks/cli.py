"""The command line: options, pinned threads, and where the results go."""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_DTYPES = ("float32", "float64", "bfloat16", "float16")  # of logits
_TRACE_DTYPES = ("float32", "float64")  # of traces, which are never kept in less
_NOT_SETTINGS = ("command", "output", "markdown", "plot", "against")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns 1 if a contestant does not compute what it is said to, or mlot fails."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _check_files(parser, options)
    _pin_libraries(options.threads)
    from benchmarks.environment import describe
    from benchmarks.report import Report, print_table, to_json, to_markdown

    command = importlib.import_module(f"benchmarks.{options.command}")
    with _pinned_threads(options.threads):
        findings = command.run(options)
        environment = describe(options.device)
    settings = {name: value for name, value in vars(options).items() if name not in _NOT_SETTINGS}
    report = Report(options.command, settings, environment, findings)
    print_table(report)
    if options.output is not None:
        options.output.write_text(to_json(report), encoding="utf-8")
    if options.markdown is not None:
        options.markdown.write_text(to_markdown(report), encoding="utf-8")
    if getattr(options, "plot", None) is not None:
        from benchmarks.plot import draw

        draw(findings.rows, options.plot)
    return 1 if any(row.is_bad for row in findings.rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Time and peak memory of mlot.")
    commands = parser.add_subparsers(dest="command", required=True)
    loss = _command(commands, "loss", "whole losses: forward, and backward to the student", _DTYPES)
    _sizes(loss, batch=2, length=128, k=50)
    loss.add_argument("--student-vocabulary", type=_count, default=50257)
    loss.add_argument("--teacher-vocabulary", type=_count, default=32000)
    loss.add_argument("--hidden", type=_count, default=256, help="width of the hidden states of a LinearHead")
    criterion = _command(commands, "criterion", "cross-entropy and distillation, as users run them", _DTYPES)
    _sizes(criterion, batch=2, length=128, k=50)
    criterion.add_argument("--student-vocabulary", type=_count, default=50257)
    criterion.add_argument("--teacher-vocabulary", type=_count, default=32000)
    criterion.add_argument("--hidden", type=_count, default=576, help="width of the hidden states")
    criterion.add_argument("--no-text", dest="text", action="store_false", help="without the text's plan")
    criterion.add_argument("--against", type=Path, help="fail where a ratio is above that of this result")
    transport = _command(
        commands, "transport", "from kept probabilities to the Sinkhorn distance", _TRACE_DTYPES
    )
    _sizes(transport, batch=4, length=256, k=50)
    transport.add_argument("--rounds", type=_count, default=20, help="Sinkhorn rounds")
    transport.add_argument("--epsilon", type=_positive, default=0.1, help="entropic regularisation")
    step = _command(commands, "step", "a training step of a causal model, with and without", _DTYPES)
    _sizes(step, batch=2, length=128, k=50)
    step.add_argument("--student-vocabulary", type=_count, default=50257)
    step.add_argument("--teacher-vocabulary", type=_count, default=32000)
    step.add_argument("--width", type=_count, default=256, help="of the student's hidden states")
    step.add_argument("--layers", type=_count, default=4, help="of the student")
    trainer = _command(commands, "trainer", "a step of mlot's Trainer beside one of TRL's GOLD", _DTYPES)
    trainer.add_argument("--batch", type=_count, default=4, help="texts")
    trainer.add_argument("--characters", type=_count, default=512, help="of each text")
    trainer.add_argument("--k", type=_count, default=50, help="columns kept")
    trainer.add_argument("--student-vocabulary", type=_count, default=2048)
    trainer.add_argument("--teacher-vocabulary", type=_count, default=4096)
    trainer.add_argument(
        "--width", type=_count, default=128, help="of the student; the teacher's is twice that"
    )
    trainer.add_argument("--layers", type=_count, default=2, help="of both models")
    align = _command(commands, "align", "pairing the positions of two tokenizations of a text", _DTYPES)
    align.add_argument("--bytes", type=_count, help="stop after so many bytes of text (default: all of it)")
    align.add_argument("--student-vocabulary", type=_count, default=2048)
    align.add_argument("--teacher-vocabulary", type=_count, default=4096)
    align.add_argument(
        "--published", action="store_true", help="also with what `make tokenizers` has fetched"
    )
    sweep = _command(
        commands, "sweep", "the loss as vocabulary, length and batch grow one at a time", _DTYPES
    )
    _sizes(sweep, batch=1, length=64, k=50)
    sweep.add_argument("--vocabulary", type=_count, default=32000, help="where it does not grow")
    sweep.add_argument("--vocabularies", type=_count, nargs="+", default=[8000, 16000, 32000, 64000, 128000])
    sweep.add_argument("--lengths", type=_count, nargs="+", default=[32, 64, 128, 256, 512])
    sweep.add_argument("--batches", type=_count, nargs="+", default=[1, 2, 4, 8])
    sweep.add_argument("--plot", type=Path, help="draw the curves into this file")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    description: str,
    dtypes: Sequence[str],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=description,
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--repeats", type=_count, default=7, help="timed runs of each contestant")
    parser.add_argument("--threads", type=_count, default=1, help="threads of torch and of linear algebra")
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="type of the inputs")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs")
    parser.add_argument("--output", type=Path, help="write environment, settings and figures as JSON")
    parser.add_argument("--markdown", type=Path, help="write the table as Markdown")
    return parser


def _sizes(parser: argparse.ArgumentParser, *, batch: int, length: int, k: int) -> None:
    parser.add_argument("--batch", type=_count, default=batch, help="sequences")
    parser.add_argument("--length", type=_count, default=length, help="positions of each sequence")
    parser.add_argument("--k", type=_count, default=k, help="columns kept")


def _check_files(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with an error, before minutes of work, where what is to be read or written cannot be."""
    for name in ("output", "markdown", "plot"):
        path = getattr(options, name, None)
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            parser.error(f"--{name}: expected a file in a folder that exists, got {path}")
    committed = getattr(options, "against", None)
    if committed is None:
        return
    try:
        before = json.loads(committed.read_text(encoding="utf-8"))["settings"]
        differing = {name for name in before if name != "repeats" and before[name] != vars(options)[name]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"--against: expected a result of this benchmark, got {committed} ({error!r})")
    if differing:
        was = ", ".join(f"{name} {before[name]}" for name in sorted(differing))
        parser.error(f"--against: expected the settings of {committed}, which has {was}")


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {value}")
    return value


def _positive(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {value}")
    return value


def _pin_libraries(threads: int) -> None:
    """Say how many threads to use, and that the profiler be quiet, before libraries that ask are loaded."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


@contextmanager
def _pinned_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
