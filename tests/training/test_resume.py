"""A run that is stopped and resumed from a checkpoint is the run without the stop, weights and logs."""

import json

import pytest

pytest.importorskip("transformers")

import torch

from mlot.training._terms import DIAGNOSTICS
from training_cases import make_student, make_teacher, make_trainer

NAMES = ("loss", "ce", "had", "sl", "sd", "grad_norm", "learning_rate", *DIAGNOSTICS)


def run(folder, *, resume=None, stop=6, **rest):
    """Train a student with dropout for some of six steps: shuffled, accumulated, with logs across the stop."""
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": stop,
        "learning_rate": 1e-2,
        "max_grad_norm": 0.5,
        "lr_scheduler_type": "cosine",
    } | rest
    student = make_student(dropout=0.2, dtype=torch.float32)
    trainer = make_trainer(folder, model=student, teacher=make_teacher(0.2, torch.float32), **settings)
    trainer.train(resume_from_checkpoint=resume)
    logs = [
        {name: entry[name] for name in (*NAMES, "step", "epoch") if name in entry}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return student.state_dict(), logs, trainer


@pytest.mark.parametrize(
    "settings", [{}, {"logging_steps": 4, "log_diagnostics_every": 2}, {"use_linear_head": True}]
)
def test_resumed_run_is_the_run(tmp_path, settings):
    weights, logs, _ = run(tmp_path / "whole", **settings)
    run(tmp_path / "parts", stop=3, **settings)
    resumed, found, _ = run(
        tmp_path / "parts", stop=3, resume=str(tmp_path / "parts" / "checkpoint-3"), **settings
    )
    for name, weight in weights.items():
        assert torch.equal(resumed[name], weight), name
    assert found == logs
    assert [entry["step"] for entry in logs] == ([4] if "logging_steps" in settings else [2, 4, 6])


def test_resumed_with_callback_states_restored(tmp_path):
    weights, logs, _ = run(tmp_path / "whole")
    run(tmp_path / "parts", stop=3)
    resumed, found, _ = run(
        tmp_path / "parts",
        stop=3,
        resume=str(tmp_path / "parts" / "checkpoint-3"),
        restore_callback_states_from_checkpoint=True,
    )
    assert found == logs
    assert all(torch.equal(resumed[name], weight) for name, weight in weights.items())


def test_sums_are_in_the_checkpoint(tmp_path):
    _, logs, _ = run(tmp_path, stop=3)
    state = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text(encoding="utf-8"))
    kept = state["stateful_callbacks"]["RunningTerms"]["args"]
    assert kept["since"] == 2
    assert set(kept["sums"]) == {"ce", "had", "sl", "sd"}
    # the mean of steps 3 and 4, of which the first is in the checkpoint
    assert 0 < kept["sums"]["had"] < 2 * logs[1]["had"]
    assert kept["loss"] > 0


def test_the_mean_loss_of_the_rest_is_that_of_the_rest(tmp_path):
    run(tmp_path, stop=3)
    state = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text(encoding="utf-8"))
    third = state["stateful_callbacks"]["RunningTerms"]["args"]["loss"]
    _, logs, trainer = run(tmp_path, stop=3, resume=str(tmp_path / "checkpoint-3"))
    rest = 2 * logs[1]["loss"] - third + 2 * logs[2]["loss"]
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(rest / 3, rel=1e-6)


def test_checkpoint_of_another_trainer_can_be_gone_on_from(tmp_path):
    run(tmp_path, stop=3)
    path = tmp_path / "checkpoint-3" / "trainer_state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    del state["stateful_callbacks"]["RunningTerms"]
    path.write_text(json.dumps(state), encoding="utf-8")
    _, found, trainer = run(tmp_path, stop=3, resume=str(tmp_path / "checkpoint-3"))
    assert [entry["step"] for entry in found] == [2, 4, 6]
    assert (tmp_path / "checkpoint-6").is_dir()
    assert trainer.state.global_step == 6


def test_checkpoints_hold_the_students_tokenizer(tmp_path):
    from transformers import AutoTokenizer

    _, _, trainer = run(tmp_path, stop=3)
    found = AutoTokenizer.from_pretrained(tmp_path / "checkpoint-3")
    assert found.get_vocab() == trainer.data_collator.tokenizer.get_vocab()
