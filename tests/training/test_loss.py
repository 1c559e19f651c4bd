"""The Trainer's loss: equal to the module's, its gradient the same however a batch is cut; teacher and criterion."""

import copy

import pytest

pytest.importorskip("transformers")

import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from mlot import MultiLevelOTConfig
from mlot.nn import MultiLevelOTLoss, ULDLoss
from mlot.training import MultiLevelOTMixin, MultiLevelOTTrainer
from training_cases import (
    FLOAT32,
    TEXTS,
    examples,
    make_arguments,
    make_collator,
    make_student,
    make_teacher,
    make_trainer,
)

CONFIG = MultiLevelOTConfig(k=6)


class KeepGradients(TrainerCallback):
    """Copies the gradients of the first step."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.found = {name: weight.grad.clone() for name, weight in model.named_parameters()}


def gradients(folder, batch_size, accumulation, model=None, **rest):
    keep = KeepGradients()
    trainer = make_trainer(
        folder,
        model=make_student() if model is None else model,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        callbacks=[keep],
        **rest,
    )
    trainer.train()
    return keep.found, trainer.state.log_history[0]


def by_hand(pairs="boundary", criterion=None):
    """One batch of all examples, one division by all tokens that the student is asked for."""
    student, batch = make_student(), make_collator()(examples())
    logits = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    with torch.no_grad():
        taught = make_teacher()(
            batch["teacher_input_ids"], attention_mask=batch["teacher_attention_mask"]
        ).logits
    count = int((batch["labels"][:, 1:] != -100).sum())
    criterion = MultiLevelOTLoss(CONFIG, 0.7) if criterion is None else criterion
    given = (logits, taught, batch["labels"], batch["teacher_labels"], count)
    terms = criterion.terms(*given, pairs=batch["pairs"] if pairs == "boundary" else None)
    terms.loss.backward()
    return terms, {name: weight.grad for name, weight in student.named_parameters()}


def test_the_gradient_in_the_logits_memory_is_the_same(tmp_path):
    plain, _ = gradients(tmp_path, 4, 2)
    overwritten, _ = gradients(tmp_path, 4, 2, overwrite_logits=True)
    assert all(torch.equal(gradient, overwritten[name]) for name, gradient in plain.items())


@pytest.mark.parametrize(
    ("pairs", "head", "cuts"),
    [
        ("boundary", False, [(8, 1), (4, 2), (2, 4), (1, 8), (3, 3)]),
        ("boundary", True, [(1, 8), (3, 3)]),
        ("index", False, [(2, 4), (3, 3)]),
    ],
)
def test_gradient_does_not_depend_on_accumulation(tmp_path, pairs, head, cuts):
    """Of batches with unlike lengths, and for cuts into micro-batches of unlike sizes."""
    terms, expected = by_hand(pairs)
    for batch_size, accumulation in cuts:
        found, logged = gradients(tmp_path, batch_size, accumulation, pairs=pairs, use_linear_head=head)
        for name, gradient in expected.items():
            torch.testing.assert_close(
                found[name], gradient, rtol=1e-9, atol=1e-12, msg=f"{name}, {batch_size}"
            )
        assert logged["loss"] == pytest.approx(terms.loss.item(), rel=FLOAT32)
        assert logged["ce"] == pytest.approx(terms.cross_entropy.item(), rel=1e-9)
        for name in ("had", "sl", "sd"):
            assert logged[name] == pytest.approx(getattr(terms.ot, name).item(), rel=1e-9)


@pytest.mark.parametrize("known", [True, False])
def test_gradient_of_cross_entropy_alone_does_not_depend_on_accumulation_or_what_the_model_says(
    tmp_path, known
):
    """Labels of what nothing predicts are not counted either, other than transformers does for unknown models."""

    def start():
        student = make_student()
        if not known:
            student.accepts_loss_kwargs = False
            student.loss_type = "Other"
        return student

    def collate(rows):
        batch = make_collator()(rows)
        batch["labels"][:, 0] = batch["input_ids"][:, 0]
        return batch

    student, batch = make_student(), make_collator()(examples())
    log_probs = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    targets = (batch["labels"] != -100).nonzero().tolist()
    loss = -sum(log_probs[n, t - 1, batch["labels"][n, t]] for n, t in targets) / len(targets)
    loss.backward()
    for batch_size, accumulation in ((8, 1), (1, 8), (3, 3)):
        found, logged = gradients(
            tmp_path, batch_size, accumulation, start(), teacher=None, alpha=0.0, collator=collate
        )
        for name, weight in student.named_parameters():
            torch.testing.assert_close(found[name], weight.grad, rtol=1e-9, atol=1e-12)
        assert logged["loss"] == pytest.approx(loss.item(), rel=FLOAT32)
        assert logged["ce"] == pytest.approx(loss.item(), rel=1e-9)
        assert "had" not in logged


def test_loss_on_its_own_is_the_mean_of_its_micro_batch(tmp_path):
    trainer, batch = make_trainer(tmp_path), make_collator()(examples()[:3])
    count = (batch["labels"][:, 1:] != -100).sum()
    alone = trainer.compute_loss(trainer.model, batch).item()
    assert alone == pytest.approx(
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=count).item(), rel=1e-12
    )
    assert alone == pytest.approx(
        2 * trainer.compute_loss(trainer.model, batch, num_items_in_batch=2 * count).item(), rel=1e-12
    )


def test_examples_without_anything_to_learn_add_nothing(tmp_path):
    trainer, collator = (
        make_trainer(tmp_path),
        make_collator(max_length=16, teacher_max_length=16, add_end=False),
    )
    batch = collator([{"text": "the cat"}, {"text": ""}, {"prompt": "a" * 40, "completion": "b"}])
    assert (batch["labels"][1:] == -100).all()
    assert collator.truncation.empty == 2
    student = trainer.model
    loss = trainer.compute_loss(student, batch)
    loss.backward()
    assert all(weight.grad.isfinite().all() for weight in student.parameters())
    alone = trainer.compute_loss(student, collator([{"text": "the cat"}]))
    assert loss.item() == pytest.approx(alone.item(), rel=1e-12)
    nothing = trainer.compute_loss(student, collator([{"text": ""}]))
    assert nothing.item() == 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_does_not_depend_on_the_padding_side_or_multiples(tmp_path, side):
    """Both models count positions: GPT-2 by learnt ones, Llama by rotation."""
    trainer = make_trainer(tmp_path)
    expected = trainer.compute_loss(trainer.model, make_collator()(examples())).item()
    batch = make_collator(padding_side=side, pad_to_multiple_of=16)(examples())
    assert batch["input_ids"].shape[1] % 16 == 0
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=1e-9)


def test_weight_zero_trains_as_cross_entropy_alone(tmp_path):
    states, logs = [], []
    for kwargs in ({"teacher": None}, {}):
        student = make_student(dropout=0.2)
        trainer = make_trainer(
            tmp_path, model=student, alpha=0.0, max_steps=4, per_device_train_batch_size=4, optim="sgd",
            learning_rate=0.1, **kwargs,
        )  # fmt: skip
        trainer.train()
        states.append(student.state_dict())
        logs.append([entry for entry in trainer.state.log_history if "ce" in entry])
    assert all("distillation" not in entry for each in logs for entry in each)
    assert [entry["ce"] for entry in logs[0]] == [entry["ce"] for entry in logs[1]]
    start = make_student().state_dict()
    for name, weight in states[0].items():
        assert torch.equal(states[1][name], weight)
    assert any((states[0][name] != start[name]).any() for name in start)


class KeepOrder(MultiLevelOTTrainer):
    """Keeps the batches that the student reads."""

    def compute_loss(self, model, inputs, **kwargs):
        self.__dict__.setdefault("read", []).append(inputs["input_ids"].tolist())
        return super().compute_loss(model, inputs, **kwargs)


def test_with_and_without_teacher_the_order_of_data_and_the_dropout_are_the_same(tmp_path):
    """Three epochs with dropout in both models, whose random numbers must not get into the order."""
    trainers = []
    for kwargs in ({"teacher": None, "alpha": 0.0}, {"teacher": make_teacher(0.5)}):
        trainer = make_trainer(
            tmp_path,
            kind=KeepOrder,
            model=make_student(dropout=0.3),
            max_steps=12,
            per_device_train_batch_size=2,
            **kwargs,
        )
        trainer.train()
        trainers.append(trainer)
    plain, distilled = trainers
    assert plain.read == distilled.read
    assert plain.read[:4] != plain.read[4:8]  # each epoch has an order of its own
    first = [trainer.state.log_history[0]["ce"] for trainer in trainers]
    assert first[0] == pytest.approx(first[1], rel=1e-12)


# -- the teacher -----------------------------------------------------------------------------------------


def test_teacher_is_only_read(tmp_path):
    teacher = make_teacher(0.5).train()
    before = copy.deepcopy(teacher.state_dict())
    trainer = make_trainer(tmp_path, teacher=teacher, save_strategy="steps", save_steps=1, max_steps=2)
    trainer.train()
    for name, weight in teacher.state_dict().items():
        assert torch.equal(weight, before[name])
    assert all(weight.grad is None and weight.requires_grad for weight in teacher.parameters())
    assert not teacher.training
    optimised = {id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]}
    assert optimised == {id(weight) for weight in trainer.model.parameters()}
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "checkpoint-2").iterdir()}
    student = sum(weight.nbytes for weight in trainer.model.parameters())
    assert sizes["model.safetensors"] < 1.1 * student
    assert sizes["optimizer.pt"] < 2.5 * student
    teacher.train()
    trainer.compute_loss(trainer.model, make_collator()(examples()))
    assert not teacher.training


def test_teacher_keeps_its_type_or_takes_the_one_asked_for(tmp_path):
    batch, student = make_collator()(examples()), make_student()
    exact = make_trainer(tmp_path, model=student).compute_loss(student, batch).item()
    half = make_teacher(dtype=torch.bfloat16)
    trainer = make_trainer(tmp_path, model=student, teacher=half)
    assert half.dtype == torch.bfloat16
    loss = trainer.compute_loss(student, batch)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(exact, rel=1e-2)
    asked = make_teacher()
    other = make_trainer(tmp_path, model=student, teacher=asked, teacher_dtype="bfloat16")
    assert asked.dtype == torch.bfloat16
    assert other.compute_loss(student, batch).item() == pytest.approx(loss.item(), rel=1e-12)


def moves(model):
    """Record what a model is moved to."""
    found = []
    original = model.to

    def to(*args, **kwargs):
        found.append((args, kwargs))
        return original(*args, **kwargs)

    model.to = to
    return found


def test_teacher_that_is_spread_over_devices_is_not_moved(tmp_path):
    placed, free = make_teacher(), make_teacher()
    placed.hf_device_map = {"model.embed_tokens": 0, "model.layers.0": 1, "lm_head": 1}
    found = moves(placed), moves(free)
    for teacher in (placed, free):
        trainer = make_trainer(tmp_path, teacher=teacher, teacher_device="cpu")
        assert trainer.compute_loss(trainer.model, make_collator()(examples())).isfinite()
    assert found == ([], [((), {"device": torch.device("cpu")})])


class Elsewhere(nn.Module):
    """A teacher on a device of its own: what it is given and what it gives is on that device."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.devices = []

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def forward(self, input_ids, attention_mask):
        self.devices += [input_ids.device.type, attention_mask.device.type]
        outputs = self.model(torch.randint(3, 9, (1, 2)))
        shape = (*input_ids.shape, outputs.logits.shape[-1])
        outputs.logits = torch.zeros(shape, device="meta")
        return outputs


def test_teacher_on_another_device_gets_its_inputs_there(tmp_path):
    from mlot.training._batch import Batch
    from mlot.training._teacher import ModelTeacher

    model = make_teacher()
    teacher = Elsewhere(model)
    model.model.embed_tokens.weight.data = model.model.embed_tokens.weight.data.to("cpu")
    batch = Batch.of(make_collator()(examples()))
    found, labels = ModelTeacher(teacher, device=None, config=None)(batch, torch.device("meta"))
    assert teacher.devices == ["cpu", "cpu"]
    assert found.device.type == "meta"
    assert labels is batch.teacher_labels
    traces, none = ModelTeacher(model, device=None, config=CONFIG)(batch, torch.device("meta"))
    assert none is None
    assert {traces.log_probs.device.type, traces.mask.device.type, traces.columns.device.type} == {"meta"}


# -- the criterion and other Trainers ---------------------------------------------------------------------


def test_criterion_can_be_another(tmp_path):
    batch, student = make_collator()(examples()), make_student()
    trainer = make_trainer(tmp_path, model=student, criterion=ULDLoss(0.3))
    terms, expected = by_hand(criterion=ULDLoss(0.3))
    loss = trainer.compute_loss(student, batch)
    loss.backward()
    assert loss.item() == pytest.approx(terms.loss.item(), rel=1e-12)
    for name, weight in student.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], rtol=1e-9, atol=1e-12)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["distillation"] == pytest.approx(terms.distillation.item(), rel=1e-9)
    assert logged["loss"] == pytest.approx(logged["ce"] + 0.3 * logged["distillation"], rel=FLOAT32)


class Plain(nn.Module):
    """A criterion that only returns a loss."""

    def forward(self, student, teacher, student_labels, teacher_labels, num_items, *, pairs):
        assert pairs is not None
        assert teacher_labels.shape == teacher.shape[:2]
        mask = (student_labels[:, 1:] != -100)[..., None]
        return (student[:, :-1].square() * mask).sum() / num_items


def test_criterion_without_terms(tmp_path):
    found = [gradients(tmp_path, size, steps, criterion=Plain()) for size, steps in ((8, 1), (2, 4))]
    for name, gradient in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], gradient, rtol=1e-9, atol=1e-12)
    for _, logged in found:
        assert logged["loss"] == pytest.approx(logged["ce"] + logged["distillation"], rel=FLOAT32)
        assert logged["loss"] == pytest.approx(found[0][1]["loss"], rel=FLOAT32)


class TheirTrainer(Trainer):
    """Somebody's Trainer, with something of its own."""

    def __init__(self, *args, own=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.own = own
        self.steps = 0

    def training_step(self, *args, **kwargs):
        self.steps += 1
        return super().training_step(*args, **kwargs)


class MyTrainer(MultiLevelOTMixin, TheirTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        return loss + self.own * len(inputs["input_ids"]) / len(TEXTS)


def test_mixin_for_ones_own_trainer(tmp_path):
    terms, expected = by_hand()
    keep = KeepGradients()
    trainer = MyTrainer(
        make_student(),
        make_arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4),
        make_collator(),
        examples(),
        teacher=make_teacher(),
        own=5,
        callbacks=[keep],
    )
    trainer.train()
    assert trainer.steps == 4
    for name, gradient in expected.items():
        torch.testing.assert_close(keep.found[name], gradient, rtol=1e-9, atol=1e-12)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(terms.loss.item() + 5, rel=FLOAT32)
