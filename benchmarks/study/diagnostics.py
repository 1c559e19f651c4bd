"""What each loss asks of the same student on the same windows, on its way by cross-entropy alone."""

from __future__ import annotations

from typing import Any

import torch

import mlot
from benchmarks.study.material import Material
from benchmarks.study.methods import CE, FULL, METHODS
from benchmarks.study.student import Inputs, train
from benchmarks.study.teacher import Taught
from benchmarks.study.trials import Cell, Choice, Trial

#: Shares of the training at which it is looked, and windows that are looked at.
_AT, _WINDOWS = (0.0, 0.25, 0.5, 1.0), 32


def diagnose(material: Material, taught: Taught, choice: Choice) -> list[dict[str, Any]]:
    """Train a student by cross-entropy alone, and look at what the losses ask of it on the way.

    Args:
        material: windows and students.
        taught: what the teacher says.
        choice: settings of cross-entropy alone.

    Returns:
        For each look its ``step``, for each method the cosine of the gradient of its term by the logits with
        that of the plan from the text, and for the paper's matchings the share of the kept mass that they put
        on the student's token of the same bytes.
    """
    size = material.size
    setting = size.settings[0]
    seed = size.tuning_seeds[0]
    trial = Trial("search", Cell(setting, CE, size.compared), choice, seed)
    steps = Inputs(trial, material, taught).steps
    at = {round(share * steps) for share in _AT}
    looks: list[dict[str, Any]] = []

    def watch(model: Any, step: int) -> None:
        if step in at:
            looks.append({"step": step, **_look(model, material, taught, seed)})

    train(trial, material, taught, watch)
    return looks


def _look(model: Any, material: Material, taught: Taught, seed: int) -> dict[str, Any]:
    size = material.size
    setting = size.settings[0]
    number = min(_WINDOWS, material.count(setting.tokenizer, size.compared))
    index = torch.arange(number, device=material.device)
    gradients, same_bytes = {}, {}
    for method in METHODS:
        if method.term is None or not method.cross_entropy:
            continue
        trial = Trial("search", Cell(setting, method.name, size.compared), Choice(0.0, 1.0, 1), seed)
        ids, batch = Inputs(trial, material, taught).of(index)
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        logits = logits.float().requires_grad_()
        (gradient,) = torch.autograd.grad(method.term(logits, batch), logits)
        gradients[method.name] = gradient.double().flatten()
        if batch.traces is not None:
            pairs = batch.pairs if method.name == "optimal-boundary" else None
            result = mlot.multi_level_ot(
                logits.detach(), batch.traces, student_mask=batch.masks["student_mask"], pairs=pairs
            )
            share = result.diagnostics(taught.vocabulary.plan()).same_bytes
            same_bytes[method.name] = float(share.mean())
    whole = gradients[FULL]
    cosines = {
        name: float(torch.nn.functional.cosine_similarity(gradient, whole, dim=0))
        for name, gradient in gradients.items()
    }
    return {"cosine": cosines, "same_bytes": same_bytes}
