"""The study from start to end, in processes of one thread; what is finished is not done again."""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from benchmarks.efficacy import store
from benchmarks.study.diagnostics import diagnose
from benchmarks.study.material import Material, describe
from benchmarks.study.sizes import Size
from benchmarks.study.student import train
from benchmarks.study.teacher import Taught
from benchmarks.study.trials import Cell, Choice, Trial, cells, choose, final, grid, passes, search

Tell = Callable[[str], None]


class OtherStudyError(ValueError):
    """The work folder is of another study."""


class Study:
    """A study in a work folder.

    Args:
        size: the preset.
        folder: work folder; what is there of the same study is used.
        device: where models run.

    Raises:
        OtherStudyError: the folder is of a study with other settings or another device.
    """

    def __init__(self, size: Size, folder: Path, device: str) -> None:
        self.size, self.folder, self.device = size, folder, device
        protocol = {"size": describe(size), "device": device}
        path = folder / "protocol.json"
        if path.exists() and store.read_json(path) != protocol:
            raise OtherStudyError(
                f"--work: expected a folder of this study (size {size.name}, device {device}), "
                f"got one of a study with other settings: {str(folder)!r}"
            )
        store.write_json(path, protocol)
        self.material = Material(size, folder, torch.device(device))

    @property
    def tokenizers(self) -> list[str]:
        """Tokenizers of the students; all methods are compared with the first."""
        return list(dict.fromkeys(setting.tokenizer for setting in self.size.settings))

    @functools.cache  # noqa: B019 - a process has one of these
    def taught(self, tokenizer: str) -> Taught:
        """What the teacher says about the windows of a tokenizer."""
        return Taught(self.material, tokenizer, full=tokenizer == self.tokenizers[0])

    def run(self, workers: int, tell: Tell) -> None:
        """Do everything that is not done: prepare, search, compare, explain."""
        started = time.perf_counter()
        self.material.prepare()
        for tokenizer in self.tokenizers:
            self.taught(tokenizer).make()
        tell(f"prepared in {time.perf_counter() - started:.0f} s")
        with _Pool(workers, (self.size, self.folder, self.device)) as pool:
            for group in cells(self.size):  # one after the other, so that what is done first is whole
                tried = [trial for cell in group for trial in search(self.size, cell, grid(self.size, cell))]
                pool.do(self._missing(tried), "search", tell)
                tried = [trial for cell in group for trial in search(self.size, cell, self._passes(cell))]
                pool.do(self._missing(tried), "passes", tell)
                pool.do(self._missing(final(self.size, self.chosen(group))), "comparison", tell)
        if not self._looks_path.exists():
            plain = cells(self.size)[0][0]
            looks = diagnose(self.material, self.taught(self.tokenizers[0]), self.chosen([plain])[plain])
            store.write_json(self._looks_path, looks)

    def _bits(self, trials: Iterable[Trial]) -> dict[str, float]:
        return {trial.name: self.result(trial)["bits_per_byte"] for trial in trials}

    def _passes(self, cell: Cell) -> list[Choice]:
        tried = search(self.size, cell, grid(self.size, cell))
        return passes(self.size, cell, self._bits(tried))

    def chosen(self, group: Iterable[Cell]) -> dict[Cell, Choice]:
        """Settings that the search chose."""
        chosen = {}
        for cell in group:
            choices = self._passes(cell)
            chosen[cell] = choose(self.size, cell, choices, self._bits(search(self.size, cell, choices)))
        return chosen

    def results(self) -> list[dict[str, Any]]:
        """Every finished training."""
        return [store.read_json(path) for path in sorted(self.folder.glob("trials/[!.]*.json"))]

    @property
    def looks(self) -> list[dict[str, Any]]:
        """What the losses ask of one student, see `diagnose`; empty before that is done."""
        looks: list[dict[str, Any]] = store.read_json(self._looks_path) if self._looks_path.exists() else []
        return looks

    @property
    def _looks_path(self) -> Path:
        return self.folder / "looks.json"

    def result(self, trial: Trial) -> dict[str, Any]:
        """What a finished training came to."""
        result: dict[str, Any] = store.read_json(self._path(trial))
        return result

    def _path(self, trial: Trial) -> Path:
        return self.folder / "trials" / f"{trial.name}.json"

    def _missing(self, trials: Iterable[Trial]) -> list[Trial]:
        return [trial for trial in dict.fromkeys(trials) if not self._path(trial).exists()]

    def do(self, trial: Trial) -> None:
        """Train, and keep what came of it."""
        result = train(trial, self.material, self.taught(trial.cell.setting.tokenizer))
        store.write_json(self._path(trial), result)


#: The study of a worker process.
_here: Study | None = None


def _begin(size: Size, folder: Path, device: str, threads: int) -> None:
    """Set a worker up; it ends with the process that started it, however that ends."""
    global _here
    torch.set_num_threads(threads)
    _here = Study(size, folder, device)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _trial(trial: Trial) -> str:
    assert _here is not None
    _here.do(trial)
    return trial.name


class _Pool:
    """Processes that do jobs, or this one where there shall be a single worker."""

    def __init__(self, workers: int, state: tuple[Size, Path, str]) -> None:
        self.executor = None
        if workers > 1:
            self.executor = ProcessPoolExecutor(
                workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(*state, torch.get_num_threads()),
            )
        else:
            _begin(*state, torch.get_num_threads())

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)

    def do(self, trials: Sequence[Trial], what: str, tell: Tell) -> None:
        """Do trainings and tell of each; the first that fails ends it all."""
        started = time.perf_counter()
        for number, name in enumerate(self._done(trials), 1):
            elapsed = time.perf_counter() - started
            tell(f"{what} {number}/{len(trials)}, {elapsed:.0f} s: {name}")

    def _done(self, trials: Sequence[Trial]) -> Iterable[str]:
        if self.executor is None:
            yield from map(_trial, trials)
            return
        for future in as_completed([self.executor.submit(_trial, trial) for trial in trials]):
            yield future.result()
