"""MultiLevelOT in TRL's GOLD trainer: a loss with the constructor and the call of its ``ULDLoss``.

A run that distils by ULD across tokenizers switches in one line, after the trainer is made:

.. code-block:: python

    trainer = GOLDTrainer(model, teacher_model=teacher, args=GOLDConfig(use_uld_loss=True, ...), ...)
    trainer.uld_loss_fn = mlot.trl.MultiLevelOTLoss.for_trainer(trainer)

Neither this module nor the loss imports TRL; the tests hold it to the one that is installed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mlot._gold import (
    Steps,
    answer,
    answer_positions,
    byte_pairs,
    check_config,
    check_labels,
    checked_offsets,
    divided,
    first,
    follow,
    predicting,
)
from mlot._result import MultiLevelOTResult
from mlot.align import VocabularyMap, batch_text_positions
from mlot.config import MultiLevelOTConfig, checked_config
from mlot.losses import multi_level_ot
from mlot.masks import mask_from_labels
from mlot.nn import mean_cross_entropy
from mlot.text import TextPositions

__all__ = ["MultiLevelOTLoss"]


class MultiLevelOTLoss(nn.Module):
    r"""Cross-entropy plus multi-level optimal transport, called as GOLD calls its ``ULDLoss``.

    .. math:: \mathcal L = w_\mathrm{CE}\,\mathrm{CE}
              + w\,(\mathrm{HAD} + \beta\,\mathrm{SL} + \gamma\,\mathrm{SD})

    Both parts are means over positions of the batch, in a trainer over those of a whole step (`for_trainer`).
    Of GOLD's settings, those of ULD keep their meaning:

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
        check_config(config)
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
        self.steps: Steps | None = None
        self._vocabulary: VocabularyMap | None = None

    @classmethod
    def for_trainer(cls, trainer: Any, settings: MultiLevelOTConfig | None = None) -> MultiLevelOTLoss:
        """Make the loss for a ``GOLDTrainer``, to be assigned to its ``uld_loss_fn``.

        In training every term is then a sum over positions divided by one number, the tokens of the answers
        in all micro-batches of a step, on all processes: gradients do not depend on how a batch is cut. The
        trainer's logs have ``had``, ``sl``, ``sd``, ``cross_entropy`` and ``pairs``, means over steps;
        evaluations have them, too, means over batches.

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
        loss.settings, loss.steps = settings, follow(trainer)
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
        check_labels("student", student_logits, student_labels)
        check_labels("teacher", teacher_logits, teacher_labels)
        offsets = None
        if self.use_extended_uld:
            offsets = (
                checked_offsets("student", student_byte_offsets, student_labels),
                checked_offsets("teacher", teacher_byte_offsets, teacher_labels),
            )
        items, factor = (None, 1.0) if self.steps is None else self.steps.divisor()
        zero = student_logits.new_zeros((), dtype=torch.promote_types(student_logits.dtype, torch.float32))
        ot, nll = None, zero
        if self.distillation_weight:
            ids = (student_input_ids, teacher_input_ids)
            labels = (student_labels, teacher_labels)
            ot = self._transport(student_logits, teacher_logits, *labels, offsets, ids, items)
        if self.crossentropy_weight:
            mask = mask_from_labels(student_labels)
            nll = mean_cross_entropy(student_logits, student_labels, mask, items)
        loss: Tensor = self.crossentropy_weight * nll + (
            zero if ot is None else self.distillation_weight * ot.loss
        )
        self.last = {"loss": loss.detach(), "cross_entropy": nll.detach()}
        if ot is not None:
            self.last |= {name: getattr(ot, name).detach() for name in ("had", "sl", "sd")}
            self.last["pairs"] = ot._evidence.pairs.sum()
        if self.steps is not None:
            terms = {name: value for name, value in self.last.items() if name != "loss"}
            self.steps.add(terms, factor)
        return loss * factor

    def _transport(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        student_labels: Tensor,
        teacher_labels: Tensor,
        offsets: tuple[Tensor, Tensor] | None,
        ids: tuple[Tensor, Tensor],
        items: Tensor | None,
    ) -> MultiLevelOTResult:
        pairs, text = None, None
        if self.settings.matching == "text":
            labels = (student_labels, teacher_labels)
            skips = (self.skip_student_eos, self.skip_teacher_eos)
            student_mask, teacher_mask = (
                predicting(answer(side, skip)) for side, skip in zip(labels, skips, strict=True)
            )
            text = self._text(labels, offsets, ids)
        else:
            student_mask, teacher_mask = self.masks(student_labels, teacher_labels)
        if offsets is not None and text is None:
            pairs = byte_pairs(student_mask, teacher_mask, *offsets).to(student_logits.device)
        return multi_level_ot(
            divided(student_logits, self.student_temperature),
            divided(teacher_logits, self.teacher_temperature),
            student_mask=student_mask,
            teacher_mask=teacher_mask,
            pairs=pairs,
            config=self.settings,
            num_items=items,
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
            [part.cpu().numpy() for part in (label != -100, token_ids, offset)]
            for label, token_ids, offset in zip(labels, ids, offsets, strict=True)
        )
        rows = [
            answer_positions([part[n] for part in student], [part[n] for part in teacher], self._vocabulary)
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
        student = answer(student_labels, self.skip_student_eos)
        teacher = answer(teacher_labels, self.skip_teacher_eos)
        if self.token_merge_strategy == "observed":
            return student, teacher
        if not self.use_extended_uld:
            # No row predicts a token that opens its sequence: by index, its partner is left out as well.
            unscored = student[:, :1] | teacher[:, :1]
            student, teacher = (side & ~(first(side) & unscored) for side in (student, teacher))
        return predicting(student), predicting(teacher)
