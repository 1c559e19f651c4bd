"""The mixin on somebody else's Trainer: TRL's SFTTrainer trains as ours does, without another line."""

from dataclasses import dataclass, fields

import pytest

pytest.importorskip("transformers")
pytest.importorskip("datasets")
pytest.importorskip("trl")

import torch
from datasets import Dataset

from mlot.training import MultiLevelOTMixin, MultiLevelOTTrainingArguments
from training_cases import (
    examples,
    make_collator,
    make_student,
    make_teacher,
    make_trainer,
    student_tokenizer,
)


def make_sft(folder, collator, **settings):
    """TRL's trainer with the loss; settings that are none of the Trainer's go to the arguments."""
    from trl import SFTConfig, SFTTrainer

    @dataclass
    class MyArguments(MultiLevelOTTrainingArguments, SFTConfig):
        pass

    class MyTrainer(MultiLevelOTMixin, SFTTrainer):
        pass

    rest = {name: settings.pop(name) for name in ("formatting_func",) if name in settings}
    settings = {
        "k": 6,
        "alpha": 0.7,
        "max_steps": 2,
        "max_grad_norm": 0.0,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "logging_steps": 1,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "learning_rate": 5e-5,
        "seed": 3,
        "data_seed": 3,
    } | settings
    data = Dataset.from_list(examples())
    return MyTrainer(
        make_student(),
        MyArguments(str(folder), **settings),
        collator,
        data,
        data,
        teacher=make_teacher(),
        processing_class=student_tokenizer(),
        **rest,
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head", [False, True])
def test_sft_trainer_with_the_loss(tmp_path, head):
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "use_linear_head": head}
    trainer = make_sft(tmp_path, make_collator(), **settings)
    assert isinstance(trainer.train_dataset, Dataset)
    trainer.train()
    ours = make_trainer(tmp_path, eval_dataset=examples(), max_steps=2, **settings)
    ours.train()
    for one, other in zip(trainer.state.log_history[:2], ours.state.log_history[:2], strict=True):
        for name in ("loss", "ce", "had", "sl", "sd", "paired_share", "teacher_kept_mass"):
            assert one[name] == pytest.approx(other[name], rel=1e-6), name
    assert trainer.evaluate()["eval_bits_per_byte"] == pytest.approx(
        ours.evaluate()["eval_bits_per_byte"], rel=1e-6
    )


@pytest.mark.filterwarnings("ignore")
def test_accumulation_changes_no_gradient(tmp_path):
    """That of the plain Trainer, in steps of size 1 in float64."""
    step = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant"}
    weights = []
    for make, size, parts in ((make_sft, 8, 1), (make_sft, 3, 3), (None, 8, 1)):
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts} | step
        trainer = make_trainer(tmp_path, **cut) if make is None else make(tmp_path, make_collator(), **cut)
        trainer.train()
        weights.append(dict(trainer.model.named_parameters()))
    start = dict(make_student().named_parameters())
    for name, weight in weights[0].items():
        change = weight - start[name]
        assert change.any(), name
        for other in weights[1:]:
            torch.testing.assert_close(other[name] - start[name], change, rtol=1e-7, atol=1e-11)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", ["with a docstring's order", "a subclass of it"])
def test_the_defaults_of_the_other_trainer_hold(tmp_path, order):
    from trl import SFTConfig

    @dataclass
    class MyArguments(MultiLevelOTTrainingArguments, SFTConfig):
        own: int = 3

    @dataclass
    class Mine(MyArguments):
        k: int = 9
        learning_rate: float = 0.125

    kind = MyArguments if order.startswith("with") else Mine
    args, theirs = kind(str(tmp_path), use_cpu=True), SFTConfig(str(tmp_path), use_cpu=True)
    others = {"remove_unused_columns"} | ({"learning_rate"} if kind is Mine else set())
    for each in fields(SFTConfig):
        if each.name not in others:
            assert getattr(args, each.name) == getattr(theirs, each.name), each.name
    assert (args.gradient_checkpointing, args.bf16, args.logging_steps) == (True, True, 10)
    assert (args.own, args.remove_unused_columns) == (3, False)
    assert (args.ot_config().k, args.learning_rate) == ((50, 2e-5) if kind is MyArguments else (9, 0.125))


def test_settings_of_both_kinds_need_dataclass(tmp_path):
    from trl import SFTConfig

    class Bare(MultiLevelOTTrainingArguments, SFTConfig):
        pass

    with pytest.raises(TypeError, match="Bare: expected a class under @dataclass"):
        Bare(str(tmp_path))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pairs", ["boundary", "text"])
@pytest.mark.parametrize("ahead", [True, False])
def test_max_length_cuts_before_pairs_are_made(tmp_path, pairs, ahead):
    """In training and in evaluation, of data that is given then, too; the teacher is cut where the student is."""
    collator = make_collator(pairs=pairs)
    settings = {"matching": "text"} if pairs == "text" else {}
    trainer = make_sft(tmp_path, collator, max_length=9, tokenize_ahead=ahead, **settings)
    assert collator.max_length == 9
    batch = next(iter(trainer.get_eval_dataloader()))
    cut = make_collator(pairs=pairs, max_length=9)(examples())
    for name, value in batch.items():
        assert torch.equal(value.cpu(), cut[name]), name
    trainer.train()
    assert trainer.evaluate()["eval_bits_per_byte"] == pytest.approx(
        trainer.evaluate(examples())["eval_bits_per_byte"]
    )


@pytest.mark.filterwarnings("ignore")
def test_the_shorter_limit_holds(tmp_path):
    collator = make_collator(max_length=7)
    make_sft(tmp_path, collator, max_length=9)
    assert collator.max_length == 7
    collator = make_collator()
    make_sft(tmp_path, collator)  # SFTConfig says 1024, the model reads 64
    assert collator.max_length == 64


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"packing": True}, "packing: expected False with a DistillationCollator"),
        ({"padding_free": True}, "padding_free: expected False"),
        ({"loss_type": "dft"}, "loss_type: expected 'nll'"),
        ({"completion_only_loss": False}, "completion_only_loss: expected None or True"),
        ({"formatting_func": str}, "formatting_func: expected None"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make_sft(tmp_path, make_collator(), **settings)
