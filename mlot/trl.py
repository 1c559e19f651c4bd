"""MultiLevelOT in TRL's GOLD trainer: a loss with the constructor and the call of its ``ULDLoss``.

A run that distils by ULD across tokenizers switches in one line, after the trainer is made:

.. code-block:: python

    trainer = GOLDTrainer(model, teacher_model=teacher, args=GOLDConfig(use_uld_loss=True, ...), ...)
    trainer.uld_loss_fn = mlot.trl.MultiLevelOTLoss.for_trainer(trainer)

Neither this module nor the loss imports TRL; the tests hold it to the one that is installed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlot import _checks
from mlot._result import MultiLevelOTResult
from mlot.align import TokenBytes, VocabularyMap, batch_pairs, batch_text_positions, text_positions
from mlot.config import MultiLevelOTConfig, checked_config
from mlot.losses import multi_level_ot
from mlot.masks import mask_from_labels
from mlot.nn import mean_cross_entropy
from mlot.text import POSITION_FIELDS, TextPositions

__all__ = ["MultiLevelOTLoss"]

_WEIGHTS = ("uld_crossentropy_weight", "uld_distillation_weight")
_TEMPERATURES = ("uld_student_temperature", "uld_teacher_temperature")
_FLAGS = ("uld_skip_student_eos", "uld_skip_teacher_eos", "use_extended_uld")
_STRATEGIES = ("observed", "bayesian")
_IGNORE = -100


class MultiLevelOTLoss(nn.Module):
    r"""Cross-entropy plus multi-level optimal transport, called as GOLD calls its ``ULDLoss``.

    .. math:: \mathcal L = w_\mathrm{CE}\,\mathrm{CE}
              + w\,(\mathrm{HAD} + \beta\,\mathrm{SL} + \gamma\,\mathrm{SD})

    Both parts are means over positions of the batch. Of GOLD's settings, those of ULD keep their meaning:

    - ``uld_crossentropy_weight`` and ``uld_distillation_weight`` are the weights. GOLD's defaults are 0 and
      1; the paper's are 1 and 0.15.
    - ``uld_student_temperature`` and ``uld_teacher_temperature`` divide the logits first; the temperatures
      of ``settings`` act on the quotient.
    - ``uld_token_merge_strategy`` and the two ``uld_skip_..._eos`` choose the rows of logits that count, the
      same ones: the rows *at* the answer's tokens for ``"observed"``, the rows that *predict* them for
      ``"bayesian"``, without those of the last token where it is skipped.
    - ``use_extended_uld`` pairs the rows whose prefixes end at the same byte (see `mlot.align`); no
      probabilities are multiplied. Without it rows are paired by index.

    With ``matching="text"`` in ``settings`` the teacher is carried over to the student's tokens by the bytes
    of both (see `mlot.text_targets`), which needs both tokenizers and ``use_extended_uld``; the rows that
    count are those that predict the answer's tokens, whatever the strategy.

    Args:
        config: the trainer's ``GOLDConfig``.
        student_tokenizer: needed with ``matching="text"``; else the byte offsets that GOLD passes are enough.
        teacher_tokenizer: the same.
        device: kept.

    Attributes:
        settings: `mlot.MultiLevelOTConfig` of the transport, the paper's unless it is assigned.
        last: detached terms of the last call for logging: ``loss``, ``cross_entropy``, ``had``, ``sl``,
            ``sd``, and ``pairs``, the number of paired rows (with ``matching="text"`` of rows with a target).

    Raises:
        TypeError: ``config`` lacks a setting of ULD, or one is of the wrong kind.
        ValueError: a setting is out of range, or ``uld_use_hybrid_loss`` is on, which has no counterpart.

    Source: Cui et al., AAAI 2025. The interface is that of TRL's ``trl.experimental.gold``.
    """

    def __init__(
        self, config: Any, student_tokenizer: Any = None, teacher_tokenizer: Any = None, device: Any = None
    ) -> None:
        super().__init__()
        _check_config(config)
        self.device = device
        self.student_tokenizer = student_tokenizer
        self.teacher_tokenizer = teacher_tokenizer
        self.crossentropy_weight = config.uld_crossentropy_weight
        self.distillation_weight = config.uld_distillation_weight
        self.student_temperature = config.uld_student_temperature
        self.teacher_temperature = config.uld_teacher_temperature
        self.skip_student_eos = config.uld_skip_student_eos
        self.skip_teacher_eos = config.uld_skip_teacher_eos
        self.use_extended_uld = config.use_extended_uld
        self.token_merge_strategy = config.uld_token_merge_strategy
        self.settings = MultiLevelOTConfig()
        self.last: dict[str, Tensor] = {}
        self._vocabulary: VocabularyMap | None = None

    @classmethod
    def for_trainer(cls, trainer: Any, settings: MultiLevelOTConfig | None = None) -> MultiLevelOTLoss:
        """Make the loss for a ``GOLDTrainer``, to be assigned to its ``uld_loss_fn``.

        Args:
            trainer: a ``GOLDTrainer`` with ``use_uld_loss=True``.
            settings: settings of the transport; ``None`` means the paper's.

        Raises:
            TypeError: ``trainer`` or ``settings`` is of the wrong kind.
            ValueError: the trainer was made with ``use_uld_loss=False`` and would never call the loss.
        """
        if not hasattr(trainer, "uld_loss_fn") or not hasattr(trainer, "args"):
            raise TypeError(f"trainer: expected a GOLDTrainer, got {type(trainer).__name__}")
        settings = checked_config(settings, "settings")
        if not trainer.args.use_uld_loss:
            raise ValueError("trainer: expected use_uld_loss=True in its GOLDConfig, got False")
        device = trainer.accelerator.device
        loss = cls(trainer.args, trainer.processing_class, trainer.teacher_tokenizer, device)
        loss.settings = settings
        return loss

    def extra_repr(self) -> str:
        return (
            f"crossentropy_weight={self.crossentropy_weight}, "
            f"distillation_weight={self.distillation_weight}, settings={self.settings}"
        )

    def __call__(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        student_labels: Tensor,
        teacher_labels: Tensor,
        student_input_ids: Tensor,
        teacher_input_ids: Tensor,
        student_byte_offsets: Tensor | None = None,
        teacher_byte_offsets: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            student_logits: ``(B, T_s, V_s)``.
            teacher_logits: ``(B, T_t, V_t)``.
            student_labels: ``(B, T_s)`` integers, unshifted, -100 outside the answer.
            teacher_labels: the same for the teacher, ``(B, T_t)``.
            student_input_ids: ``(B, T_s)``, needed with ``matching="text"`` alone.
            teacher_input_ids: ``(B, T_t)``, the same.
            student_byte_offsets: ``(B, T_s, 2)`` integers, the first and one past the last byte of each token
                of the answer, counted from the answer's start; needed with ``use_extended_uld``.
            teacher_byte_offsets: the same for the teacher, ``(B, T_t, 2)``.

        Returns:
            A scalar.

        Raises:
            TypeError, ValueError: an argument is missing or of the wrong kind or shape.
        """
        loss: Tensor = super().__call__(
            student_logits,
            teacher_logits,
            student_labels,
            teacher_labels,
            student_input_ids,
            teacher_input_ids,
            student_byte_offsets,
            teacher_byte_offsets,
        )
        return loss

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        student_labels: Tensor,
        teacher_labels: Tensor,
        student_input_ids: Tensor,
        teacher_input_ids: Tensor,
        student_byte_offsets: Tensor | None = None,
        teacher_byte_offsets: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss; see ``__call__``."""
        _check_labels("student", student_logits, student_labels)
        _check_labels("teacher", teacher_logits, teacher_labels)
        offsets = None
        if self.use_extended_uld:
            offsets = (
                _checked_offsets("student", student_byte_offsets, student_labels),
                _checked_offsets("teacher", teacher_byte_offsets, teacher_labels),
            )
        zero = student_logits.new_zeros((), dtype=torch.promote_types(student_logits.dtype, torch.float32))
        ot, nll = None, zero
        if self.distillation_weight:
            ids = (student_input_ids, teacher_input_ids)
            ot = self._transport(student_logits, teacher_logits, student_labels, teacher_labels, offsets, ids)
        if self.crossentropy_weight:
            mask = mask_from_labels(student_labels)
            nll = mean_cross_entropy(student_logits, student_labels, mask, None)
        loss: Tensor = self.crossentropy_weight * nll + (
            zero if ot is None else self.distillation_weight * ot.loss
        )
        self.last = {"loss": loss.detach(), "cross_entropy": nll.detach()}
        if ot is not None:
            self.last |= {name: getattr(ot, name).detach() for name in ("had", "sl", "sd")}
            self.last["pairs"] = ot._evidence.pairs.sum()
        return loss

    def _transport(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        student_labels: Tensor,
        teacher_labels: Tensor,
        offsets: tuple[Tensor, Tensor] | None,
        ids: tuple[Tensor, Tensor],
    ) -> MultiLevelOTResult:
        pairs, text = None, None
        if self.settings.matching == "text":
            labels = (student_labels, teacher_labels)
            skips = (self.skip_student_eos, self.skip_teacher_eos)
            student_mask, teacher_mask = (
                _predicting(_answer(side, skip)) for side, skip in zip(labels, skips, strict=True)
            )
            text = self._text(labels, offsets, ids)
        else:
            student_mask, teacher_mask = self.masks(student_labels, teacher_labels)
        if offsets is not None and text is None:
            pairs = _byte_pairs(student_mask, teacher_mask, *offsets).to(student_logits.device)
        return multi_level_ot(
            _divided(student_logits, self.student_temperature),
            _divided(teacher_logits, self.teacher_temperature),
            student_mask=student_mask,
            teacher_mask=teacher_mask,
            pairs=pairs,
            config=self.settings,
            text=text,
        )

    def _text(
        self, labels: tuple[Tensor, Tensor], offsets: tuple[Tensor, Tensor] | None, ids: tuple[Tensor, Tensor]
    ) -> TextPositions:
        """Where the student reads in the teacher's tokens, within the answer."""
        if offsets is None:
            raise ValueError("config.use_extended_uld: expected True with matching='text', got False")
        if self._vocabulary is None:
            for name in ("student_tokenizer", "teacher_tokenizer"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name}: expected a tokenizer with matching='text', got None")
            self._vocabulary = VocabularyMap.from_tokenizers(self.student_tokenizer, self.teacher_tokenizer)
        student, teacher = (
            [part.cpu().numpy() for part in (label != _IGNORE, token_ids, offset)]
            for label, token_ids, offset in zip(labels, ids, offsets, strict=True)
        )
        rows = [
            _answer_positions([part[n] for part in student], [part[n] for part in teacher], self._vocabulary)
            for n in range(len(labels[0]))
        ]
        positions = torch.from_numpy(batch_text_positions(rows)).to(labels[0].device)
        return TextPositions(positions, ids[1], self._vocabulary.plan())

    def masks(self, student_labels: Tensor, teacher_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of logits that count on both sides, ``(B, T)`` booleans each; see the class.

        Args:
            student_labels: ``(B, T_s)`` integers, unshifted, -100 outside the answer.
            teacher_labels: the same for the teacher, ``(B, T_t)``.
        """
        student = _answer(student_labels, self.skip_student_eos)
        teacher = _answer(teacher_labels, self.skip_teacher_eos)
        if self.token_merge_strategy == "observed":
            return student, teacher
        if not self.use_extended_uld:
            # No row predicts a token that opens its sequence: by index, its partner is left out as well.
            unscored = student[:, :1] | teacher[:, :1]
            student, teacher = (side & ~(_first(side) & unscored) for side in (student, teacher))
        return _predicting(student), _predicting(teacher)


def _check_config(config: Any) -> None:
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


def _check_labels(name: str, logits: Any, labels: Any) -> None:
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


def _checked_offsets(name: str, offsets: Any, labels: Tensor) -> Tensor:
    if offsets is None:
        raise ValueError(f"{name}_byte_offsets: expected (B, T, 2) with use_extended_uld=True, got None")
    if not isinstance(offsets, Tensor):
        raise TypeError(f"{name}_byte_offsets: expected a torch tensor, got {type(offsets).__name__}")
    if offsets.shape != (*labels.shape, 2):
        raise ValueError(
            f"{name}_byte_offsets: expected shape {(*labels.shape, 2)}, got {tuple(offsets.shape)}"
        )
    return offsets


def _divided(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits / temperature


def _answer(labels: Tensor, skip_last: bool) -> Tensor:
    """Tokens of the answer, without the last one if that is to be skipped."""
    answer = labels != _IGNORE
    return answer & ~_first(answer.flip(1)).flip(1) if skip_last else answer


def _predicting(mask: Tensor) -> Tensor:
    """Rows that predict the tokens of a mask."""
    return torch.cat([mask[:, 1:], mask[:, :1] & False], 1)


def _first(mask: Tensor) -> Tensor:
    """Only the first true value of each row."""
    return mask & (mask.cumsum(1) == 1)


def _byte_pairs(
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
            _boundaries(mask[n], offsets[n]) for mask, offsets in sides
        )
        _, i, j = np.intersect1d(student_ends, teacher_ends, return_indices=True)
        rows.append(np.stack([student_at[i], teacher_at[j]], axis=1))
    return torch.from_numpy(batch_pairs(rows))


def _answer_positions(student: Any, teacher: Any, vocabulary: VocabularyMap) -> Any:
    """Text positions ``(P, 9)`` of one answer, by the rows of both models; sides are answer, ids, offsets."""
    if not (student[0].any() and teacher[0].any()):
        return np.zeros((0, len(POSITION_FIELDS)), np.int64)
    total = int(max(offsets[answer].max() for answer, _, offsets in (student, teacher)))
    (s_tokens, s_first), (t_tokens, t_first) = (_answer_tokens(side, total) for side in (student, teacher))
    text = bytearray(total)
    for token, start, end in zip(t_tokens.ids, t_tokens.starts, t_tokens.ends, strict=True):
        spelled = vocabulary.teacher_bytes[token] or b""
        if end > start:
            text[start:end] = spelled[-(end - start) :].ljust(end - start, b"\0")
    rows = text_positions(s_tokens, t_tokens, bytes(text), vocabulary)
    rows[:, 0] += s_first - 1
    rows[:, 1] += t_first - 1
    return rows[(rows[:, :2] >= 0).all(axis=1)]  # the first token of a sequence is predicted by no row


def _answer_tokens(side: Any, total: int) -> tuple[TokenBytes, int]:
    """Tokens of an answer after one that opens it, and the row of the first."""
    answer, ids, offsets = side
    at = np.flatnonzero(answer)
    starts, ends = np.maximum.accumulate(np.clip(offsets[at], 0, total), axis=0).T
    starts, ends = np.append(0, starts), np.append(0, ends)
    special = ends <= starts
    return TokenBytes(np.append(ids[at[0] - 1], ids[at]), starts, ends, special, total), int(at[0])


def _boundaries(mask: Any, offsets: Any) -> tuple[Any, Any]:
    """Counting rows at which a byte of the answer is first reached, or its start, and those bytes.

    A token without width inside the answer closes it: what its row predicts lies beyond the text. Before the
    answer all ends are 0; the last such row is the one that predicts its first token.
    """
    starts, ends = offsets[:, 0], offsets[:, 1]
    at = np.flatnonzero(mask & ((ends > starts) | (ends == 0)))
    last = np.flatnonzero(np.diff(ends[at], append=-1) != 0)
    return at[last], ends[at][last]
