"""What the command takes, as dataclasses that ``HfArgumentParser`` makes options of."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, Literal

from mlot import _checks
from mlot._config_fields import setting_fields
from mlot.distill.errors import DistillError, refusing

#: Special tokens and one token for each byte.
SMALLEST_VOCABULARY = 3 + 256
#: What ``--quick`` changes.
QUICK: dict[str, Any] = {
    "held_out": 0.02,
    "per_device_train_batch_size": 8,
    "max_steps": 100,
    "teacher_steps": 150,
    "teacher_vocabulary": 2048,
    "teacher_width": 128,
    "student_vocabulary": 1024,
    "student_width": 64,
    "evaluations": 5,
}


def _option(default: Any, text: str, *aliases: str) -> Any:
    return field(default=default, metadata={"help": text, "aliases": list(aliases)})


@dataclass
class RunOptions:
    _argument_group_name = "the run"
    quick: bool = _option(False, "a smaller run, of about a minute on two cores")
    overwrite: bool = _option(
        False,
        "use the folder even if it holds a finished or stopped run, which goes, or other files, which stay",
    )
    resume: bool = _option(False, "continue the stopped run in the folder; where there is none, begin")
    checkpoint_every: int | None = _option(
        None, "steps after which a stopped run can continue; 0 for never; at each evaluation"
    )
    evaluations: int = _option(10, "points of a curve")
    threads: int | None = _option(None, "CPU threads; 1 for models made here, torch's own choice for others")


@dataclass
class TextOptions:
    _argument_group_name = "text"
    text: list[str] | None = _option(
        None,
        "files: UTF-8 text; .jsonl or .parquet whose examples hold text, prompt and completion, or messages; "
        "folders or cached ids of data sets; the docstrings of Python's standard library",
    )
    eval_file: list[str] | None = _option(None, "the same to measure on, in place of a part that is held out")
    held_out: float = _option(0.05, "share of the text that is held out")
    length: int = _option(128, "most tokens of a window of text")


@dataclass
class ModelOptions:
    _argument_group_name = "models"
    teacher: str | None = _option(
        None,
        "a causal language model with its tokenizer: a folder, or an id that the cache has; needs --student",
    )
    student: str | None = _option(None, "the same for the student, where its training starts")
    chat_template: str | None = _option(
        None, "Jinja file of the student's chat template, or 'teacher' for that of the teacher"
    )
    save_teacher: str | None = _option(None, "save the teacher's predictions there, and train from them")
    saved_teacher: str | None = _option(
        None, "train from predictions saved earlier; of --teacher only the tokenizer is read"
    )
    baseline: bool | None = _option(
        None, "train a second student by cross-entropy alone, to compare; yes where models are made here"
    )
    lora_rank: int | None = _option(
        None, "train low-rank adapters of this rank in place of all weights (peft)"
    )
    lora_alpha: int | None = _option(None, "their scale; twice the rank")
    lora_dropout: float | None = _option(None, "their dropout; 0")
    lora_target: list[str] | None = _option(None, "names of the modules that get adapters; peft's choice")
    teacher_vocabulary: int = _option(4096, "tokens of a teacher made here")
    teacher_width: int = _option(160, "its width")
    teacher_layers: int = _option(3, "its blocks")
    teacher_steps: int = _option(700, "its steps")
    teacher_learning_rate: float = _option(4e-3, "its peak learning rate")
    student_vocabulary: int = _option(2048, "tokens of a student made here")
    student_width: int = _option(96, "its width")
    student_layers: int = _option(3, "its blocks")


@dataclass
class TrainingOptions:
    """Arguments of transformers whose defaults are others here, or that have a second name."""

    _argument_group_name = "training: these and all of transformers.TrainingArguments (see --help-training)"
    output_dir: str = _option("distill-output", "folder for what comes out", "--output")
    max_steps: int = _option(400, "steps of each student", "--steps")
    learning_rate: float = _option(3e-3, "peak, of the students")
    per_device_train_batch_size: int = _option(16, "windows in a batch", "--batch-size", "--batch_size")
    gradient_accumulation_steps: int = _option(1, "batches in a step", "--accumulation")
    lr_scheduler_type: str = _option("cosine", "how the learning rate falls")
    warmup_steps: float = _option(0.05, "steps, or share of them, in which it rises")
    weight_decay: float = _option(0.1, "of the weights")
    eval_strategy: str = _option("steps", "when to evaluate: steps, epoch, no")
    eval_on_start: bool = _option(True, "evaluate before the first step, too")
    save_strategy: str = _option("steps", "when to write what --resume continues from: steps, epoch, no")
    report_to: str = _option("none", "where to report to, such as tensorboard")
    disable_tqdm: bool = _option(True, "no bars but those of the command")
    seed: int = _option(0, "of the split, the initial weights and the order of the data")


@dataclass
class PairOptions:
    """What of the loss is no setting of the transport."""

    alpha: float | None = _option(None, "weight of the distillation term; 0.15, with --matching text 1")
    pairs: Literal["boundary", "index"] = _option(
        "boundary", "compare positions that have read the same bytes, or those of the same number"
    )


@dataclass
class Options(RunOptions, TextOptions, ModelOptions):
    """What the command decides itself; training and loss are in its arguments of transformers.

    Raises:
        DistillError: a setting is of the wrong kind or out of range.
    """

    def __post_init__(self) -> None:
        with refusing(typed):
            self._check()

    @property
    def made_here(self) -> bool:
        """Whether both models are made on the spot."""
        return self.teacher is None

    @property
    def compares(self) -> bool:
        """Whether a student is trained by cross-entropy alone, too: if asked for, or if all is made here."""
        return self.made_here if self.baseline is None else self.baseline

    @property
    def inputs(self) -> list[str]:
        """Files and folders that the run reads, or keeps a teacher in."""
        single = (self.teacher, self.student, self.save_teacher, self.saved_teacher)
        several = (*(self.text or ()), *(self.eval_file or ()))
        return [*several, *(each for each in single if each is not None)]

    def _check(self) -> None:
        if (self.teacher is None) != (self.student is None):
            given, lacking = ("teacher", "student") if self.student is None else ("student", "teacher")
            raise DistillError(f"--{lacking}: expected a folder, since --{given} is given, got none")
        if self.saved_teacher is not None and self.teacher is None:
            raise DistillError(
                "--teacher: expected the folder that has the tokenizer of the saved teacher, got none"
            )
        if self.saved_teacher is not None and self.save_teacher is not None:
            raise DistillError("--save-teacher: expected none beside --saved-teacher, got both")
        for name in ("teacher_steps", "teacher_layers", "student_layers", "evaluations"):
            _checks.count(name, getattr(self, name))
        for name, least in (("checkpoint_every", 0), ("threads", 1), ("lora_rank", 1), ("lora_alpha", 1)):
            _checks.count(name, getattr(self, name), least=least, allow_none=True)
        _checks.count("length", self.length, least=8)
        for name in ("teacher_width", "student_width"):
            _checks.count(name, getattr(self, name), least=32)
            if getattr(self, name) % 32:
                raise ValueError(f"{name}: expected a multiple of 32, got {getattr(self, name)}")
        for name in ("teacher_vocabulary", "student_vocabulary"):
            _checks.count(name, getattr(self, name), least=SMALLEST_VOCABULARY)
        _checks.number("teacher_learning_rate", self.teacher_learning_rate)
        for name, value in (("held_out", self.held_out), ("lora_dropout", self.lora_dropout or 0.5)):
            if not 0 < value < 1:
                raise ValueError(f"{name}: expected a number between 0 and 1, got {value}")


#: Settings of the loss, made of those of `mlot.MultiLevelOTConfig`.
LossOptions = make_dataclass(
    "LossOptions", setting_fields(), bases=(PairOptions,), namespace={"_argument_group_name": "MultiLevelOT"}
)
OWN = {each.name for each in fields(Options)}
#: How options are typed whose names are others in transformers.
SHORT_NAMES = {
    "output_dir": "output",
    "max_steps": "steps",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulation",
}


def typed(name: str) -> str:
    """An option as it is typed."""
    return "--" + SHORT_NAMES.get(name, name).replace("_", "-")
