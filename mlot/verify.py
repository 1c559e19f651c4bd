"""Check this installation: ``python -m mlot.verify`` compares its backends with independent solvers.

Every operation of every installed backend, and the whole loss, is compared with POT, SciPy and plain
formulas, and every gradient with finite differences (`mlot.testing`). The exit status is 0 if everything
agrees, 1 if something does not, 2 if the command was called wrongly.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TextIO

import numpy as np

from mlot._version import __version__
from mlot.backends import available_backends, get_backend
from mlot.testing import Record, check_backend, table
from mlot.testing._report import COLUMNS, notes

_PACKAGES = ("numpy", "scipy", "POT", "torch", "triton")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: of the command line; ``None`` means those of this process.

    Returns:
        The exit status: 0, or 1 if a quantity failed.

    Raises:
        SystemExit: with status 2, after a message, if the arguments are wrong.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        names, absent, records = _installed(options.backend, options.device)
    except (ImportError, ValueError) as error:
        parser.error(str(error))
    print(_versions(), flush=True)
    start = time.perf_counter()
    for name in names:
        if sys.stderr.isatty():
            print(f"checking {name} ...", file=sys.stderr)
        records += check_backend(name, seed=options.seed, cases=options.cases, device=options.device)
    seconds = time.perf_counter() - start
    show(records, sys.stdout)
    for name, why in absent.items():
        print(f"not checked: {name}: {why}")
    verdicts = [record.verdict for record in records]
    failed = verdicts.count("FAIL")
    print(
        f"{len(records)} quantities: {verdicts.count('pass')} passed, {failed} failed, "
        f"{verdicts.count('skipped')} skipped, with seed {options.seed} in {seconds:.1f} s"
    )
    return 1 if failed else 0


def show(records: Sequence[Record], out: TextIO) -> None:
    """Print records as a table: by rich on a terminal where it is installed, else as plain text."""
    if out.isatty():
        try:
            _show_by_rich(records, out)
        except ImportError:
            pass
        else:
            return
    print(table(records), file=out)


def _show_by_rich(records: Sequence[Record], out: TextIO) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(file=out)
    grid = Table()
    for n, column in enumerate(COLUMNS):
        grid.add_column(column, justify="right" if 2 <= n <= 4 else "left", no_wrap=True)
    styles = {"FAIL": "bold red", "skipped": "yellow", "pass": None}
    for record in records:
        grid.add_row(*map(escape, record.row()), style=styles[record.verdict])
    console.print(grid)
    for note in notes(records):
        console.print(escape(note), highlight=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mlot.verify",
        description="Compare this installation's backends with independent solvers and finite differences.",
    )
    parser.add_argument("--seed", type=_at_least(0), default=0, help="of the random problems (default: 0)")
    parser.add_argument(
        "--cases", type=_at_least(1), default=20, help="random problems for each quantity (default: 20)"
    )
    parser.add_argument(
        "--backend",
        action="append",
        metavar="NAME",
        help="backend to check; repeatable (default: all installed)",
    )
    parser.add_argument("--device", help="device to compute on, such as cuda (default: the backend's own)")
    return parser


class _at_least:  # noqa: N801 - argparse names a converter by what it is called
    """Converter of integers that are not too small."""

    def __init__(self, least: int) -> None:
        self.least = least
        self.__name__ = f"integer >= {least}"

    def __call__(self, text: str) -> int:
        value = int(text)
        if value < self.least:
            raise ValueError
        return value


def _installed(
    asked: Sequence[str] | None, device: str | None
) -> tuple[list[str], dict[str, str], list[Record]]:
    """Backends that can be checked, why others cannot, and a failure for each that cannot even be loaded.

    Raises:
        ImportError, ValueError: a backend that was asked for by name cannot be checked, or none can.
    """
    names, absent, broken = [], {}, []
    for name in dict.fromkeys(asked or available_backends()):
        try:
            xp = get_backend(name)
        except ImportError as error:
            if asked:
                raise
            absent[name] = str(error).removeprefix("backend: ")
            continue
        except Exception as error:
            if asked:
                raise ValueError(str(error)) from error
            why = f"{type(error).__name__}: {error}"
            broken.append(Record("load", "loading the backend", name, 1, float("inf"), 0.0, False, why))
            continue
        try:
            xp.from_numpy(np.zeros(1), device)
        except Exception as error:  # whatever a backend raises for a device that it has not
            if asked:
                raise ValueError(f"--device: {name} cannot use {device!r}: {error}") from error
            absent[name] = f"cannot use device {device!r}: {error}"
            continue
        names.append(name)
    if not names and not broken:
        raise ValueError(
            "no backend can be checked: " + "; ".join(f"{n}: {why}" for n, why in absent.items())
        )
    return names, absent, broken


def _versions() -> str:
    versions = [f"mlot {__version__}", f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package}: not installed")
    return ", ".join(versions)


if __name__ == "__main__":
    sys.exit(main())
