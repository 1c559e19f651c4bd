"""Means of the terms of the loss between two logs; checkpoints carry them along."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from mlot import MultiLevelOTResult, TextPlan

#: Names under which diagnostics are logged.
DIAGNOSTICS = ("teacher_kept_mass", "student_kept_mass", "matching_gap", "marginal_error", "paired_share")
#: Those that are there where the map of both vocabularies is known, or the plan is from the text.
TEXT_DIAGNOSTICS = ("same_bytes", "served_mass")


class RunningTerms(TrainerCallback, ExportableState):
    """Sums of terms since the last log, and the transports of the last step.

    A callback, since that is how transformers writes something into a checkpoint.

    Args:
        since: step after which the sums begin.
        sums: the sums.
        loss: sum of the loss that the Trainer itself keeps, where it was saved.
    """

    def __init__(self, since: int = 0, sums: dict[str, float] | None = None, loss: float = 0.0) -> None:
        self.since = since
        self.sums: dict[str, float | Tensor] = dict(sums or {})
        self.loss = loss
        self.logs = 0
        self.starting = True
        self.plan: TextPlan | None = None
        self._results: list[tuple[MultiLevelOTResult, Tensor]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Training starts, for the first time, once more, or from a checkpoint."""
        self.starting = True

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        sums = {name: float(value) for name, value in self.sums.items()}
        return {
            "args": {"since": self.since, "sums": sums, "loss": self.loss},
            "attributes": {"logs": self.logs},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        self.since = int(state["args"]["since"])
        self.sums = dict(state["args"]["sums"])
        self.loss = float(state["args"]["loss"])
        self.logs = int(state["attributes"]["logs"])
        self._results = []

    def begin(self, step: int) -> None:
        """Forget everything; sums begin after ``step``."""
        self.since, self.sums, self.loss, self._results = step, {}, 0.0, []

    def begin_step(self) -> None:
        """Forget the transports of the step before."""
        self._results = []

    def add(self, **terms: Tensor) -> None:
        """Add the terms of a micro-batch, without waiting for the device."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()

    def keep(self, result: MultiLevelOTResult, positions: Tensor) -> None:
        """Keep a micro-batch's transport, from which diagnostics can be computed until the next step.

        Args:
            result: of the transport.
            positions: number of the student's positions in it.
        """
        terms = {name: getattr(result, name).detach() for name in ("loss", "had", "sl", "sd")}
        self._results.append((replace(result, **terms, plan=None, coupling=None), positions))

    def diagnostics(self) -> Tensor:
        """Sums and counts behind the diagnostics of the last step, ``(7, 2)``; waits for the device."""
        names = (*DIAGNOSTICS, *TEXT_DIAGNOSTICS)
        paired = names.index("paired_share")
        table = torch.zeros(len(names), 2, dtype=torch.float64)
        for result, positions in self._results:
            figures = result.diagnostics(self.plan)
            for row, name in enumerate(names):
                if row == paired:
                    continue
                values = torch.as_tensor(getattr(figures, name), dtype=torch.float64)
                # A sequence without pairs has nothing to be matched or transported.
                values = values[torch.as_tensor(figures.pairs) > 0]
                values = values[~values.isnan()]
                table[row] += torch.stack([values.sum(), torch.tensor(float(len(values)))])
            table[paired] += torch.tensor([float(figures.pairs.sum()), float(positions)])
        return table
