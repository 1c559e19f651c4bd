"""The output folder: what may be in it, and how a run's results get there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlot.distill.errors import DistillError

FORMAT = "mlot.distill.2"
PAGE = "report.html"
REPORT = "report.json"
#: Everything that a run writes; the report goes last, and says that the rest is there.
ENTRIES = ("teacher", "student-ce", "student-mlot", PAGE, REPORT)
#: What there is of a run that is not complete: checkpoints, and models whose training is.
UNFINISHED = "unfinished"
#: How folders begin whose content is on its way somewhere.
PARTIAL = ".partial-"


def check_output(folder: Path, *, overwrite: bool, sources: Sequence[Path], resume: bool = False) -> None:
    """Refuse an output folder in which a run would mix with, or replace, what is not its own.

    A folder may be missing or empty; a finished run in it is replaced, when this one is complete, if that was
    asked for.

    Args:
        folder: where results shall go.
        overwrite: take a folder with other files as well. They stay; what has a result's name is replaced,
            and a stopped run is dropped.
        sources: files and folders that the run reads, which must not be replaced by its results.
        resume: whether a stopped run is to be continued.

    Raises:
        DistillError: it must not be used.
    """
    if folder.exists() and not folder.is_dir():
        raise DistillError(f"--output: expected a folder, but {str(folder)!r} is a file")
    for source in sources:
        for name in (*ENTRIES, UNFINISHED):
            if source.resolve().is_relative_to((folder / name).resolve()):
                raise DistillError(
                    f"--output: {str(source)!r} is read by this run and would be replaced by its results"
                )
    if not folder.is_dir():
        return
    stopped = is_stopped_run(folder)
    if resume and not stopped and _is_earlier_run(folder):
        raise DistillError(
            f"--resume: expected a stopped run in {str(folder)!r}, but the one there is complete"
        )
    if not (resume or overwrite) and _is_earlier_run(folder):
        raise DistillError(f"--output: {str(folder)!r} holds a finished run; --overwrite replaces it")
    if (folder / UNFINISHED).exists() and not _is_unfinished(folder):
        # never dropped, not even by --overwrite: nothing of ours is replaced by it
        raise DistillError(f"--output: expected no foreign {UNFINISHED!r} in {str(folder)!r}, found one")
    if overwrite:
        return
    if stopped and not resume:
        raise DistillError(
            f"--output: {str(folder)!r} holds a stopped run; --resume continues it, --overwrite drops it"
        )
    present = sorted(path.name for path in folder.iterdir())
    known = {*ENTRIES, UNFINISHED}
    foreign = [name for name in present if name not in known and not name.startswith(PARTIAL)]
    if not foreign and not _is_earlier_run(folder):  # names like those of results, but of something else
        foreign = [name for name in present if name != UNFINISHED and not name.startswith(PARTIAL)]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise DistillError(
            "--output: expected a folder that is new or empty, "
            f"but {str(folder)!r} holds {', '.join(foreign[:3])}{more}; "
            f"--overwrite leaves other files alone and replaces {', '.join(ENTRIES)}"
        )


def check_saving(folder: Path, output: Path) -> None:
    """Refuse to save a teacher into the output folder, or into one that holds something else.

    Args:
        folder: where the teacher shall be saved; an earlier one there is compared when this one is known.
        output: folder of the results.

    Raises:
        DistillError: it must not be used.
    """
    if folder.exists() and not folder.is_dir():
        raise DistillError(f"--save-teacher: expected a folder, but {str(folder)!r} is a file")
    if folder.resolve() == output.resolve():
        raise DistillError(f"--save-teacher: expected another folder than --output, got {str(folder)!r}")
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if "manifest.json" not in present and any(not name.startswith(".") for name in present):
        raise DistillError(
            "--save-teacher: expected a folder that is new, empty or of a saved teacher, "
            f"but {str(folder)!r} holds something else"
        )


def is_stopped_run(folder: Path) -> bool:
    """Whether a folder holds a run that got somewhere and was stopped."""
    if not _is_unfinished(folder):
        return False
    unfinished = folder / UNFINISHED
    return any(unfinished.glob("*/latest.json")) or any(unfinished.glob("*/done.json"))


def _is_unfinished(folder: Path) -> bool:
    return _has_format(folder / UNFINISHED / "run.json")


def _is_earlier_run(folder: Path) -> bool:
    return _has_format(folder / REPORT)


def _has_format(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


@contextmanager
def created(folder: Path) -> Iterator[None]:
    """Make a folder; afterwards it goes again, and so do those made above it, if nothing is in them.

    Raises:
        DistillError: it cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DistillError(f"--output: expected a folder to write to, but {error}") from error
    try:
        yield
    finally:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Give a folder to write results to; on success they move into place, otherwise nothing remains.

    Each entry appears whole or not at all, and replaces an earlier run's. What of an earlier run has no
    successor goes, too.

    Raises:
        DistillError: nothing can be written there.
    """
    with created(folder):
        try:
            partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
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


def drop_partial(folder: Path) -> None:
    """Drop what a killed run left half-written, where it is known to be over."""
    for path in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


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
