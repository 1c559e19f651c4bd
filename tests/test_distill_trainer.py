"""The Trainer's loss, its gradient under accumulation, its order of batches and its logs."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    TrainerCallback,
    TrainingArguments,
)

from mlot import MultiLevelOTConfig
from mlot.distill import DistillationTrainer, PairCollator, Window, WindowDataset
from mlot.nn import MultiLevelOTLoss

STUDENT_TOKENS, TEACHER_TOKENS = 23, 31
CONFIG = MultiLevelOTConfig(k=6)
#: The Trainer adds up the losses that it logs in float32, whatever the model's type.
FLOAT32 = 4 * 2.0**-24


def make_student(dropout=0.0):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=STUDENT_TOKENS,
        n_positions=16,
        n_embd=16,
        n_layer=1,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config).double()


def make_teacher(dropout=0.0):
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=TEACHER_TOKENS,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        attention_dropout=dropout,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).double()


def make_dataset(count=8):
    """Windows of unlike lengths, two of them with nothing to predict on one side."""
    generator = torch.Generator().manual_seed(2)
    windows = []
    for n in range(count):
        sizes = torch.randint(2, 13, (2,), generator=generator).tolist()
        sizes = [1 if n == 3 else sizes[0], 1 if n == 5 else sizes[1]]
        student = torch.randint(3, STUDENT_TOKENS, (sizes[0],), generator=generator).tolist()
        teacher = torch.randint(3, TEACHER_TOKENS, (sizes[1],), generator=generator).tolist()
        windows.append(Window(str(n), n, (1, *student[1:]), (1, *teacher[1:])))
    return WindowDataset(windows)


def make_arguments(folder, **settings):
    settings = {
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "max_grad_norm": 0.0,
        "remove_unused_columns": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "seed": 3,
        "data_seed": 3,
    } | settings
    return TrainingArguments(output_dir=str(folder), **settings)


def distilling():
    return {"teacher": make_teacher(), "criterion": MultiLevelOTLoss(CONFIG, 0.7)}


class KeepGradients(TrainerCallback):
    """Copies the gradients of the first step."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.found = {name: weight.grad.clone() for name, weight in model.named_parameters()}


def gradients(folder, student, batch_size, accumulation, collator=None, **kwargs):
    keep = KeepGradients()
    trainer = DistillationTrainer(
        student,
        make_arguments(
            folder, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation
        ),
        data_collator=PairCollator(0, 0) if collator is None else collator,
        train_dataset=make_dataset(),
        callbacks=[keep],
        **kwargs,
    )
    trainer.train()
    return keep.found, trainer.state.log_history[0]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("with_teacher", [True, False])
def test_gradient_does_not_depend_on_accumulation(tmp_path, known, with_teacher):
    """For models whose loss transformers knows, and for others; with labels on what nothing predicts, too."""

    def start():
        student = make_student()
        if not known:
            student.accepts_loss_kwargs = False
            student.loss_type = "Other"
        return student

    def collate(windows):
        batch = PairCollator(0, 0)(windows)
        batch["labels"][:, 0] = batch["input_ids"][:, 0]
        return batch

    # by hand: one batch, one division by all the tokens that the student predicts
    student, batch = start(), PairCollator(0, 0)(make_dataset().windows)
    predicted = int((batch["labels"][:, 1:] != -100).sum())
    logits = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    if with_teacher:
        taught = make_teacher()(batch["teacher_input_ids"], attention_mask=batch["teacher_attention_mask"])
        terms = MultiLevelOTLoss(CONFIG, 0.7).terms(
            logits, taught.logits.detach(), batch["labels"], batch["teacher_labels"], predicted
        )
        loss = terms.loss
    else:
        log_probs = logits.log_softmax(-1)
        loss = (
            -sum(
                log_probs[n, t - 1, batch["labels"][n, t]]
                for n, t in (batch["labels"] != -100).nonzero().tolist()
            )
            / predicted
        )
    loss.backward()
    expected = {name: weight.grad for name, weight in student.named_parameters()}

    for batch_size, accumulation in ((8, 1), (4, 2), (1, 8), (3, 3)):
        found, logged = gradients(
            tmp_path, start(), batch_size, accumulation, collate, **(distilling() if with_teacher else {})
        )
        for name, gradient in expected.items():
            torch.testing.assert_close(
                found[name], gradient, rtol=1e-9, atol=1e-12, msg=f"{name}, {batch_size}"
            )
        assert logged["loss"] == pytest.approx(loss.item(), rel=FLOAT32)
        assert logged["ce"] == pytest.approx(
            terms.cross_entropy.item() if with_teacher else loss.item(), rel=1e-9
        )
        if with_teacher:
            for name in ("had", "sl", "sd"):
                assert logged[name] == pytest.approx(getattr(terms.ot, name).item(), rel=1e-9)


def test_pairs_of_the_batch_reach_the_loss(tmp_path):
    def some_pairs(window):
        count = min(len(window.student), len(window.teacher)) - 1
        return [[count - 1 - n, count - 1 - n] for n in range(count // 2)]

    student, teacher = make_student(), make_teacher()
    criterion = MultiLevelOTLoss(CONFIG)
    batch = PairCollator(0, 0, some_pairs)(make_dataset().windows)
    trainer = DistillationTrainer(student, make_arguments(tmp_path), teacher=teacher, criterion=criterion)
    loss = trainer.compute_loss(student, batch)
    with torch.no_grad():
        logits = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        taught = teacher(batch["teacher_input_ids"], attention_mask=batch["teacher_attention_mask"]).logits
    count = int((batch["labels"][:, 1:] != -100).sum())
    inputs = (logits, taught, batch["labels"], batch["teacher_labels"], count)
    assert loss.item() == pytest.approx(criterion(*inputs, pairs=batch["pairs"]).item(), rel=1e-12)
    assert loss.item() != pytest.approx(criterion(*inputs).item(), rel=1e-6)


def test_logged_terms_are_means_over_steps_and_make_up_the_loss(tmp_path):
    alpha = 0.4
    trainer = DistillationTrainer(
        make_student(),
        make_arguments(
            tmp_path, max_steps=6, per_device_train_batch_size=4, logging_steps=3, learning_rate=1e-2
        ),
        teacher=make_teacher(),
        criterion=MultiLevelOTLoss(CONFIG, alpha),
        data_collator=PairCollator(0, 0),
        train_dataset=make_dataset(),
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == [3, 6]
    for entry in logs:
        made_up = entry["ce"] + alpha * (entry["had"] + 0.1 * entry["sl"] + 0.1 * entry["sd"])
        assert entry["loss"] == pytest.approx(made_up, rel=FLOAT32)
    assert logs[1]["ce"] < logs[0]["ce"]


class KeepOrder(DistillationTrainer):
    """Keeps the batches that the student reads."""

    def compute_loss(self, model, inputs, **kwargs):
        self.__dict__.setdefault("read", []).append(inputs["input_ids"].tolist())
        return super().compute_loss(model, inputs, **kwargs)


def test_with_and_without_teacher_the_order_of_data_and_the_dropout_are_the_same(tmp_path):
    """Three epochs with dropout in both models, whose random numbers must not get into the order."""
    arguments = make_arguments(tmp_path, max_steps=12, per_device_train_batch_size=2)
    trainers = []
    for kwargs in ({}, {"teacher": make_teacher(0.5), "criterion": MultiLevelOTLoss(CONFIG)}):
        student = make_student(dropout=0.3)
        trainer = KeepOrder(
            student, arguments, data_collator=PairCollator(0, 0), train_dataset=make_dataset(), **kwargs
        )
        trainer.train()
        trainers.append(trainer)
    plain, distilled = trainers
    assert plain.read == distilled.read
    assert plain.read[:4] != plain.read[4:8]  # each epoch has an order of its own
    for epoch in (plain.read[:4], plain.read[4:8], plain.read[8:]):
        first_texts = {tuple(row[:2]) for batch in epoch for row in batch}
        assert first_texts == {tuple([*w.student, 0][:2]) for w in make_dataset().windows}
    first = [trainer.state.log_history[0]["ce"] for trainer in trainers]
    assert first[0] == pytest.approx(first[1], rel=1e-12)


def test_weight_zero_trains_as_cross_entropy_alone(tmp_path):
    weights = []
    for kwargs in ({}, {"teacher": make_teacher(), "criterion": MultiLevelOTLoss(CONFIG, 0.0)}):
        student = make_student()
        arguments = make_arguments(
            tmp_path, max_steps=5, per_device_train_batch_size=4, optim="sgd", learning_rate=0.1
        )
        DistillationTrainer(
            student, arguments, data_collator=PairCollator(0, 0), train_dataset=make_dataset(), **kwargs
        ).train()
        weights.append(student.state_dict())
    start = make_student().state_dict()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-9, atol=1e-12)
    assert any((weights[0][name] != start[name]).any() for name in start)


def test_teacher_is_only_read(tmp_path):
    teacher = make_teacher(0.5)
    before = copy.deepcopy(teacher.state_dict())
    teacher.train()
    gradients(tmp_path, make_student(), 8, 1, teacher=teacher, criterion=MultiLevelOTLoss(CONFIG))
    for name, weight in teacher.state_dict().items():
        assert torch.equal(weight, before[name])
    assert all(weight.grad is None for weight in teacher.parameters())
    assert not teacher.training


def test_evaluation_measures_logs_and_leaves_the_terms_alone(tmp_path):
    measured = []

    def measure(model):
        measured.append(model)
        return 3.5

    student = make_student()
    trainer = DistillationTrainer(
        student,
        make_arguments(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, eval_on_start=True),
        measure=measure,
        data_collator=PairCollator(0, 0),
        train_dataset=make_dataset(),
        eval_dataset=make_dataset(),
    )
    trainer.train()
    found = [
        (entry["step"], entry["eval_bits_per_byte"])
        for entry in trainer.state.log_history
        if "eval_bits_per_byte" in entry
    ]
    assert found == [(0, 3.5), (1, 3.5), (2, 3.5)]
    assert all(model is student for model in measured)
    assert sum("ce" in entry for entry in trainer.state.log_history) == 2


def test_outputs_are_returned_on_request(tmp_path):
    student = make_student()
    trainer = DistillationTrainer(student, make_arguments(tmp_path))
    loss, outputs = trainer.compute_loss(
        student, PairCollator(0, 0)(make_dataset().windows), return_outputs=True
    )
    assert loss.shape == ()
    assert outputs.logits.shape[-1] == STUDENT_TOKENS


def test_what_the_trainer_refuses(tmp_path):
    with pytest.raises(ValueError, match="args: expected remove_unused_columns=False, got True"):
        DistillationTrainer(make_student(), make_arguments(tmp_path, remove_unused_columns=True))
    with pytest.raises(ValueError, match="criterion: expected None without a teacher, got a loss"):
        DistillationTrainer(make_student(), make_arguments(tmp_path), criterion=MultiLevelOTLoss())
    with pytest.raises(ValueError, match="measure: expected a function of the model, got None"):
        DistillationTrainer(make_student(), make_arguments(tmp_path)).evaluate()


RANK = """
import sys
import torch
import test_distill_trainer as t

torch.set_num_threads(1)
folder = sys.argv[1]
found, _ = t.gradients(folder, t.make_student(), 2, 2, **t.distilling())
if torch.distributed.get_rank() == 0:
    torch.save({name.removeprefix("module."): gradient for name, gradient in found.items()}, folder + "/found.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_have_the_gradient_of_one(tmp_path):
    """Two processes with two micro-batches of two windows each; their counts of tokens differ."""
    expected, _ = gradients(tmp_path, make_student(), 8, 1, **distilling())
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    here = Path(__file__).parent
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(script), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": f"{here.parent}{os.pathsep}{here}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt")
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
