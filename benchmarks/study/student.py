"""One trial: a student from its start to its bits per byte on held-out text."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.efficacy.training import batches, fit, mean_cross_entropy, order
from benchmarks.study.material import Material
from benchmarks.study.methods import BY_NAME, VARIANTS, Batch
from benchmarks.study.teacher import Taught
from benchmarks.study.trials import Trial

#: Called with the model and the number of steps done.
Watch = Callable[[Any, int], None]


def train(trial: Trial, material: Material, taught: Taught, watch: Watch | None = None) -> dict[str, Any]:
    """Train and measure; the trial, its measurement and its costs, for JSON."""
    (setting, name, amount), (rate, alpha, passes) = trial.cell, trial.choice
    method = BY_NAME[name]
    started, used = time.perf_counter(), time.process_time()
    model = material.student(setting, trial.seed)
    inputs = Inputs(trial, material, taught)

    def loss(step: int) -> Tensor:
        if watch is not None:
            watch(model, step)
        ids, batch = inputs.batch(step)
        logits = model(input_ids=ids).logits
        plain = mean_cross_entropy(logits, batch.labels) if method.cross_entropy else logits.new_zeros(())
        return plain if method.term is None else plain + alpha * method.term(logits, batch)

    fit(model, loss, steps=inputs.steps, learning_rate=rate)
    if watch is not None:
        watch(model, inputs.steps)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    split = "validation" if trial.purpose == "search" else "test"
    return {
        "purpose": trial.purpose,
        "setting": setting.name,
        "method": name,
        "amount": amount,
        "learning_rate": rate,
        "alpha": alpha,
        "passes": passes,
        "seed": trial.seed,
        "bits_per_byte": material.measure(model, setting.tokenizer, split),
        "steps": inputs.steps,
        "seconds": round(seconds, 3),
        "processor_seconds": round(used, 3),
    }


def written(alpha: float, batch: int) -> int:
    """Windows of a batch that the teacher wrote, so that alpha weighs its text as it weighs other terms."""
    return min(max(round(batch * alpha / (1 + alpha)), 1), batch - 1)


class Inputs:
    """Batches of a trial, of all methods the same windows in the same order."""

    def __init__(self, trial: Trial, material: Material, taught: Taught) -> None:
        (setting, name, amount), choice = trial.cell, trial.choice
        self.needs, self.taught = BY_NAME[name].needs, taught
        self.student = material.tokens(setting.tokenizer, "student", "student")
        self.teacher = material.tokens(setting.tokenizer, "student", "teacher")
        self.number, batch = material.count(setting.tokenizer, amount), material.size.batch
        self.steps = -(-self.number * choice.passes // batch)
        self.indices = list(batches(self.number, batch, self.steps, trial.seed))
        self.own = batch
        if "written" in self.needs:
            share = written(choice.alpha, batch)
            self.own = batch - share
            self.others = order(len(taught.written), share * self.steps, trial.seed).split(share)

    def batch(self, step: int) -> tuple[Tensor, Batch]:
        """The student's tokens of a step, and what its loss needs."""
        index, needs = self.indices[step].to(self.student.ids.device), self.needs
        if "written" in needs:
            # The first windows of the batch that all methods see stay; the teacher's replace the others.
            return _both(self.student[index[: self.own]], self.taught.written[self.others[step]])
        return self.of(index)

    def of(self, index: Tensor) -> tuple[Tensor, Batch]:
        """The same of given windows."""
        needs, taught, mine = self.needs, self.taught, self.student[index]
        if not needs:
            return mine.ids, Batch(mine.labels)
        batch = Batch(
            mine.labels,
            self.teacher.labels[index],
            logits=taught.logits[index.to(taught.logits.device)].float() if "logits" in needs else None,
            traces=taught.traces.map(lambda array: array[index]) if "traces" in needs else None,
            pairs=taught.pairs[index] if "traces" in needs else None,
            targets={
                name: taught.targets(name).map(lambda array: array[index])
                for name in VARIANTS
                if name in needs
            },
            text=taught.text(index) if "positions" in needs else None,
            projection=taught.projection if "positions" in needs else None,
        )
        return mine.ids, batch


def _both(first: Any, second: Any) -> tuple[Tensor, Batch]:
    """Rows of two sources, padded to one length."""
    length = max(first.ids.shape[1], second.ids.shape[1])
    ids, labels = (
        torch.cat(
            [
                torch.nn.functional.pad(rows, (0, length - rows.shape[1]), value=value)
                for rows in (getattr(first, name), getattr(second, name))
            ]
        )
        for name, value in (("ids", 0), ("labels", -100))
    )
    return ids, Batch(labels)
