"""One of several trainings of a run that can be stopped and continued: its checkpoints, its result."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from mlot._hf.adapters import load_adapters
from mlot._storage import parsed, write_atomically

LATEST, DONE = "latest.json", "done.json"
_MODEL = "model"


class Clock:
    """Seconds of a run, those of earlier calls included."""

    def __init__(self, before: float = 0.0) -> None:
        self._started = time.perf_counter() - before

    def elapsed(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._started


class Stage(TrainerCallback):
    """One training of a run: where its checkpoints go, and what an earlier call left.

    As a callback it makes each checkpoint the last one, once it is whole.

    Args:
        folder: of its checkpoints and its result.
        clock: of the run.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder = folder
        self._run, self._own = clock, Clock(self.seconds)

    def checkpoint(self) -> Path | None:
        """The last checkpoint that is whole; one that is not goes."""
        latest = read_json(self.folder / LATEST)
        self._drop_checkpoints(latest.get("checkpoint"), latest.get("best"))
        return self.folder / latest["checkpoint"] if latest else None

    @property
    def seconds(self) -> float:
        """Seconds of training before the last checkpoint."""
        return float(read_json(self.folder / LATEST).get("seconds", 0.0))

    @property
    def done(self) -> dict[str, Any] | None:
        """What there is of a training that is complete: ``history`` and ``seconds``."""
        result = read_json(self.folder / DONE)
        return {name: result[name] for name in ("history", "seconds")} if result else None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Point to a checkpoint; until transformers calls this, `latest.json` names the one before."""
        self.point(state.global_step, self._own.elapsed(), state.best_model_checkpoint)

    def point(self, step: int, seconds: float, best: str | None = None) -> None:
        """Make the checkpoint of a step the last one, and drop those before but the best one, if one is."""
        name = f"checkpoint-{step}"
        kept = {"checkpoint": name, "best": Path(best or name).name}
        write_json(self.folder / LATEST, kept | {"seconds": seconds, "elapsed": self._run.elapsed()})
        self._drop_checkpoints(*kept.values())

    def _drop_checkpoints(self, *but: str | None) -> None:
        for path in self.folder.glob("checkpoint-*"):
            if path.name not in but:
                shutil.rmtree(path)

    def tidy(self) -> None:
        """Drop what is not whole: a checkpoint that was being written, a model without its log."""
        self.checkpoint()
        if self.done is None:
            shutil.rmtree(self.folder / _MODEL, ignore_errors=True)

    def finish(self, model: Any, history: Sequence[Mapping[str, Any]], seconds: float) -> None:
        """Keep the trained model and its log; checkpoints go."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder / _MODEL, ignore_errors=True)
        model.save_pretrained(self.folder / _MODEL)
        result = {"history": list(history), "seconds": seconds, "elapsed": self._run.elapsed()}
        write_json(self.folder / DONE, result)
        self._drop_checkpoints()

    def load(self, start: Any) -> Any:
        """The trained model; ``start`` is where its training began."""
        adapted = load_adapters(start, self.folder / _MODEL)
        if adapted is not None:
            return adapted
        return AutoModelForCausalLM.from_pretrained(
            self.folder / _MODEL, dtype=torch.float32, local_files_only=True
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is none."""
    try:
        content = parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object so that it is there whole or not at all."""
    write_atomically(path, json.dumps(content).encode())
