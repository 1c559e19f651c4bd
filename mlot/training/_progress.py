"""What a training shows while it lasts."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from mlot._progress import Reporter


class TrainingProgress(TrainerCallback):
    """Shows a training: a bar on a terminal, a line at each evaluation elsewhere.

    Args:
        reporter: where it is shown.
        name: of what is trained.
    """

    def __init__(self, reporter: Reporter, name: str) -> None:
        self._reporter = reporter
        self._name = name
        self._task = reporter.progress.add_task(name, total=None)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._reporter.progress.update(self._task, total=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._reporter.progress.update(self._task, completed=state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        result = f"{kwargs['metrics']['eval_bits_per_byte']:.3f} bits per byte"
        if self._reporter.console.is_terminal:
            self._reporter.progress.update(self._task, description=f"{self._name}: {result}")
        else:
            self._reporter.say(f"{self._name}: step {state.global_step} of {state.max_steps}, {result}")
