"""What is logged: terms that make up the loss, diagnostics of the last step, to whatever listens."""

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from transformers import TrainerCallback

import mlot
from mlot.nn import MultiLevelOTLoss
from mlot.training._terms import DIAGNOSTICS, RunningTerms
from training_cases import FLOAT32, examples, make_collator, make_student, make_teacher, make_trainer

TERMS = ("loss", "ce", "had", "sl", "sd")


class Listen(TrainerCallback):
    """What any integration gets."""

    def __init__(self):
        self.heard = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.heard.append((state.global_step, dict(logs)))


def test_terms_are_means_over_steps_and_make_up_the_loss_wherever_they_go(tmp_path):
    listen = Listen()
    trainer = make_trainer(
        tmp_path,
        max_steps=6,
        per_device_train_batch_size=4,
        logging_steps=3,
        learning_rate=1e-2,
        alpha=0.4,
        callbacks=[listen],
    )
    trainer.train()
    logs = [(step, logs) for step, logs in listen.heard if "loss" in logs]
    assert [step for step, _ in logs] == [3, 6]
    for _, entry in logs:
        assert {*TERMS, *DIAGNOSTICS} < set(entry)
        made_up = entry["ce"] + 0.4 * (entry["had"] + 0.1 * entry["sl"] + 0.1 * entry["sd"])
        assert entry["loss"] == pytest.approx(made_up, rel=FLOAT32)
        assert all(type(value) is float for value in entry.values())
    assert logs[1][1]["ce"] < logs[0][1]["ce"]


def test_means_are_over_the_steps_between_logs(tmp_path):
    every, third = (
        make_trainer(
            tmp_path,
            max_steps=6,
            per_device_train_batch_size=3,
            gradient_accumulation_steps=2,
            logging_steps=n,
        )
        for n in (1, 3)
    )
    for trainer in (every, third):
        trainer.train()
    one = [entry for entry in every.state.log_history if "loss" in entry]
    other = [entry for entry in third.state.log_history if "loss" in entry]
    for name in TERMS:
        means = np.array([entry[name] for entry in one]).reshape(2, 3).mean(axis=1)
        np.testing.assert_allclose(
            [entry[name] for entry in other], means, rtol=FLOAT32 if name == "loss" else 1e-12
        )


def expected_diagnostics():
    """Of one batch with all examples, by the library's functions and by counting."""
    student, teacher, batch = make_student(), make_teacher(), make_collator()(examples())
    with torch.no_grad():
        logits = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        taught = teacher(batch["teacher_input_ids"], attention_mask=batch["teacher_attention_mask"]).logits
    masks = mlot.mask_from_labels(batch["labels"]), mlot.mask_from_labels(batch["teacher_labels"])
    result = mlot.multi_level_ot(
        logits,
        taught,
        student_mask=masks[0],
        teacher_mask=masks[1],
        pairs=batch["pairs"],
        config=mlot.MultiLevelOTConfig(k=6),
    )
    found = result.diagnostics()
    expected = {name: getattr(found, name).mean() for name in DIAGNOSTICS[:-1]}
    expected["paired_share"] = (batch["pairs"][:, :, 0] >= 0).sum().item() / masks[0].sum().item()
    # kept mass once more, from the probabilities
    share = [
        taught[n].softmax(-1)[masks[1][n]][:, result.teacher_columns[n]].sum(-1).mean().item()
        for n in range(len(taught))
    ]
    assert expected["teacher_kept_mass"] == pytest.approx(np.mean(share), rel=1e-9)
    return expected


@pytest.mark.parametrize(("size", "accumulation"), [(8, 1), (3, 3), (1, 8)])
def test_diagnostics_do_not_depend_on_accumulation(tmp_path, size, accumulation):
    trainer = make_trainer(
        tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    for name, value in expected_diagnostics().items():
        assert logged[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize(("every", "expected"), [(0, []), (1, [1, 2, 3, 4]), (2, [2, 4]), (3, [3])])
def test_diagnostics_are_computed_at_some_logs_alone(tmp_path, monkeypatch, every, expected):
    calls = []
    original = mlot.MultiLevelOTResult.diagnostics
    monkeypatch.setattr(
        mlot.MultiLevelOTResult, "diagnostics", lambda self, plan=None: calls.append(1) or original(self)
    )
    trainer = make_trainer(
        tmp_path, max_steps=8, logging_steps=2, per_device_train_batch_size=4, log_diagnostics_every=every
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [n + 1 for n, entry in enumerate(logs) if "paired_share" in entry] == expected
    assert len(calls) == len(expected)


def test_matching_without_a_bound_has_no_gap(tmp_path):
    trainer = make_trainer(tmp_path, matching="rank")
    trainer.train()
    assert "matching_gap" not in trainer.state.log_history[0]
    assert trainer.state.log_history[0]["paired_share"] > 0


def test_sequences_without_pairs_are_in_no_mean():
    running = RunningTerms()
    student, teacher = torch.randn(2, 5, 30), torch.randn(2, 4, 40)
    masks = torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)
    masks[1][1] = False
    whole = mlot.multi_level_ot(student, teacher, student_mask=masks[0], teacher_mask=masks[1])
    running.keep(whole, masks[0].sum())
    table = running.diagnostics()
    assert table[0, 1] == 1
    assert table[0, 0] == pytest.approx(whole.diagnostics().teacher_kept_mass[0])
    assert table[4].tolist() == [4, 10]


def test_nothing_of_the_graph_is_kept(tmp_path):
    trainer = make_trainer(tmp_path, logging_steps=100)
    trainer.train()
    for result, _ in trainer._running._results:
        held = [result.loss, result.had, result.sl, result.sd, *vars(result._evidence).values()]
        assert not any(isinstance(value, torch.Tensor) and value.requires_grad for value in held)


def test_epochs_can_be_what_is_logged(tmp_path):
    trainer = make_trainer(
        tmp_path, max_steps=-1, num_train_epochs=2, per_device_train_batch_size=4, logging_strategy="epoch"
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == [2, 4]
    assert all("paired_share" in entry and "had" in entry for entry in logs)


def test_what_report_to_names_gets_them(tmp_path, monkeypatch):
    from transformers.integrations import integration_utils

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "listening", Listen)
    trainer = make_trainer(tmp_path, report_to="listening")
    trainer.train()
    heard = next(cb for cb in trainer.callback_handler.callbacks if isinstance(cb, Listen)).heard
    names = integration_utils.rewrite_logs(heard[0][1])
    assert {f"train/{name}" for name in (*TERMS, *DIAGNOSTICS)} < set(names)


def test_tensorboard_gets_them(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    make_trainer(tmp_path, report_to="tensorboard").train()
    folder = next(tmp_path.rglob("events.out*")).parent
    found = events.EventAccumulator(str(folder))
    found.Reload()
    assert {f"train/{name}" for name in (*TERMS, *DIAGNOSTICS)} < set(found.Tags()["scalars"])


def test_a_second_training_begins_anew(tmp_path):
    trainer = make_trainer(
        tmp_path,
        max_steps=3,
        logging_steps=2,
        optim="sgd",
        criterion=MultiLevelOTLoss(mlot.MultiLevelOTConfig(k=6), 0.7),
    )
    trainer.train()
    first = [entry for entry in trainer.state.log_history if "loss" in entry]
    with torch.no_grad():
        trainer.model.load_state_dict(make_student().state_dict())
    trainer.train()
    second = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in first] == [entry["step"] for entry in second] == [2]
    assert first[0]["had"] == second[0]["had"]
