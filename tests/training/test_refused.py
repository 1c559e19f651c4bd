"""What the Trainer refuses before the first step, and that nothing has been written by then."""

from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
)

from mlot.nn import MultiLevelOTLoss
from mlot.training import DistillationCollator, MultiLevelOTTrainer, PreparedDataset
from mlot.training._validate import even_shares
from training_cases import (
    examples,
    make_arguments,
    make_collator,
    make_student,
    make_teacher,
    make_trainer,
    student_tokenizer,
    teacher_tokenizer,
)

TINY_BERT = BertConfig(
    vocab_size=270, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
)
TINY_T5 = T5Config(vocab_size=270, d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8)


def headless():
    return (
        LlamaModel(
            LlamaConfig(
                vocab_size=270, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
            )
        ),
        GPT2Model(GPT2Config(vocab_size=270, n_positions=64, n_embd=8, n_layer=1, n_head=1)),
        BertForSequenceClassification(TINY_BERT),
        BertForMaskedLM(TINY_BERT),
        T5ForConditionalGeneration(TINY_T5),
    )


@pytest.fixture
def refused(tmp_path):
    """Make a trainer that is refused with a message, and see that its folder was not made."""

    def check(message, kind=ValueError, **settings):
        with pytest.raises(kind, match=message):
            make_trainer(tmp_path / "out", **settings)
        assert not (tmp_path / "out").exists()

    return check


def test_models_without_a_causal_head(refused):
    for model in headless():
        expected = (
            f"expected a model with a causal head, such as LlamaForCausalLM, got {type(model).__name__}"
        )
        refused(f"model: {expected}", model=model)
        refused(f"teacher: {expected}", teacher=model)
    refused("model: expected a causal language model, got int", TypeError, model=3)


def test_missing_pad_token():
    with pytest.raises(
        ValueError, match="student_tokenizer: expected a pad token, or an eos token to pad with"
    ):
        DistillationCollator(student_tokenizer(pad_token=None, eos_token=None), teacher_tokenizer())


def test_empty_data(refused):
    refused("train_dataset: expected at least one example, got none", dataset=[])
    refused("eval_dataset: expected at least one example, got none", eval_dataset=[])
    refused(
        r"eval_dataset\['b'\]: expected at least one example, got none",
        eval_dataset={"a": examples(), "b": []},
    )
    refused(
        "train_dataset: expected examples with something to learn, found none",
        dataset=[{"prompt": "a" * 99, "completion": "b"}] * 2,
    )


def test_examples_of_no_form_are_named(refused):
    refused(
        r"^train_dataset\[1\]: example: expected text, prompt and completion, or messages, got txt$",
        dataset=[*examples()[:1], {"txt": "a"}],
    )
    refused(
        r"^eval_dataset\['b'\]\[0\]: text: expected a string, got NoneType$",
        TypeError,
        eval_dataset={"a": examples(), "b": [{"text": None}]},
    )
    # strings contain the names of keys, too
    for text in ("a text", "a text of input_ids"):
        refused(
            r"^train_dataset\[0\]: example: expected a mapping with text, .*, got str$",
            TypeError,
            dataset=[text],
        )


def test_no_collator(tmp_path):
    with pytest.raises(ValueError, match="data_collator: expected a DistillationCollator, .*, got None"):
        MultiLevelOTTrainer(
            make_student(),
            make_arguments(tmp_path / "out"),
            teacher=make_teacher(),
            train_dataset=examples(),
        )
    assert not (tmp_path / "out").exists()


def test_text_longer_than_the_context(refused, tmp_path, caplog):
    refused(
        "max_length: expected at most 64, all that the student reads, got 65",
        collator=make_collator(max_length=65),
    )
    refused(
        "teacher_max_length: expected at most 16, all that the teacher reads, got 32",
        collator=make_collator(teacher_max_length=32),
        teacher=make_teacher(positions=16),
    )
    # without a limit, the models' own is taken, and what was cut is told before the first step
    collator = make_collator()
    trainer = make_trainer(
        tmp_path,
        collator=collator,
        teacher=make_teacher(positions=16),
        dataset=[{"text": "a" * 40}, *examples()],
    )
    assert (collator.max_length, collator.teacher_max_length) == (64, 16)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("train_dataset: ")
    assert f"{collator.truncation.cut_bytes} of {collator.truncation.bytes} bytes" in caplog.messages[0]
    assert collator.truncation.cut_bytes > 24
    assert max(len(row["teacher_input_ids"]) for row in trainer.train_dataset) <= 16
    trainer.train()


def test_a_tokenizer_says_how_long_a_text_may_be():
    collator = DistillationCollator(
        student_tokenizer(model_max_length=9), teacher_tokenizer(model_max_length=12)
    )
    assert (collator.max_length, collator.teacher_max_length) == (9, 12)
    assert (
        DistillationCollator(
            student_tokenizer(model_max_length=9), teacher_tokenizer(), max_length=5
        ).max_length
        == 5
    )


def test_a_limit_that_nobody_gave_is_the_least_of_tokenizers_and_models(tmp_path):
    collator = DistillationCollator(
        student_tokenizer(model_max_length=100), teacher_tokenizer(model_max_length=12)
    )
    make_trainer(tmp_path, collator=collator)
    assert (collator.max_length, collator.teacher_max_length) == (64, 12)
    make_trainer(tmp_path, collator=collator, model=make_student(positions=40))
    assert (collator.max_length, collator.teacher_max_length) == (40, 12)


def test_tokenizers_of_larger_models(refused):
    small = make_student()
    small.resize_token_embeddings(100)
    size = len(student_tokenizer())
    refused(f"student_tokenizer: expected at most 100 tokens, as the student, got {size}", model=small)
    refused("teacher_tokenizer: expected at most 100 tokens, as the teacher", teacher=small)


def test_arguments_of_another_kind_are_named(refused):
    refused("criterion: expected a module or None, got int", TypeError, criterion=3)
    with pytest.raises(TypeError, match=r"^template_settings: expected a mapping or None, got list"):
        make_collator(template_settings=[("a", 1)])
    with pytest.raises(TypeError, match=r"^examples: expected an iterable of examples, got int"):
        PreparedDataset(3)


def test_teachers_that_are_none(refused):
    refused("teacher: expected a teacher, or alpha=0, got None with alpha=0.7", teacher=None)
    refused(
        "criterion: expected None without a teacher, got a loss",
        teacher=None,
        alpha=0.0,
        criterion=MultiLevelOTLoss(),
    )
    student = make_student()
    refused("teacher: expected another model than the student, got the same", model=student, teacher=student)
    refused(
        "teacher: expected a model, its folder or name, a mlot.saved.SavedTeacher or None, got int",
        TypeError,
        teacher=3,
    )


def test_settings_of_another_kind(tmp_path):
    with pytest.raises(
        TypeError, match="args: expected MultiLevelOTTrainingArguments, got TrainingArguments"
    ):
        MultiLevelOTTrainer(
            make_student(), TrainingArguments(str(tmp_path), report_to="none"), teacher=make_teacher()
        )
    with pytest.raises(TypeError, match="args: expected MultiLevelOTTrainingArguments, got NoneType"):
        MultiLevelOTTrainer(make_student(), teacher=make_teacher())
    with pytest.raises(ValueError, match="compute_loss_func: expected None, since there is criterion"):
        MultiLevelOTTrainer(
            make_student(), make_arguments(tmp_path), teacher=make_teacher(), compute_loss_func=lambda *_: 0
        )


def test_pairs_that_are_not_there(refused, tmp_path):
    refused(
        "pairs: expected a collator with pairs='boundary', as args, got 'index'",
        collator=make_collator(pairs="index"),
    )
    trainer = make_trainer(tmp_path, collator=lambda rows: make_collator(pairs="index")(rows))
    with pytest.raises(ValueError, match="pairs: expected 'index' for batches without pairs, got 'boundary'"):
        trainer.train()
    with pytest.raises(ValueError, match="inputs: expected labels among them, got input_ids"):
        trainer.compute_loss(trainer.model, {"input_ids": torch.zeros(1, 2)})


class Bare(nn.Module):
    """A student of one's own, about which nothing is known."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(270, 270))

    def forward(self, input_ids, attention_mask):
        return type("Outputs", (), {"logits": self.table[input_ids]})()


def test_models_of_ones_own_are_taken(tmp_path):
    trainer = make_trainer(tmp_path, model=Bare(), teacher=Bare(), max_steps=3, learning_rate=0.1, k=50)
    trainer.train()
    losses = [entry["ce"] for entry in trainer.state.log_history if "ce" in entry]
    assert losses[2] < losses[0]
    with pytest.raises(ValueError, match="use_linear_head: .*got Bare without an output embedding"):
        make_trainer(tmp_path, model=Bare(), use_linear_head=True)


@pytest.mark.parametrize(
    ("settings", "count", "batches"),
    [
        ({}, 5, None),
        ({"even": False}, 5, 3),
        ({"even": False}, 7, None),
        ({"even": False, "drop": True}, 5, None),
        ({"even": False, "drop": True}, 7, 3),
        ({"even": False, "split": True}, 5, None),
    ],
)
def test_processes_that_would_run_out_one_before_the_other(tmp_path, settings, count, batches):
    """Processes count tokens together at each step, so all need as many steps."""
    args = make_arguments(
        tmp_path,
        per_device_train_batch_size=2,
        dataloader_drop_last=settings.get("drop", False),
        accelerator_config={
            "even_batches": settings.get("even", True),
            "split_batches": settings.get("split", False),
        },
    )
    even_shares(args, range(count))  # one process has them all
    two = SimpleNamespace(
        world_size=2,
        accelerator_config=args.accelerator_config,
        dataloader_drop_last=args.dataloader_drop_last,
        train_batch_size=args.train_batch_size,
    )
    if batches is None:
        even_shares(two, range(count))
        return
    with pytest.raises(ValueError, match=f"^accelerator_config: expected even_batches=True where {batches} "):
        even_shares(two, range(count))
