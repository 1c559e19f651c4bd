"""The output folder: what may be in it, and how a run's results get there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlot._folders import PARTIAL
from mlot._storage import parsed
from mlot.distill.errors import DistillError

FORMAT = "mlot.distill.2"
PAGE, REPORT = "report.html", "report.json"
#: Everything that a run writes; the report goes last, and says that the rest is there.
ENTRIES = ("teacher", "student-ce", "student-mlot", PAGE, REPORT)
#: What there is of a run that is not complete: checkpoints, and models whose training is.
UNFINISHED = "unfinished"


def check_output(folder: Path, *, overwrite: bool, sources: Sequence[Path], resume: bool = False) -> None:
    """Refuse an output folder in which a run would mix with, or replace, what is not its own.

    With ``overwrite`` a finished run may be there, which is replaced, a stopped one, which is dropped, and
    other files, which stay unless they are called like a result; what the run reads is never replaced.

    Raises:
        DistillError: it must not be used.
    """
    shown = repr(str(folder))
    if folder.exists() and not folder.is_dir():
        raise DistillError(f"--output: expected a folder, but {shown} is a file")
    for source in sources:
        if any(source.resolve().is_relative_to((folder / name).resolve()) for name in (*ENTRIES, UNFINISHED)):
            raise DistillError(
                f"--output: {str(source)!r} is read by this run and would be replaced by its results"
            )
    if not folder.is_dir():
        return
    stopped, finished = is_stopped_run(folder), is_finished_run(folder)
    if resume and finished and not stopped:
        raise DistillError(f"--resume: expected a stopped run in {shown}, but the one there is complete")
    if (folder / UNFINISHED).exists() and not _has_format(folder / UNFINISHED / "run.json"):
        # never dropped, not even by --overwrite: nothing of ours is replaced by it
        raise DistillError(f"--output: expected no foreign {UNFINISHED!r} in {shown}, found one")
    if overwrite:
        return
    if stopped and not resume:
        raise DistillError(
            f"--output: {shown} holds a stopped run; --resume continues it, --overwrite drops it"
        )
    if finished and not resume:
        raise DistillError(f"--output: {shown} holds a finished run; --overwrite replaces it")
    known = {UNFINISHED, *(ENTRIES if finished else ())}
    present = sorted(path.name for path in folder.iterdir() if not path.name.startswith(PARTIAL))
    foreign = [name for name in present if name not in known]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise DistillError(
            f"--output: expected a folder that is new or empty, but {shown} holds "
            f"{', '.join(foreign[:3])}{more}; --overwrite leaves other files alone and replaces "
            + ", ".join(ENTRIES)
        )


def check_saving(folder: Path, output: Path) -> None:
    """Refuse to save a teacher into the output folder, or into one that holds something else.

    Raises:
        DistillError: it must not be used.
    """
    shown = repr(str(folder))
    if folder.exists() and not folder.is_dir():
        raise DistillError(f"--save-teacher: expected a folder, but {shown} is a file")
    if folder.resolve() == output.resolve():
        raise DistillError(f"--save-teacher: expected another folder than --output, got {shown}")
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if "manifest.json" not in present and any(not name.startswith(".") for name in present):
        raise DistillError(
            f"--save-teacher: expected a folder that is new, empty or of a saved teacher, but {shown} holds "
            "something else"
        )


def is_stopped_run(folder: Path) -> bool:
    """Whether a folder holds a run that got somewhere and was stopped."""
    unfinished = folder / UNFINISHED
    kept = (path for name in ("latest.json", "done.json") for path in unfinished.glob(f"*/{name}"))
    return _has_format(unfinished / "run.json") and any(kept)


def is_finished_run(folder: Path) -> bool:
    """Whether a folder holds a run that is complete."""
    return _has_format(folder / REPORT)


def _has_format(path: Path) -> bool:
    try:
        content = parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT
