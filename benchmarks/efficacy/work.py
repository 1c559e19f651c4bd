"""The study from start to end, in processes of one thread; what is finished is not done again."""

from __future__ import annotations

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
from benchmarks.efficacy.material import Material, describe
from benchmarks.efficacy.sizes import STARTS, Size
from benchmarks.efficacy.student import train
from benchmarks.efficacy.trials import Cell, Trial, check, choose, final, search

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

    def run(self, workers: int, tell: Tell) -> None:
        """Do everything that is not done: prepare, search, compare."""
        self.material.prepare()
        with _Pool(workers, self._state()) as pool:
            for jobs in self.material.jobs():
                pool.do(_prepare, jobs, "prepared", tell)
            for start in STARTS:  # one after the other, so that what is done first is whole
                trials = search(self.size, (start,))
                pool.do(_trial, self._missing(trials), f"{start}, search", tell)
                chosen = self.chosen((start,))
                pool.do(_trial, self._missing(final(self.size, chosen)), f"{start}, comparison", tell)
                pool.do(_trial, self._missing(self._checks((start,))), f"{start}, check", tell)

    def chosen(self, starts: Sequence[str] = STARTS) -> dict[Cell, tuple[float, float]]:
        """Settings that the search found."""
        return choose(self.size, self._searched(starts), starts)

    def _checks(self, starts: Sequence[str]) -> list[Trial]:
        return check(self.size, self._searched(starts), starts)

    def _searched(self, starts: Sequence[str]) -> dict[str, dict[str, Any]]:
        return {trial.name: self.result(trial) for trial in search(self.size, starts)}

    def finished(self) -> tuple[str, ...]:
        """Starts of which everything is done."""
        return tuple(
            start
            for start in STARTS
            if not self._missing(search(self.size, (start,)))
            and not self._missing(final(self.size, self.chosen((start,))))
            and not self._missing(self._checks((start,)))
        )

    def results(self) -> list[dict[str, Any]]:
        """Every training of the search, the comparison and the check, of the starts that are finished."""
        starts = self.finished()
        trials = [*search(self.size, starts), *final(self.size, self.chosen(starts)), *self._checks(starts)]
        return [self.result(trial) for trial in trials]

    def result(self, trial: Trial) -> dict[str, Any]:
        """What a finished training found."""
        found: dict[str, Any] = store.read_json(self._path(trial))
        return found

    def _path(self, trial: Trial) -> Path:
        return self.folder / "trials" / f"{trial.name}.json"

    def _missing(self, trials: Iterable[Trial]) -> list[Trial]:
        return [trial for trial in trials if not self._path(trial).exists()]

    def _state(self) -> tuple[Size, Path, str]:
        return self.size, self.folder, self.device

    def do(self, trial: Trial) -> None:
        """Train, and keep what was found."""
        store.write_json(self._path(trial), train(trial, self.material))


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


def _prepare(job: str) -> str:
    assert _here is not None
    _here.material.prepare_job(job)
    return job


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

    def do(self, action: Callable[[Any], str], jobs: Sequence[Any], what: str, tell: Tell) -> None:
        """Do jobs and tell of each; the first that fails ends it all."""
        started = time.perf_counter()
        for number, name in enumerate(self._done(action, jobs), 1):
            elapsed = time.perf_counter() - started
            tell(f"{what} {number}/{len(jobs)}, {elapsed:.0f} s: {name}")

    def _done(self, action: Callable[[Any], str], jobs: Sequence[Any]) -> Iterable[str]:
        if self.executor is None:
            yield from map(action, jobs)
            return
        for future in as_completed([self.executor.submit(action, job) for job in jobs]):
            yield future.result()
