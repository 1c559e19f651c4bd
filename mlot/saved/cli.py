"""The command: ``python -m mlot.saved``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlot._examples import TOKENISED_FORMS, read_examples
from mlot._needed import HF_PACKAGES, require_packages
from mlot._storage import DTYPES
from mlot.saved._from_server import save_from_server
from mlot.saved._manifest import KEPT
from mlot.saved._reader import SavedTeacher, verify_folder
from mlot.saved._teacher import save_teacher
from mlot.saved._writer import FolderLockedError
from mlot.serving import ServerError
from mlot.serving._server import KINDS

if TYPE_CHECKING:
    from rich.console import Console

_DESCRIPTION = """\
Save what a teacher predicts on a data set, once, so that training needs no teacher; check and describe what
was saved. A run of save that was interrupted resumes when the same command is given again."""

#: Arguments of `save_teacher` and the options that give them, for messages.
_OPTIONS = {"folder": "--output", "url": "--server", "examples": "--text", "student_tokenizer": "--student"}
#: Options that only a server has, and those that only a model has.
_OF_SERVERS = ("tokenizer", "kind", "vocab_size", "concurrency", "retries", "timeout")
_OF_MODELS = ("student", "extra_temperatures", "temperature", "standardize", "device", "threads")
_API_KEY = "MLOT_API_KEY"
#: What one of the figures for HAD is of, and whose mass is kept.
_KEPT_OF = {
    "traces": ("pair", "the teacher"),
    "likeliest": ("position", "the teacher"),
    "targets": ("position", "the targets"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; ``None`` means those of the process.

    Returns:
        Exit status: 0, 1 where ``verify`` found damage, 2 where something that was asked for cannot be done,
        130 when interrupted.
    """
    options = _parser().parse_args(argv)
    try:
        from rich.console import Console
    except ImportError:
        print('mlot.saved: error: the command needs rich; pip install "mlot[io]"', file=sys.stderr)
        return 2
    try:
        status: int = options.run(options, Console(soft_wrap=True, markup=False, highlight=False))
    except (FolderLockedError, ImportError, OSError, ServerError, ValueError) as error:
        print(f"mlot.saved: error: {_as_typed(str(error), options.command)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "mlot.saved: interrupted; files that are complete stay, the same command resumes", file=sys.stderr
        )
        return 130
    return status


def _save(options: argparse.Namespace, console: Console) -> int:
    require_packages("python -m mlot.saved save", "hf", HF_PACKAGES)
    _check_source(options)
    examples = read_examples(options.text, "--text", cut=_lines, tokenised=True)
    from mlot._hf.loading import load_model, load_tokenizer, quiet_transformers
    from mlot._progress import Counter, Reporter

    if options.server is not None:
        with quiet_transformers():
            tokenizer, _ = load_tokenizer(options.tokenizer, "--tokenizer")
        reporter = Reporter(console)
        with reporter.progress:
            saved = save_from_server(
                options.server,
                tokenizer,
                [each.content for each in examples],
                options.output,
                k=options.k,
                kind=options.kind,
                model=options.model,
                api_key=os.environ.get(_API_KEY),
                vocab_size=options.vocab_size,
                dtype=options.dtype,
                max_length=options.max_length,
                concurrency=8 if options.concurrency is None else options.concurrency,
                retries=5 if options.retries is None else options.retries,
                timeout=120.0 if options.timeout is None else options.timeout,
                examples_per_shard=options.examples_per_shard,
                name=options.name,
                revision=options.revision,
                progress=Counter(reporter, "asking", "examples"),
            )
        _describe(saved, console)
        return 0
    if options.threads is not None:
        import torch

        from mlot import _checks

        _checks.count("threads", options.threads)
        torch.set_num_threads(options.threads)
    with quiet_transformers():
        model, tokenizer, _ = load_model(options.model, "--model")
        student_tokenizer = None
        if options.student is not None:
            student_tokenizer, _ = load_tokenizer(options.student, "--student")
        reporter = Reporter(console)
        with reporter.progress:
            saved = save_teacher(
                model,
                tokenizer,
                [each.content for each in examples],
                options.output,
                keep=options.keep or KEPT[0],
                student_tokenizer=student_tokenizer,
                k="preset" if options.k is None else options.k,
                temperature=options.temperature,
                extra_temperatures=(
                    None if options.extra_temperatures is None else tuple(options.extra_temperatures)
                ),
                standardize=options.standardize,
                dtype=options.dtype,
                max_length=options.max_length,
                batch_size=options.batch_size,
                examples_per_shard=options.examples_per_shard,
                device=options.device,
                name=options.name or Path(options.model).resolve().name,
                revision=options.revision,
                progress=Counter(reporter, "saving", "examples"),
            )
    _describe(saved, console)
    return 0


def _check_source(options: argparse.Namespace) -> None:
    """Refuse options that have no effect on where predictions come from."""
    if options.server is None:
        given = [name for name in _OF_SERVERS if getattr(options, name) is not None]
        if options.model is None:
            raise ValueError("--model: expected a folder or an id, or --server with --tokenizer, got neither")
        if given:
            raise ValueError(f"--{given[0].replace('_', '-')}: expected --server beside it, got none")
        return
    for name in _OF_MODELS:
        if getattr(options, name) not in (None, False, 1.0):
            raise ValueError(f"--{name.replace('_', '-')}: has no effect with --server, got it beside that")
    if options.tokenizer is None:
        raise ValueError("--tokenizer: expected the teacher's beside --server, got none")
    if options.keep not in (None, "likeliest"):
        raise ValueError(f"--keep: expected likeliest, all that servers tell, got {options.keep}")


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]


def _verify(options: argparse.Namespace, console: Console) -> int:
    problems = verify_folder(options.folder)
    for name, problem in problems.items():
        console.print(f"{name}  {'as written' if problem is None else problem}")
    damaged = sum(problem is not None for problem in problems.values())
    console.print(f"{len(problems)} {'file' if len(problems) == 1 else 'files'}, {damaged} damaged")
    return 1 if damaged else 0


def _info(options: argparse.Namespace, console: Console) -> int:
    saved = SavedTeacher(options.folder)
    if options.json:
        print(json.dumps(_facts(saved), indent=2))
    else:
        _describe(saved, console)
    return 0


def _facts(saved: SavedTeacher) -> dict[str, Any]:
    return {
        "examples": len(saved),
        "positions": saved.positions,
        "bytes": saved.nbytes,
        "bytes_per_token": saved.bytes_per_token if saved.positions else None,
        "bytes_per_position": saved.manifest.bytes_per_position,
        "bytes_per_example": saved.manifest.bytes_per_example,
        "manifest": saved.manifest.as_dict(),
        "storage_error": saved.storage_error.as_dict(),
    }


def _describe(saved: SavedTeacher, console: Console) -> None:
    manifest, error = saved.manifest, saved.storage_error
    console.print(f"{saved.folder}: {len(saved)} examples, {saved.positions} positions that count")
    for name, value in manifest.as_dict().items():
        if name == "settings":
            for each, setting in value.items():
                console.print(f"  {each:<22} {setting}")
        elif value not in (None, ()):
            console.print(f"  {name:<22} {', '.join(map(str, value)) if isinstance(value, tuple) else value}")
    console.print(
        f"size: {saved.nbytes} bytes, {saved.bytes_per_token:.1f} for each position that counts "
        f"({manifest.bytes_per_position} a position and {manifest.bytes_per_example} an example, "
        "masks and headers)"
    )
    kept, of = _KEPT_OF[manifest.keep]
    console.print(f"kept: {error.kept_mass:.4f} of {of}'s mass, a mean over positions")
    console.print(f"error from {manifest.dtype}, at most, whatever the student:")
    console.print(
        f"  a probability          {error.probability_max:.2e}, in the mean {error.probability_mean:.2e}"
    )
    console.print(f"  HAD, for each {kept:<8} {error.had_max:.2e}, in the mean {error.had_mean:.2e}")
    console.print(f"  SL, as a share of it   {error.sl_relative:.2e}")
    if manifest.keep == "traces":
        console.print(f"  SD, an entry of cost   {error.cost_max:.2e}, in the mean {error.cost_mean:.2e}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mlot.saved",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="{save,verify,info}")
    save = commands.add_parser("save", help="run a teacher over a data set and save what it predicts")
    save.set_defaults(run=_save)
    save.add_argument(
        "--model",
        metavar="DIR",
        help="a causal language model with its tokenizer: a folder, or an id that the cache has; with "
        "--server, its name there (the first that is listed)",
    )
    save.add_argument(
        "--server",
        metavar="URL",
        help="a running server of vLLM, SGLang, llama.cpp or OpenAI's kind in place of a model; a key for it "
        f"is taken from the environment's {_API_KEY}",
    )
    save.add_argument("--tokenizer", metavar="DIR", help="the teacher's, with --server: a folder, or an id")
    save.add_argument("--kind", choices=KINDS, help="of the server (its answers tell)")
    save.add_argument("--vocab-size", type=int, metavar="N", help="of a server's teacher (the tokenizer's)")
    save.add_argument("--concurrency", type=int, metavar="N", help="examples asked for at a time (8)")
    save.add_argument("--retries", type=int, metavar="N", help="tries after the first (5)")
    save.add_argument("--timeout", type=float, metavar="SECONDS", help="to wait for an answer (120)")
    save.add_argument(
        "--text",
        metavar="FILE",
        required=True,
        nargs="+",
        help="UTF-8 text, an example in each line; FILE.jsonl, FILE.parquet or a folder of a data set, whose "
        f"examples have {TOKENISED_FORMS}",
    )
    save.add_argument("--output", metavar="DIR", required=True, help="new, empty, or of the same teacher")
    save.add_argument(
        "--keep",
        choices=KEPT,
        help="heaviest columns of each example (traces); or, for the plan from the text, likeliest tokens of "
        "each position (likeliest: all of a server), or what they say in the student's tokens (targets)",
    )
    save.add_argument(
        "--student", metavar="DIR", help="tokenizer of the student, for --keep targets: a folder, or an id"
    )
    save.add_argument("--k", type=int, help="columns kept of an example (50), or tokens of a position (256)")
    save.add_argument("--temperature", type=float, default=1.0, help="of the token level (1)")
    save.add_argument(
        "--extra-temperatures", type=float, nargs="*", metavar="T", help="further ones of traces (2)"
    )
    save.add_argument("--standardize", action="store_true", help="divide logits by their deviation first")
    save.add_argument("--dtype", choices=tuple(DTYPES), default="float16", help="storage type (float16)")
    save.add_argument(
        "--max-length", type=int, metavar="N", help="leave out tokens after the first N of an example"
    )
    save.add_argument("--batch-size", type=int, default=8, metavar="N", help="examples in a batch (8)")
    save.add_argument(
        "--examples-per-shard", type=int, default=1024, metavar="N", help="examples in a file (1024)"
    )
    save.add_argument("--device", help="where to run, such as cuda (the CPU)")
    save.add_argument("--threads", type=int, metavar="N", help="CPU threads (torch's own choice)")
    save.add_argument("--name", help="of the model, for the manifest (that of its folder)")
    save.add_argument("--revision", help="of the model, for the manifest")
    verify = commands.add_parser("verify", help="read everything and compare it with its checksums")
    verify.set_defaults(run=_verify)
    verify.add_argument("folder", metavar="FOLDER")
    info = commands.add_parser("info", help="what a saved teacher is, its size, and what storing it changed")
    info.set_defaults(run=_info)
    info.add_argument("folder", metavar="FOLDER")
    info.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _as_typed(message: str, command: str) -> str:
    """Message of a check with the option in it as it is typed."""
    name, colon, rest = message.partition(":")
    if command != "save" or not name.isidentifier():
        return message
    known = {
        "k",
        "temperature",
        "extra_temperatures",
        "max_length",
        "batch_size",
        "examples_per_shard",
        "threads",
        "concurrency",
        "retries",
        "timeout",
        "vocab_size",
    }
    typed = f"--{name.replace('_', '-')}" if name in known else _OPTIONS.get(name, name)
    return typed + colon + rest
