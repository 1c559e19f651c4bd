"""A run that can be stopped and continued: what of it is done, kept in the output folder until all is."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerCallback

from mlot._storage import write_atomically
from mlot.distill import lora
from mlot.distill.errors import DistillError
from mlot.distill.options import typed
from mlot.distill.output import FORMAT, PARTIAL, UNFINISHED, created, drop_partial, is_stopped_run

_RUN, _LATEST, _DONE, _MODEL = "run.json", "latest.json", "done.json", "model"


class Stage:
    """One training of a run: where its checkpoints go, and what an earlier call left.

    Args:
        folder: of its checkpoints and its result.
        clock: of the run.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder = folder
        self._clock = clock

    def checkpoint(self) -> Path | None:
        """The last checkpoint that is whole; one that is not goes."""
        name = _read(self.folder / _LATEST).get("checkpoint")
        self._drop_checkpoints(name, _read(self.folder / _LATEST).get("best"))
        return None if name is None else self.folder / name

    @property
    def seconds(self) -> float:
        """Seconds of training before the last checkpoint."""
        return float(_read(self.folder / _LATEST).get("seconds", 0.0))

    @property
    def done(self) -> dict[str, Any] | None:
        """What was found, if training is complete: ``history`` and ``seconds``."""
        found = _read(self.folder / _DONE)
        return {name: found[name] for name in ("history", "seconds")} if found else None

    def callback(self) -> TrainerCallback:
        """Make a callback that makes each checkpoint the last one, once it is whole."""
        return _Pointer(self)

    def point(self, step: int, seconds: float, best: str | None = None) -> None:
        """Make the checkpoint of a step the last one, and drop those before but the best one, if one is."""
        name = f"checkpoint-{step}"
        best = Path(best or name).name
        latest = {"checkpoint": name, "best": best, "seconds": seconds, "elapsed": self._clock.elapsed()}
        _write(self.folder / _LATEST, latest)
        self._drop_checkpoints(name, best)

    def _drop_checkpoints(self, *but: str | None) -> None:
        for path in self.folder.glob("checkpoint-*"):
            if path.name not in but:
                shutil.rmtree(path)

    def finish(self, model: PreTrainedModel, history: Sequence[Mapping[str, Any]], seconds: float) -> None:
        """Keep the trained model and its log; checkpoints go."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder / _MODEL, ignore_errors=True)
        model.save_pretrained(self.folder / _MODEL)
        elapsed = self._clock.elapsed()
        _write(self.folder / _DONE, {"history": list(history), "seconds": seconds, "elapsed": elapsed})
        self._drop_checkpoints()

    def load(self, start: Any) -> PreTrainedModel:
        """The trained model; ``start`` is where its training began."""
        adapted: PreTrainedModel | None = lora.load(start, self.folder / _MODEL)
        if adapted is not None:
            return adapted
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.folder / _MODEL, dtype=torch.float32, local_files_only=True
        )
        return model


class _Pointer(TrainerCallback):
    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._before = stage.seconds
        self._started = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The Trainer calls this when a checkpoint is complete; until then `latest.json` names the one before.
        seconds = self._before + time.perf_counter() - self._started
        self._stage.point(state.global_step, seconds, state.best_model_checkpoint)


class Clock:
    """Seconds of a run, those of earlier calls included."""

    def __init__(self, before: float = 0.0) -> None:
        self._before = before
        self._started = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds so far."""
        return self._before + time.perf_counter() - self._started


class Stages:
    """The stages of a run.

    Args:
        folder: where they are kept; ``None`` keeps nothing.
        clock: of the run.
    """

    def __init__(self, folder: Path | None, clock: Clock) -> None:
        self._folder = folder
        self.clock = clock

    def stage(self, name: str) -> Stage | None:
        """The stage of that name, if stages are kept."""
        return None if self._folder is None else Stage(self._folder / name, self.clock)

    def require_same_text(self, digest: str) -> None:
        """Refuse to continue a run with other text, and note the text of a new one."""
        if self._folder is None:
            return
        content = _read(self._folder / _RUN)
        if content.setdefault("text", digest) != digest:
            raise DistillError("--resume: expected the text of the stopped run, got another")
        _write(self._folder / _RUN, content)


@contextmanager
def kept(output: Path, identity: Mapping[str, Any], *, resume: bool, keep: bool) -> Iterator[Stages]:
    """Give the stages of a run; of one that ends by an error or is stopped, what is complete stays.

    Args:
        output: folder of the results.
        identity: settings that must be the same for a run to be continued.
        resume: continue a stopped run, if there is one.
        keep: whether stages are kept.

    Raises:
        DistillError: the stopped run was another one.
    """
    if not (resume and is_stopped_run(output)):
        with (
            _set_aside(output),
            _begun(output, identity) if keep else nullcontext(Stages(None, Clock())) as stages,
        ):
            yield stages
        return
    folder = output / UNFINISHED
    _require_same(identity, _read(folder / _RUN).get("settings", {}))
    drop_partial(output)
    records = [_read(path) for name in (_LATEST, _DONE) for path in folder.glob(f"*/{name}")]
    yield Stages(folder, Clock(max(float(record.get("elapsed", 0.0)) for record in records)))
    shutil.rmtree(folder)


@contextmanager
def _begun(output: Path, identity: Mapping[str, Any]) -> Iterator[Stages]:
    """Stages of a new run, which stay if it gets somewhere but not to its end."""
    folder = output / UNFINISHED
    with created(output):
        folder.mkdir()
        _write(folder / _RUN, {"format": FORMAT, "settings": dict(identity)})
        try:
            yield Stages(folder, Clock())
        except BaseException:
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


def _require_same(wanted: Mapping[str, Any], stopped: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if stopped.get(name) != value:
            raise DistillError(
                f"--resume: expected {typed(name)} as of the stopped run, {stopped.get(name)}, got {value}"
            )


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object so that it is there whole or not at all."""
    write_atomically(path, json.dumps(content).encode())
