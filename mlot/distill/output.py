"""The output folder: what may be in it, and how a run's results get there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlot.distill.errors import DistillError

FORMAT = "mlot.distill.1"
REPORT = "report.json"
#: Everything that a run writes; the report goes last, and says that the rest is there.
ENTRIES = ("teacher", "student-ce", "student-mlot", "samples.txt", "curves.png", "report.md", REPORT)
_PARTIAL = ".partial-"


def check_output(folder: Path, *, overwrite: bool, sources: Sequence[Path]) -> None:
    """Refuse an output folder in which a run would mix with, or replace, what is not its own.

    A folder may be missing, empty, or hold an earlier run, which will be replaced.

    Args:
        folder: where results shall go.
        overwrite: take a folder with other files as well. They stay; what has a result's name is replaced.
        sources: files and folders that the run reads, which must not be replaced by its results.

    Raises:
        DistillError: it must not be used.
    """
    if folder.exists() and not folder.is_dir():
        raise DistillError(f"--output: expected a folder, but {str(folder)!r} is a file")
    for source in sources:
        for name in ENTRIES:
            if source.resolve().is_relative_to((folder / name).resolve()):
                raise DistillError(
                    f"--output: {str(source)!r} is read by this run and would be replaced by its results"
                )
    if overwrite or not folder.is_dir():
        return
    present = sorted(path.name for path in folder.iterdir())
    foreign = [name for name in present if name not in ENTRIES and not name.startswith(_PARTIAL)]
    if not foreign and not _is_earlier_run(folder):
        foreign = [name for name in present if not name.startswith(_PARTIAL)]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise DistillError(
            "--output: expected a folder that is new, empty or from an earlier run, "
            f"but {str(folder)!r} holds {', '.join(foreign[:3])}{more}; "
            f"--overwrite leaves other files alone and replaces {', '.join(ENTRIES)}"
        )


def _is_earlier_run(folder: Path) -> bool:
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and report.get("format") == FORMAT


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Give a folder to write results to; on success they move into place, otherwise nothing remains.

    Each entry appears whole or not at all, and replaces an earlier run's. What of an earlier run has no
    successor goes, too.

    Raises:
        DistillError: nothing can be written there.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder))
    except OSError as error:
        raise DistillError(f"--output: expected a folder to write to, but {error}") from error
    try:
        new, old = partial / "new", partial / "old"
        new.mkdir()
        old.mkdir()
        yield new
        _publish(folder, new, old)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _publish(folder: Path, new: Path, old: Path) -> None:
    replaces_run = _is_earlier_run(folder)
    moves: list[tuple[Path, Path]] = []
    for name in ENTRIES:
        if (folder / name).exists() and (replaces_run or (new / name).exists()):
            moves.append((folder / name, old / name))
        if (new / name).exists():
            moves.append((new / name, folder / name))
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            source.replace(target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            target.replace(source)
        raise
