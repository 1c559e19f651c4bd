"""Folders of results that are there whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

#: How folders begin whose content is on its way somewhere.
PARTIAL = ".partial-"


@contextmanager
def created(folder: Path, name: str = "folder") -> Iterator[None]:
    """Make a folder; afterwards it goes again, and so do those made above it, if nothing is in them.

    Raises:
        OSError: it cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{name}: expected a folder to write to, but {error}") from error
    try:
        yield
    finally:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


@contextmanager
def staging(
    folder: Path, entries: Sequence[str], *, replaces: bool = False, name: str = "folder"
) -> Iterator[Path]:
    """Give a folder to write results to; on success they move into place, otherwise nothing remains.

    Args:
        folder: where results go.
        entries: names of the results, in the order in which they go there, each whole or not at all.
        replaces: whether earlier entries without a successor go, too.
        name: of the argument or option that gave the folder, for messages.

    Raises:
        OSError: nothing can be written there.
    """
    with created(folder, name):
        try:
            partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
        except OSError as error:
            raise OSError(f"{name}: expected a folder to write to, but {error}") from error
        try:
            new, old = partial / "new", partial / "old"
            new.mkdir()
            old.mkdir()
            yield new
            _publish(folder, new, old, entries, replaces)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _publish(folder: Path, new: Path, old: Path, entries: Sequence[str], replaces: bool) -> None:
    moves: list[tuple[Path, Path]] = []
    for name in entries:
        if (folder / name).exists() and (replaces or (new / name).exists()):
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
