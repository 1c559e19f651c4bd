"""What a run shows while it lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback
from transformers.utils import logging


class Reporter:
    """Progress bars on a terminal, a line at each evaluation elsewhere.

    Args:
        console: where they go.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (
            TextColumn("{task.description:<33}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)

    def say(self, message: str) -> None:
        """Print a line."""
        self.console.print(message, soft_wrap=True, highlight=False, markup=False)

    def counter(self, name: str) -> Callable[[int, int], None]:
        """Make a function that shows how many of how many are done."""
        task = self.progress.add_task(name, total=None)

        def count(done: int, total: int) -> None:
            self.progress.update(task, completed=done, total=total)
            if done == total:
                self.say(f"{name}: {total} windows")

        return count

    def callback(self, name: str) -> TrainerCallback:
        """Make a callback that shows the training of that name."""
        return _Bar(self, name)


class _Bar(TrainerCallback):
    def __init__(self, reporter: Reporter, name: str) -> None:
        self._reporter = reporter
        self._name = name
        self._task = reporter.progress.add_task(name, total=None)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._reporter.progress.update(self._task, total=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._reporter.progress.update(self._task, completed=state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = f"{kwargs['metrics']['eval_bits_per_byte']:.3f} bits per byte"
        if self._reporter.console.is_terminal:
            self._reporter.progress.update(self._task, description=f"{self._name}: {found}")
        else:
            self._reporter.say(f"{self._name}: step {state.global_step} of {state.max_steps}, {found}")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing below our own progress."""
    switches = cast(Any, logging)  # its switches carry no annotations
    level, bars = switches.get_verbosity(), switches.is_progress_bar_enabled()
    switches.set_verbosity_error()
    switches.disable_progress_bar()
    try:
        yield
    finally:
        switches.set_verbosity(level)
        if bars:
            switches.enable_progress_bar()
