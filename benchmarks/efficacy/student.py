"""One trial: a student from its start to what it can do on held-out text."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks.efficacy.evaluation import measure
from benchmarks.efficacy.material import Material
from benchmarks.efficacy.methods import BY_NAME, Batch
from benchmarks.efficacy.training import batches, fit, order
from benchmarks.efficacy.trials import Trial


def train(trial: Trial, material: Material) -> dict[str, Any]:
    """Train and measure; the trial, its measurements and its costs, for JSON."""
    size, method = material.size, BY_NAME[trial.method]
    started, used = time.perf_counter(), time.process_time()
    model = material.student(trial.start, trial.seed)
    inputs = _Inputs(trial, material)
    seen = 0

    def loss(step: int) -> Tensor:
        nonlocal seen
        ids, batch = inputs.batch(step)
        seen += int((batch.labels != -100).sum())
        return method.loss(model(input_ids=ids).logits, batch, trial.alpha, size.k)

    first, last = fit(model, loss, steps=size.steps, learning_rate=trial.learning_rate)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    split = "validation" if trial.purpose == "search" else "test"
    return {
        **asdict(trial),
        **measure(model, material.held_out(split, "student")),
        "steps": size.steps,
        "windows": size.steps * size.batch,
        "teacher's windows": size.steps * inputs.written_share,
        "targets": seen,
        "first_loss": first,
        "last_loss": last,
        "seconds": round(seconds, 3),
        "processor_seconds": round(used, 3),
    }


def written(alpha: float, batch: int) -> int:
    """Windows of a batch that the teacher wrote, so that alpha weighs its text as it weighs other terms."""
    return min(max(round(batch * alpha / (1 + alpha)), 1), batch - 1)


class _Inputs:
    """Batches of a trial, of all methods the same windows in the same order."""

    def __init__(self, trial: Trial, material: Material) -> None:
        size, self.needs = material.size, BY_NAME[trial.method].needs
        self.size, self.device = size, material.device
        self.text = material.tokens("student", "student")
        # The seed draws windows of the pool, and then their order.
        drawn = order(len(self.text), size.windows, trial.seed)
        self.indices = [drawn[some] for some in batches(len(drawn), size.batch, size.steps, trial.seed + 1)]
        self.written_share = 0
        if self.needs in ("logits", "traces"):
            self.teacher_labels = material.tokens("student", "teacher").labels
            self.taught = material.taught(trial.gap)
            self.pairs = material.pairs
        if self.needs == "text":
            self.written_share = written(trial.alpha, size.batch)
            self.generated = material.generated(trial.gap)
            # Only what continues one of the drawn windows.
            pool = len(self.text)
            own = torch.cat([drawn + start for start in range(0, len(self.generated), pool)])
            wanted = self.written_share * size.steps
            self.written = own[order(len(own), wanted, trial.seed + 1)].split(self.written_share)

    def batch(self, step: int) -> tuple[Tensor, Batch]:
        """The student's tokens of a step, and what its loss needs."""
        index = self.indices[step]
        if self.needs == "text":
            # The first windows of the batch that all methods see stay; the teacher's replace the others.
            index = index[: self.size.batch - self.written_share]
            other = self.written[step]
            ids = torch.cat([self.text.ids[index], self.generated.ids[other]])
            labels = torch.cat([self.text.labels[index], self.generated.labels[other]])
            return ids, Batch(labels)
        ids, labels = self.text.ids[index], self.text.labels[index]
        if self.needs == "logits":
            logits = torch.from_numpy(self.taught.logits[index.numpy()]).to(self.device)
            return ids, Batch(labels, self.teacher_labels[index], logits)
        if self.needs == "traces":
            traces = self.taught.traces.map(lambda array: array[index])
            return ids, Batch(labels, traces=traces, pairs=self.pairs[index])
        return ids, Batch(labels)
