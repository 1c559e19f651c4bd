"""What TRL's GOLD trainer gives to its loss: settings, labels, byte offsets, and the steps they belong to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlot import _checks
from mlot.align import TokenBytes, VocabularyMap, batch_pairs, text_positions
from mlot.text import POSITION_FIELDS

_WEIGHTS = ("uld_crossentropy_weight", "uld_distillation_weight")
_TEMPERATURES = ("uld_student_temperature", "uld_teacher_temperature")
_FLAGS = ("uld_skip_student_eos", "uld_skip_teacher_eos", "use_extended_uld")
_STRATEGIES = ("observed", "bayesian")
_IGNORE = -100


def check_config(config: Any) -> None:
    """Require the settings of ULD."""
    missing = [
        name
        for name in (*_WEIGHTS, *_TEMPERATURES, *_FLAGS, "uld_token_merge_strategy")
        if not hasattr(config, name)
    ]
    if missing:
        raise TypeError(
            f"config: expected TRL's GOLDConfig, got {type(config).__name__} without {', '.join(missing)}"
        )
    for name in _WEIGHTS:
        _checks.number(f"config.{name}", getattr(config, name), allow_zero=True)
    for name in _TEMPERATURES:
        _checks.number(f"config.{name}", getattr(config, name))
    for name in _FLAGS:
        _checks.flag(f"config.{name}", getattr(config, name))
    _checks.choice("config.uld_token_merge_strategy", config.uld_token_merge_strategy, _STRATEGIES)
    if getattr(config, "uld_use_hybrid_loss", False):
        raise ValueError(
            "config.uld_use_hybrid_loss: expected False, since transport matches all columns alike, got True"
        )


def check_labels(name: str, logits: Any, labels: Any) -> None:
    if not isinstance(logits, Tensor):
        raise TypeError(f"{name}_logits: expected a torch tensor, got {type(logits).__name__}")
    if logits.dim() != 3:
        raise ValueError(f"{name}_logits: expected (B, T, V), got shape {tuple(logits.shape)}")
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name}_labels: expected a torch tensor, got {type(labels).__name__}")
    if labels.shape != logits.shape[:2]:
        raise ValueError(
            f"{name}_labels: expected shape {tuple(logits.shape[:2])}, as {name}_logits, "
            f"got {tuple(labels.shape)}"
        )


def checked_offsets(name: str, offsets: Any, labels: Tensor) -> Tensor:
    if offsets is None:
        raise ValueError(f"{name}_byte_offsets: expected (B, T, 2) with use_extended_uld=True, got None")
    if not isinstance(offsets, Tensor):
        raise TypeError(f"{name}_byte_offsets: expected a torch tensor, got {type(offsets).__name__}")
    if offsets.shape != (*labels.shape, 2):
        raise ValueError(
            f"{name}_byte_offsets: expected shape {(*labels.shape, 2)}, got {tuple(offsets.shape)}"
        )
    return offsets


def divided(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits / temperature


def answer(labels: Tensor, skip_last: bool) -> Tensor:
    """Tokens of the answer, without the last one if that is to be skipped."""
    wanted = labels != _IGNORE
    return wanted & ~first(wanted.flip(1)).flip(1) if skip_last else wanted


def predicting(mask: Tensor) -> Tensor:
    """Rows that predict the tokens of a mask."""
    return torch.cat([mask[:, 1:], mask[:, :1] & False], 1)


def first(mask: Tensor) -> Tensor:
    """Only the first true value of each row."""
    return mask & (mask.cumsum(1) == 1)


def byte_pairs(
    student_mask: Tensor, teacher_mask: Tensor, student_offsets: Tensor, teacher_offsets: Tensor
) -> Tensor:
    """Pairs ``(B, P, 2)`` of counting rows whose prefixes end at the same byte of the answer."""
    sides = [
        (mask.cpu().numpy(), offsets.cpu().numpy())
        for mask, offsets in ((student_mask, student_offsets), (teacher_mask, teacher_offsets))
    ]
    rows = []
    for n in range(len(student_mask)):
        (student_at, student_ends), (teacher_at, teacher_ends) = (
            boundaries(mask[n], offsets[n]) for mask, offsets in sides
        )
        _, i, j = np.intersect1d(student_ends, teacher_ends, return_indices=True)
        rows.append(np.stack([student_at[i], teacher_at[j]], axis=1))
    return torch.from_numpy(batch_pairs(rows))


def answer_positions(student: Any, teacher: Any, vocabulary: VocabularyMap) -> Any:
    """Text positions ``(P, 9)`` of one answer, by the rows of both models; sides are answer, ids, offsets."""
    if not (student[0].any() and teacher[0].any()):
        return np.zeros((0, len(POSITION_FIELDS)), np.int64)
    total = int(max(offsets[learnt].max() for learnt, _, offsets in (student, teacher)))
    (s_tokens, s_first), (t_tokens, t_first) = (answer_tokens(side, total) for side in (student, teacher))
    text = bytearray(total)
    for token, start, end in zip(t_tokens.ids, t_tokens.starts, t_tokens.ends, strict=True):
        spelled = vocabulary.teacher_bytes[token] or b""
        if end > start:
            text[start:end] = spelled[-(end - start) :].ljust(end - start, b"\0")
    rows = text_positions(s_tokens, t_tokens, bytes(text), vocabulary)
    rows[:, 0] += s_first - 1
    rows[:, 1] += t_first - 1
    return rows[(rows[:, :2] >= 0).all(axis=1)]  # the first token of a sequence is predicted by no row


def answer_tokens(side: Any, total: int) -> tuple[TokenBytes, int]:
    """Tokens of an answer after one that opens it, and the row of the first."""
    learnt, ids, offsets = side
    at = np.flatnonzero(learnt)
    starts, ends = np.maximum.accumulate(np.clip(offsets[at], 0, total), axis=0).T
    starts, ends = np.append(0, starts), np.append(0, ends)
    special = ends <= starts
    return TokenBytes(np.append(ids[at[0] - 1], ids[at]), starts, ends, special, total), int(at[0])


def boundaries(mask: Any, offsets: Any) -> tuple[Any, Any]:
    """Counting rows at which a byte of the answer is first reached, or its start, and those bytes.

    A token without width inside the answer closes it: what its row predicts lies beyond the text. Before the
    answer all ends are 0; the last such row is the one that predicts its first token.
    """
    starts, ends = offsets[:, 0], offsets[:, 1]
    at = np.flatnonzero(mask & ((ends > starts) | (ends == 0)))
    last = np.flatnonzero(np.diff(ends[at], append=-1) != 0)
    return at[last], ends[at][last]


class Steps:
    """Steps of a GOLD trainer: the tokens of each, and means of the terms of the loss for its logs.

    Args:
        trainer: a ``GOLDTrainer``.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._slices: Any = None
        self._items: Tensor | None = None
        self._sums: dict[str, Tensor] = {}
        self._held_out: list[dict[str, Tensor]] = []
        self._since = int(trainer.state.global_step)

    @property
    def _over_processes(self) -> bool:
        args = self._trainer.args
        return bool(args.world_size > 1 and args.average_tokens_across_devices)

    def divisor(self) -> tuple[Tensor | None, float]:
        """What each sum of a micro-batch is divided by, ``None``: its own positions; a factor on the loss.

        The divisor is the number of tokens that are learnt in all micro-batches of a step, on all processes,
        whose gradients are averaged later on.
        """
        trainer = self._trainer
        if not trainer.model.training:
            return None, 1.0
        slices = getattr(trainer, "_buffered_inputs", None)
        if not slices or not all(isinstance(each, dict) and "labels" in each for each in slices):
            return None, 1.0 / max(1, getattr(trainer, "current_gradient_accumulation_steps", 1))
        if slices is not self._slices:
            count = torch.stack([each["labels"][:, 1:].ne(_IGNORE).sum() for each in slices]).sum()
            count = count.to(trainer.accelerator.device)
            if self._over_processes:
                count = trainer.accelerator.gather(count[None]).sum()
            self._slices, self._items = slices, count.clamp(min=1)
        return self._items, float(trainer.accelerator.num_processes) if self._over_processes else 1.0

    def add(self, terms: dict[str, Tensor], factor: float) -> None:
        """Add the terms of a micro-batch, or of a batch of held-out text."""
        if not self._trainer.model.training:
            self._held_out.append(terms)
            return
        for name, value in terms.items():
            weighted = value if name == "pairs" else value * factor
            self._sums[name] = self._sums.get(name, torch.zeros_like(weighted)) + weighted

    def means(self, logs: dict[str, float]) -> dict[str, float]:
        """Means for an entry of the log: over its steps, or over the batches of an evaluation."""
        step = int(self._trainer.state.global_step)
        if "loss" in logs and step > self._since and self._sums:
            made = self._averaged(self._sums, step - self._since)
            self._sums, self._since = {}, step
            return made
        name = next((name for name in logs if name.endswith("_loss")), None)
        if name is None or "loss" in logs or not self._held_out:
            return {}
        sums = {
            key: torch.stack([each[key].double() for each in self._held_out]).sum()
            for key in self._held_out[0]
        }
        made = self._averaged(sums, len(self._held_out))
        self._held_out = []
        return {name.removesuffix("loss") + key: value for key, value in made.items()}

    def _averaged(self, sums: dict[str, Tensor], count: int) -> dict[str, float]:
        values = torch.stack([value.detach().double().reshape(()) for value in sums.values()])
        processes = 1
        if self._trainer.args.world_size > 1:
            values = self._trainer.accelerator.gather(values[None]).sum(dim=0)
            processes = self._trainer.args.world_size
        return {
            name: value / count / (1 if name == "pairs" else processes)
            for name, value in zip(sums, values.tolist(), strict=True)
        }


def follow(trainer: Any) -> Steps:
    """Let the logs of a trainer have the terms of its loss."""
    steps = Steps(trainer)
    # The loss divides by the tokens of the whole step, and the trainer must not divide it again.
    trainer.loss_is_scaled_for_ga = True
    if "log" not in vars(trainer):
        trainer.log = _logging(trainer, trainer.log)
    return steps


def _logging(trainer: Any, log: Callable[..., None]) -> Callable[..., None]:
    def with_terms(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        steps = getattr(trainer.uld_loss_fn, "steps", None)
        if isinstance(steps, Steps):
            logs.update(steps.means(logs))
        log(logs, *args, **kwargs)

    return with_terms
