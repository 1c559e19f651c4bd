"""The picture of the landing page: the plan between the predictions of two models of different lengths."""

from __future__ import annotations

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure

import mlot

_VOCABULARY = 28


def _traces(positions: int, seed: int) -> mlot.Traces:
    """Predictions whose heaviest token moves through the vocabulary, with columns in their own order."""
    rng = np.random.default_rng(seed)
    along = np.linspace(0, 1, positions)[:, None]
    centres = 3 + (_VOCABULARY - 7) * (along + 0.08 * np.sin(6 * along + seed))
    logits = -((np.arange(_VOCABULARY) - centres) ** 2) / 5 + 0.25 * rng.normal(size=(positions, _VOCABULARY))
    traces = mlot.select(logits[None], k=None)
    in_order = np.argsort(traces.columns, axis=1)
    return mlot.get_backend("numpy").keep(traces, in_order)


def plan() -> Figure:
    """Plan of mass, with the probabilities of both models along its sides."""
    student, teacher = _traces(20, 1), _traces(15, 0)
    cost = mlot.sequence_cost(student, teacher, temperature=None)[0]
    found = mlot.sinkhorn(cost, epsilon=0.1, n_iter=20).plan
    figure = pyplot.figure(figsize=(6.4, 4.2))
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 2.4), height_ratios=(1, 1.9), wspace=0.02, hspace=0.02)
    top, left, middle = (figure.add_subplot(grid[where]) for where in ((0, 1), (1, 0), (1, 1)))
    middle.imshow(found, aspect="auto", cmap="Blues", interpolation="nearest")
    top.imshow(np.exp(student.log_probs[0]).T, aspect="auto", cmap="Oranges", interpolation="nearest")
    left.imshow(np.exp(teacher.log_probs[0]), aspect="auto", cmap="Greens", interpolation="nearest")
    for axis in (top, left, middle):
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_visible(True)
    top.set_title("student: a column for each position", fontsize=10)
    left.set_ylabel("teacher: a row for each position")
    middle.set_xlabel("the plan $P$ between them")
    return figure
