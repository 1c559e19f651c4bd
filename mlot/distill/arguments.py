"""What was typed, made into options of the command and arguments of its trainers."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers.trainer_utils import SaveStrategy

from mlot import _checks
from mlot._config_fields import setting_types
from mlot.distill.errors import DistillError, refusing
from mlot.distill.options import OWN, QUICK, SHORT_NAMES, Options, TrainingOptions, typed
from mlot.training import MultiLevelOTTrainingArguments

#: Of the options, those that change nothing in what comes out.
_OF_A_CALL = {
    *["output", "overwrite", "resume", "checkpoint_every", "threads", "report_to", "disable_tqdm", "quick"]
}
#: What the command does by itself, and how it is told to.
_DECIDED = {
    "do_train": "the command trains",
    "do_eval": "the command evaluates",
    "do_predict": "the command predicts nothing",
    "resume_from_checkpoint": "--resume continues the run in the folder",
    "save_total_limit": "the last checkpoint is kept, and the best with --load-best-model-at-end",
    "push_to_hub": "nothing is sent to the network",
    "remove_unused_columns": "the loss needs them",
}
_DECIDED["eval_distillation"] = "students are compared by bits per byte, one of them without a teacher"
_DECIDED |= {
    f"on_policy{name}": "the command trains on the text that it is given; MultiLevelOTTrainer does this"
    for name in ("", "_temperature", "_max_new_tokens", "_answers", "_reuse", "_changed")
}
_MADE = [f"{side}_{what}" for side in ("teacher", "student") for what in ("vocabulary", "width", "layers")]
_MADE += ["teacher_steps", "teacher_learning_rate"]


@dataclass
class CommandArguments(TrainingOptions, MultiLevelOTTrainingArguments):  # type: ignore[misc]
    """`mlot.training.MultiLevelOTTrainingArguments` with the defaults of the command."""


@dataclass(frozen=True)
class Settings:
    """What a run was asked for: its own options, arguments of its trainers, names of what was typed."""

    options: Options
    arguments: CommandArguments
    given: frozenset[str]

    @staticmethod
    def of(**given: Any) -> Settings:
        """Settings from what was typed, by the names of options and arguments.

        Raises:
            DistillError: one is out of range, or has no effect beside the others.
        """
        quick = QUICK if given.get("quick") else {}
        own = {name: value for name, value in (quick | given).items() if name in OWN}
        options = Options(**own)
        rest = {name: value for name, value in (quick | given).items() if name not in own}
        cuda = torch.cuda.is_available()
        rest = {"use_cpu": not cuda, "dataloader_pin_memory": cuda} | rest
        if "num_train_epochs" in given and "max_steps" not in given:
            rest["max_steps"] = -1
        with refusing(typed):
            for name in given.keys() & {*SHORT_NAMES} - {"output_dir"}:
                _checks.count(name, given[name])
            for name in given.keys() & {"learning_rate", "alpha"}:
                _checks.number(name, given[name])
            _checks.count("seed", given.get("seed", 0), least=0)
            arguments = CommandArguments(**rest)
        settings = Settings(options, arguments, frozenset(given))
        settings._refuse_what_has_no_effect()
        return settings

    def _refuse_what_has_no_effect(self) -> None:
        options, config = self.options, self.arguments.ot_config()
        folders = dict.fromkeys(_MADE, "the models come from --teacher and --student")
        lora = dict.fromkeys(("lora_alpha", "lora_dropout", "lora_target"), "there is no --lora-rank")
        sinkhorn = ("sequence_temperature", "epsilon", "n_iter", "tol", "sequence_cost")
        rules: list[tuple[bool, dict[str, str]]] = [
            (True, _DECIDED),
            (not options.made_here, folders),
            (options.lora_rank is None, lora),
            (options.eval_file is not None, {"held_out": "--eval-file says what is measured on"}),
            ("max_steps" in self.given, {"num_train_epochs": "--steps says how long training takes"}),
            ("eval_steps" in self.given, {"evaluations": "--eval-steps says when to evaluate"}),
            ("save_steps" in self.given, {"checkpoint_every": "--save-steps says the same"}),
            (
                config.matching == "rank",
                dict.fromkeys(("pool", "token_cost"), "--matching rank compares none"),
            ),
            (self.by_text, {"pairs": "--matching is text"}),
            (config.sd_weight == 0, dict.fromkeys(sinkhorn, "--sd-weight is 0")),
        ]
        for applies, names in rules:
            for name in names if applies else ():
                if name in self.given:
                    raise DistillError(f"{typed(name)}: expected none, since {names[name]}")

    def shown(self) -> dict[str, Any]:
        """Settings by the names that are typed: ours, those of the loss, and what else was typed."""
        loss = {*setting_types(), "alpha", "pairs"}
        names = [each.name for each in fields(TrainingOptions)] + [
            each.name for each in fields(MultiLevelOTTrainingArguments) if each.name in loss
        ]
        names += sorted(self.given - OWN - {*names})
        values = {each.name: getattr(self.options, each.name) for each in fields(self.options)}
        values |= {name: getattr(self.arguments, name) for name in names if name not in values}
        plain = {name: getattr(value, "value", value) for name, value in values.items()}
        return {typed(name)[2:].replace("-", "_"): value for name, value in plain.items()}

    def identity(self) -> dict[str, Any]:
        """Settings that a stopped run must share with the one that continues it."""
        return {name: value for name, value in self.shown().items() if name not in _OF_A_CALL}

    def for_training(
        self, folder: str, windows: int, *, alone: bool, keep: bool, **changes: Any
    ) -> CommandArguments:
        """Arguments of a training on so many windows; ``alone``: by cross-entropy alone."""
        made = copy.copy(self.arguments)
        made.output_dir = folder
        made.data_seed = made.seed if "data_seed" not in self.given else made.data_seed
        for name, value in changes.items():
            setattr(made, name, value)
        if alone:
            made.alpha = 0.0
        batch = made.per_device_train_batch_size * made.gradient_accumulation_steps * made.world_size
        steps = made.max_steps
        if steps < 0:
            steps = math.ceil(made.num_train_epochs * math.ceil(windows / batch))
        every = max(1, steps // self.options.evaluations)
        for name in ("eval_steps", "logging_steps", "save_steps"):
            if name not in self.given:
                setattr(made, name, every)
        if self.options.checkpoint_every:
            made.save_steps = self.options.checkpoint_every
        if not keep:
            made.save_strategy = SaveStrategy.NO
        if "per_device_eval_batch_size" not in self.given:
            made.per_device_eval_batch_size = 2 * made.per_device_train_batch_size
        return made

    @property
    def by_text(self) -> bool:
        """Whether the plan between the vocabularies is the text's."""
        return self.arguments.ot_config().matching == "text"

    @property
    def keeps(self) -> bool:
        """Whether a stopped run can be continued."""
        return self.options.checkpoint_every != 0 and self.arguments.save_strategy != SaveStrategy.NO
