"""``make mutation``: plant faults in the numerical core, one at a time, and see whether a test fails.

The tests are collected once. For each fault a child is forked that plants it and runs the tests that call the
function it is in, the quickest first, until one fails. What no test finds is a survivor; those that are listed
with a reason in `tests/survivors.toml` change no result, or are in what other processes test.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import time
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from faults import Fault, faults_of

ROOT = Path(__file__).resolve().parents[2]
SURVIVORS = ROOT / "tests" / "survivors.toml"
CORE = (
    "mlot/backends/numpy/equations.py",
    "mlot/backends/numpy/text.py",
    "mlot/backends/numpy/topk.py",
    "mlot/backends/torch/costs.py",
    "mlot/backends/torch/standardize.py",
    "mlot/backends/torch/statistics.py",
    "mlot/backends/torch/transport.py",
    "mlot/backends/torch/text.py",
    "mlot/backends/torch/topk.py",
    "mlot/backends/torch/uld.py",
    "mlot/backends/torch/uld_counts.py",
    "mlot/backends/torch/read.py",
    "mlot/backends/torch/backend.py",
)
TESTS = (
    "tests/core/test_closed_forms.py",
    "tests/core/test_corners.py",
    "tests/core/test_corners_teachers.py",
    "tests/core/test_corners_transport.py",
    "tests/core/test_golden.py",
    "tests/core/test_gradients.py",
    "tests/core/test_impossible_tokens.py",
    "tests/core/test_invariants.py",
    "tests/core/test_kernel_paths.py",
    "tests/core/test_matching.py",
    "tests/core/test_no_number.py",
    "tests/core/test_one_pass.py",
    "tests/core/test_precision.py",
    "tests/core/test_teachers.py",
    "tests/core/test_text_loss.py",
    "tests/core/test_text_targets.py",
    "tests/core/test_fitted_tail.py",
    "tests/core/test_topk.py",
    "tests/core/test_transport.py",
    "tests/core/test_uld_counts.py",
    "tests/core/test_zero_mass.py",
    "tests/backends/test_agreement.py",
    "tests/backends/test_backends.py",
    "tests/backends/test_device_paths.py",
    "tests/backends/test_second_derivatives.py",
)
#: What the tests of a child may take, as a multiple of what they take without a fault, and seconds more: a
#: child that hangs is ended, for a loop without an end is found, too.
PATIENCE = (4.0, 20.0)
LEAST_FOUND = 0.95
#: Exit status of a child in which nothing could be planted.
BROKEN = 3


class Planter:
    """Runs the collected tests once as they are, then once for each fault."""

    def __init__(self, faults: list[Fault], known: set[str], seconds: float, workers: int) -> None:
        self.faults, self.known, self.seconds, self.workers = faults, known, seconds, workers
        self.limits: dict[tuple[str, str], float] = {}
        self.found: list[str] = []
        self.survived: list[str] = []
        self.failed: list[str] = []

    def pytest_collection(self) -> None:
        from hypothesis import Phase, settings  # not before pytest rewrites its asserts

        settings.register_profile(
            "mutation",
            settings(derandomize=True, phases=(Phase.explicit, Phase.generate), max_examples=15),
        )
        settings.load_profile("mutation")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: Any) -> bool:
        for file in {fault.file for fault in self.faults}:
            importlib.import_module(file.removesuffix(".py").replace("/", "."))
        read, write = os.pipe()
        if os.fork() == 0:
            os.close(read)
            _silence()
            with os.fdopen(write, "w") as file:
                json.dump(self._reached(session.items), file)
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as file:
            content = file.read()
        os.wait()
        failed, seconds, reached = json.loads(content or '[["all"], [], []]')
        if failed:
            raise pytest.UsageError(f"without a fault, the tests must pass; these fail: {failed}")
        tests: dict[tuple[str, str], list[int]] = defaultdict(list)
        for n in sorted(range(len(session.items)), key=seconds.__getitem__):
            for file_name, function in reached[n]:
                tests[file_name, function].append(n)
        print(
            f"{len(session.items)} tests pass in {sum(seconds):.0f} s; {len(self.faults)} faults", flush=True
        )
        self.limits = {
            place: PATIENCE[1] + PATIENCE[0] * sum(seconds[n] for n in chosen)
            for place, chosen in tests.items()
        }
        control = Fault("", "", "nothing", lambda: None)
        self._plant_all(session.items, {("", ""): list(range(len(session.items)))}, [control])
        if self.found:
            raise pytest.UsageError("without a fault, the tests must pass in a child, too")
        self.survived.clear()
        self._plant_all(session.items, tests, self.faults)
        return True

    def _reached(self, items: Sequence[Any]) -> tuple[list[str], list[float], list[list[tuple[str, str]]]]:
        """Tests that fail, and of each its seconds and the functions that it calls."""
        paths = {str(ROOT / fault.file): fault.file for fault in self.faults}
        called: set[tuple[str, str]] = set()

        def note(frame: FrameType, event: str, _: object) -> None:
            if event == "call" and frame.f_code.co_filename in paths:
                called.add((paths[frame.f_code.co_filename], frame.f_code.co_qualname.split(".<locals>")[0]))

        seconds, reached = [], []
        for n, item in enumerate(items):
            called.clear()
            started = time.perf_counter()
            sys.setprofile(note)
            self._run(item, items[n + 1] if n + 1 < len(items) else None)
            sys.setprofile(None)
            seconds.append(time.perf_counter() - started)
            reached.append(sorted(called))
        return self.failed, seconds, reached

    @staticmethod
    def _run(item: Any, following: Any) -> None:
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

    def _plant_all(
        self, items: Sequence[Any], tests: dict[tuple[str, str], list[int]], faults: Sequence[Fault]
    ) -> None:
        waiting, running = list(reversed(faults)), {}
        until = time.monotonic() + self.seconds
        while running or (waiting and time.monotonic() < until):
            while waiting and len(running) < self.workers and time.monotonic() < until:
                fault = waiting.pop()
                chosen = [items[n] for n in tests[fault.file, fault.function]]
                child = os.fork()
                if child == 0:
                    self._child(fault, chosen)
                running[child] = (fault, time.monotonic())
            child, status = os.waitpid(-1, os.WNOHANG)
            if child:
                fault, _ = running.pop(child)
                if os.waitstatus_to_exitcode(status) == BROKEN:
                    raise RuntimeError(f"cannot be planted: {fault.name}")
                (self.survived if status == 0 else self.found).append(fault.name)
                if status == 0 and fault.file:
                    print("no fault" if fault.name in self.known else "SURVIVED", fault.name, flush=True)
            for pid, (fault, started) in running.items():
                if time.monotonic() - started > self.limits.get((fault.file, fault.function), 600.0):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)

    def _child(self, fault: Fault, items: Sequence[Any]) -> None:
        """Plant a fault and leave with 1 as soon as a test fails, with 0 if none does."""
        _silence()
        try:
            fault.plant()
        except BaseException:
            os._exit(BROKEN)
        try:
            for n, item in enumerate(items):
                self._run(item, items[n + 1] if n + 1 < len(items) else None)
                if self.failed:
                    os._exit(1)
        except BaseException:
            os._exit(1)
        os._exit(0)


def _silence() -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 where a survivor has no reason, or too few faults are found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", default=CORE, help="where to plant faults (the numerical core)")
    parser.add_argument("--tests", nargs="*", default=TESTS)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="no fault is planted after that time"
    )
    parser.add_argument("--sample", type=int, help="this many faults of all, drawn at random")
    parser.add_argument(
        "--again", type=Path, help="only what a file with this command's output says survived"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(argv)
    reasons = tomllib.loads(SURVIVORS.read_text(encoding="utf-8")) if SURVIVORS.exists() else {}
    known = {name for group in reasons.get("survivors", []) for name in group["changes"]}
    faults = [fault for name in options.files for fault in faults_of(ROOT / name, ROOT)]
    outdated = sorted(
        name
        for name in known
        if name.split("::")[0] in options.files and name not in {fault.name for fault in faults}
    )
    if options.again is not None:
        lines = options.again.read_text(encoding="utf-8").splitlines()
        faults = [fault for fault in faults if f"SURVIVED {fault.name}" in lines]
    random.Random(options.seed).shuffle(faults)
    planter = Planter(faults[: options.sample], known, options.seconds, options.workers)
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow and not gpu", "-s"]
    status = pytest.main([*arguments, *options.tests], plugins=[planter])
    if status != pytest.ExitCode.OK:
        return int(status)
    open_ones = [name for name in planter.survived if name not in known]
    faulty = len(planter.found) + len(open_ones)
    share = len(planter.found) / faulty if faulty else 1.0
    print(f"{len(planter.found)} of {faulty} faults found, {share:.1%}; ", end="")
    print(f"{len(planter.survived) - len(open_ones)} changes are no faults, as argued in {SURVIVORS.name}")
    for name in outdated:
        print(f"no longer in the source: {name}")
    return int(bool(outdated) or share < LEAST_FOUND)


if __name__ == "__main__":
    sys.exit(main())
