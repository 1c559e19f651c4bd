"""A run that can be stopped and continued: what of it is done, kept in the output folder until all is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mlot._folders import PARTIAL, created
from mlot.distill.errors import DistillError
from mlot.distill.options import typed
from mlot.distill.output import FORMAT, UNFINISHED, is_stopped_run
from mlot.training._stage import DONE, LATEST, Clock, Stage, read_json, write_json

_RUN = "run.json"


class Stages:
    """The stages of a run, kept in a folder; without one nothing is kept."""

    def __init__(self, folder: Path | None, clock: Clock) -> None:
        self._folder, self.clock = folder, clock

    def stage(self, name: str) -> Stage | None:
        """The stage of that name, if stages are kept."""
        return None if self._folder is None else Stage(self._folder / name, self.clock)

    def tidy(self) -> None:
        """Drop what is not whole of every stage."""
        if self._folder is not None:
            for folder in self._folder.glob("*/"):
                Stage(folder, self.clock).tidy()

    def require_same_text(self, digest: str) -> None:
        """Refuse to continue a run with other text, and note the text of a new one."""
        if self._folder is None:
            return
        content = read_json(self._folder / _RUN)
        if content.setdefault("text", digest) != digest:
            raise DistillError("--resume: expected the text of the stopped run, got another")
        write_json(self._folder / _RUN, content)


@contextmanager
def kept(output: Path, identity: Mapping[str, Any], *, resume: bool, keep: bool) -> Iterator[Stages]:
    """Give the stages of a run; of one that ends by an error or is stopped, what is complete stays.

    With ``resume`` a stopped run is continued, if there is one and ``identity`` is the same.

    Raises:
        DistillError: the stopped run was another one.
    """
    if not (resume and is_stopped_run(output)):
        begun = _begun(output, identity) if keep else nullcontext(Stages(None, Clock()))
        with _set_aside(output), begun as stages:
            yield stages
        return
    folder = output / UNFINISHED
    stopped = read_json(folder / _RUN).get("settings", {})
    for name, value in identity.items():
        if stopped.get(name) != value:
            raise DistillError(
                f"--resume: expected {typed(name)} as of the stopped run, {stopped.get(name)}, got {value}"
            )
    for path in output.glob(f"{PARTIAL}*"):  # of a run that was killed
        shutil.rmtree(path, ignore_errors=True)
    records = [read_json(path) for name in (LATEST, DONE) for path in folder.glob(f"*/{name}")]
    stages = Stages(folder, Clock(max(float(record.get("elapsed", 0.0)) for record in records)))
    try:
        yield stages
    except BaseException:
        stages.tidy()
        raise
    shutil.rmtree(folder)


@contextmanager
def _begun(output: Path, identity: Mapping[str, Any]) -> Iterator[Stages]:
    """Stages of a new run, which stay if it gets somewhere but not to its end."""
    folder = output / UNFINISHED
    with created(output, "--output"):
        folder.mkdir()
        write_json(folder / _RUN, {"format": FORMAT, "settings": dict(identity)})
        stages = Stages(folder, Clock())
        try:
            yield stages
        except BaseException:
            stages.tidy()
            if not is_stopped_run(output):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder)


@contextmanager
def _set_aside(output: Path) -> Iterator[None]:
    """Put a stopped run aside that a new one replaces; it comes back if the new one gets nowhere."""
    folder = output / UNFINISHED
    if not folder.exists():
        yield
        return
    aside = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=output))
    folder.replace(aside / UNFINISHED)
    try:
        yield
    except BaseException:
        if not folder.exists():
            (aside / UNFINISHED).replace(folder)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
