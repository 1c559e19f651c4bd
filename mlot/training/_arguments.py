"""Settings of a training run: transformers' own, and those of the loss."""

from __future__ import annotations

import copy
import inspect
from dataclasses import Field, dataclass, field, make_dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import TrainingArguments

from mlot import MultiLevelOTConfig, _checks
from mlot._config_fields import documented_settings, setting_fields, setting_types, settings_of
from mlot.config import default_alpha

#: How HAD and SL pair positions.
Pairs = Literal["boundary", "index"]
#: Which positions a collator prepares.
CollatorPairs = Literal["boundary", "index", "text"]

_FLAGS = ("use_linear_head", "use_teacher_linear_head", "overwrite_logits")

if TYPE_CHECKING:  # which is frozen, but has the same fields
    _LossArguments = MultiLevelOTConfig
else:
    _LossArguments = make_dataclass("_LossArguments", setting_fields())


@dataclass
class MultiLevelOTTrainingArguments(_LossArguments, TrainingArguments):  # type: ignore[misc]
    """`transformers.TrainingArguments` with those of MultiLevelOT.

    Settings of the loss that are not given are those of the preset that ``matching`` names:
    `mlot.MultiLevelOTConfig.text` for ``"text"``, else the paper's.

    Args:
        alpha: weight of the transport against cross-entropy; with 0 the teacher is not asked. ``None``: 0.15,
            and 1 for ``matching="text"``.
        <settings of the loss>
        pairs: positions that HAD and SL compare: ``"boundary"``, those at which both have read the same
            bytes, as the batch brings them; ``"index"``, the i-th of the one with the i-th of the other,
            which is the paper's. With ``matching="text"`` the text gives the positions.
        use_linear_head: whether the student's logits are never formed: its hidden states and its output
            embedding go to the loss as a `mlot.LinearHead`. Less memory, more time.
        use_teacher_linear_head: the same for the teacher.
        overwrite_logits: whether the gradient of the student's logits is written into their own memory; see
            `mlot.nn.MultiLevelOTLoss`.
        teacher_dtype: type to cast the teacher's weights to, such as ``"bfloat16"``; ``None`` leaves them.
        teacher_device: device to move the teacher to, such as ``"cuda:1"``; ``None`` means the student's.
            A teacher spread over devices (``device_map``) stays where it is.
        log_diagnostics_every: of how many logs one has the kept mass, matching gap, marginal error and paired
            share beside the losses; computing them waits for the device. With 0 none has.
        eval_distillation: whether evaluations ask the teacher, too, and report the terms of the loss.
        tokenize_ahead: whether data sets with a length are tokenised before the first step, and not while
            training.
        on_policy: share of the batches in which the student answers prompts of the data itself, and is
            compared with the teacher on what it wrote, by the distillation term alone. Prompts are drawn
            anew for each; of a conversation it is all before the last answer.
        on_policy_temperature: of the sampling.
        on_policy_max_new_tokens: most tokens of an answer.
        on_policy_answers: answers to each prompt; a batch has as many rows as others.
        on_policy_reuse: steps that learn from the same answers, before others are written.
        on_policy_changed: what becomes of answers whose text is not tokenised as it was sampled:
            ``"retokenize"`` takes the tokenizer's tokens of the text, ``"leave_out"`` none. Both are counted.
        remove_unused_columns: must stay False, or the teacher's columns never arrive.
        kwargs: everything that ``transformers.TrainingArguments`` takes besides.

    Raises:
        TypeError, ValueError: a setting is of the wrong kind or out of range; the message names it.

    >>> from mlot.training import MultiLevelOTTrainingArguments
    >>> args = MultiLevelOTTrainingArguments("out", k=20, matching="rank", report_to="none")
    >>> args.ot_config().k
    20
    """

    alpha: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the loss against cross-entropy (0.15, with matching=text 1); 0: no teacher."
        },
    )
    pairs: Pairs = field(
        default="boundary",
        metadata={
            "help": "Positions that HAD and SL compare: where both read the same bytes, or i-th with i-th."
        },
    )
    use_linear_head: bool = field(
        default=False,
        metadata={"help": "Whether the student's logits are never formed; less memory, more time."},
    )
    use_teacher_linear_head: bool = field(
        default=False, metadata={"help": "Whether the teacher's logits are never formed."}
    )
    overwrite_logits: bool = field(
        default=False,
        metadata={"help": "Whether the gradient of the student's logits takes their memory."},
    )
    teacher_dtype: str | None = field(
        default=None,
        metadata={
            "help": "Type that the teacher's weights are cast to, such as bfloat16; default: as they are."
        },
    )
    teacher_device: str | None = field(
        default=None,
        metadata={"help": "Device that the teacher is moved to, such as cuda:1; default: the student's."},
    )
    log_diagnostics_every: int = field(
        default=1,
        metadata={"help": "Of how many logs one has the diagnostics of the transport, too; 0: none."},
    )
    eval_distillation: bool = field(
        default=False,
        metadata={"help": "Whether evaluations ask the teacher, too, and report the terms of the loss."},
    )
    tokenize_ahead: bool = field(
        default=True,
        metadata={"help": "Whether data sets with a length are tokenised before the first step."},
    )
    on_policy: float = field(
        default=0.0, metadata={"help": "Share of the batches that the student writes itself; 0: none."}
    )
    on_policy_temperature: float = field(
        default=1.0, metadata={"help": "Temperature at which the student writes."}
    )
    on_policy_max_new_tokens: int = field(
        default=128, metadata={"help": "Most tokens of an answer that the student writes."}
    )
    on_policy_answers: int = field(
        default=1, metadata={"help": "Answers that the student writes to each prompt."}
    )
    on_policy_reuse: int = field(
        default=1, metadata={"help": "Steps that learn from the same answers, before others are written."}
    )
    on_policy_changed: Literal["retokenize", "leave_out"] = field(
        default="retokenize",
        metadata={"help": "What becomes of answers whose text is not tokenised as it was sampled."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False, or the teacher's columns never arrive."}
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keep the defaults of other settings among the bases, which dataclasses would take from this class.

        Of two bases the first one's fields count, and all those of ``TrainingArguments`` are fields of this
        one, with the defaults that they have there.
        """
        super().__init_subclass__(**kwargs)
        given = inspect.get_annotations(cls)
        settled = set(given)
        kept: dict[str, Any] = {}
        for base in cls.__mro__[1 : cls.__mro__.index(TrainingArguments)]:
            annotations = inspect.get_annotations(base)
            if issubclass(base, (MultiLevelOTTrainingArguments, _LossArguments)):
                settled |= set(annotations)
                continue
            defined = vars(base).get("__dataclass_fields__", {})
            for name in (annotations.keys() & defined.keys()) - settled:
                settled.add(name)
                kept[name] = annotations[name]
                setattr(cls, name, copy.copy(defined[name]))
        cls.__annotations__ = given | kept

    def __post_init__(self) -> None:
        if any(isinstance(value, Field) for value in vars(type(self)).values()):
            raise TypeError(f"{type(self).__name__}: expected a class under @dataclass, got one without")
        for name, value in settings_of(self).items():
            setattr(self, name, value)
        if self.alpha is None:
            self.alpha = default_alpha(self.ot_config())
        self._check_distillation()
        super().__post_init__()
        # There are several ways to switch compilation on, which are known by now.
        if self.use_linear_head and self.torch_compile:
            raise ValueError(
                "use_linear_head: expected False with torch_compile, since the loss then runs inside the "
                "model's forward, got True"
            )

    def ot_config(self) -> MultiLevelOTConfig:
        """Settings of the transport alone, as `mlot.multi_level_ot` takes them."""
        return MultiLevelOTConfig(**{name: getattr(self, name) for name in setting_types()})

    def _check_distillation(self) -> None:
        _checks.number("alpha", self.alpha, allow_zero=True)
        self.ot_config()
        _checks.choice("pairs", self.pairs, ("boundary", "index"))
        for name in (*_FLAGS, "eval_distillation", "tokenize_ahead"):
            _checks.flag(name, getattr(self, name))
        if self.teacher_dtype is not None:
            dtype = getattr(torch, str(self.teacher_dtype).removeprefix("torch."), None)
            if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
                raise ValueError(
                    "teacher_dtype: expected the name of a floating-point type, such as 'bfloat16', or None, "
                    f"got {self.teacher_dtype!r}"
                )
        if self.teacher_device is not None:
            try:
                torch.device(self.teacher_device)
            except (RuntimeError, TypeError) as error:
                raise ValueError(
                    "teacher_device: expected a device, such as 'cuda:1', or None, "
                    f"got {self.teacher_device!r}"
                ) from error
        self._check_on_policy()
        _checks.count("log_diagnostics_every", self.log_diagnostics_every, least=0)
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns: expected False, or the teacher's columns never arrive, got True"
            )
        if self.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor: expected 0, since the loss has a cross-entropy of its own, "
                f"got {self.label_smoothing_factor}"
            )

    def _check_on_policy(self) -> None:
        _checks.number("on_policy", self.on_policy, allow_zero=True)
        if self.on_policy > 1:
            raise ValueError(f"on_policy: expected a share from 0 to 1, got {self.on_policy}")
        _checks.divisor("on_policy_temperature", self.on_policy_temperature)
        _checks.count("on_policy_max_new_tokens", self.on_policy_max_new_tokens)
        _checks.count("on_policy_answers", self.on_policy_answers)
        _checks.count("on_policy_reuse", self.on_policy_reuse)
        _checks.choice("on_policy_changed", self.on_policy_changed, ("retokenize", "leave_out"))
        if self.on_policy and not self.alpha:
            raise ValueError(
                f"on_policy: expected 0 with alpha=0, which asks no teacher, got {self.on_policy}"
            )
        if self.on_policy and self.overwrite_logits:
            raise ValueError(
                "on_policy: expected 0 with overwrite_logits, whose gradient is that of both terms, "
                f"got {self.on_policy}"
            )


MultiLevelOTTrainingArguments.__doc__ = (MultiLevelOTTrainingArguments.__doc__ or "").replace(
    "<settings of the loss>",
    "\n        ".join(f"{name}: {text}" for name, text in documented_settings().items()),
)
