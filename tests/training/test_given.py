"""Students and teachers that are given by folder or by their id in the cache, and devices that are not there."""

import pytest

pytest.importorskip("transformers")

import torch

import mlot
from mlot.saved import save_teacher
from training_cases import examples, make_arguments, make_collator, make_student, make_teacher, make_trainer


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A student's folder, and the id of a teacher in the cache."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--somebody--teacher"
    make_student().save_pretrained(tmp_path / "student")
    make_teacher().save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return str(tmp_path / "student"), "somebody/teacher"


def loss_and_gradient(trainer):
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(examples()))
    loss.backward()
    return loss.item(), [weight.grad for weight in trainer.model.parameters()]


def compare(trainer, other):
    (loss, slopes), (wanted, expected) = map(loss_and_gradient, (trainer, other))
    assert loss == pytest.approx(wanted, rel=1e-12)
    for slope, want in zip(slopes, expected, strict=True):
        torch.testing.assert_close(slope, want, rtol=1e-10, atol=1e-14)


def test_models_by_name_are_the_models(tmp_path, folders):
    student, teacher = folders
    compare(make_trainer(tmp_path, model=student, teacher=teacher), make_trainer(tmp_path))
    several = [mlot.Teacher(teacher, 0.4), mlot.Teacher(make_teacher(), 0.6)]
    trainer = make_trainer(tmp_path, model=tmp_path / "student", teacher=several)
    compare(trainer, make_trainer(tmp_path))
    assert not trainer.teacher[0].source.training


def test_the_type_of_a_teacher_by_name(tmp_path, folders):
    trainer = make_trainer(tmp_path, teacher=folders[1], teacher_dtype="float32")
    assert {weight.dtype for weight in trainer.teacher.parameters()} == {torch.float32}


def test_a_saved_teacher_by_its_folder(tmp_path):
    collator = make_collator(keys=True)
    read = collator.teacher_examples(examples())
    save_teacher(make_teacher(), collator.tokenizers[1], read, tmp_path / "saved", k=6, dtype="float64")
    compare(
        make_trainer(tmp_path, teacher=str(tmp_path / "saved"), collator=collator), make_trainer(tmp_path)
    )


def test_names_of_nothing_are_refused(tmp_path, folders):
    nowhere = "expected a folder with a model, or the id of one in the cache of Hugging Face, found none at"
    for name, settings in (
        ("model", {"model": "somebody/else"}),
        ("teacher", {"teacher": "somebody/else"}),
        (r"teacher\[1\]", {"teacher": [mlot.Teacher(make_teacher()), mlot.Teacher("somebody/else")]}),
    ):
        with pytest.raises(ValueError, match=f"^{name}: {nowhere} 'somebody/else'"):
            make_trainer(tmp_path, **settings)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="^teacher: expected a model that transformers loads"):
        make_trainer(tmp_path, teacher=tmp_path / "empty")


@pytest.mark.parametrize("device", ["cuda:63", "xpu:7", "meta"])
def test_a_device_that_is_not_there_is_refused(tmp_path, device):
    make_arguments(tmp_path, teacher_device=device)  # settings may be made elsewhere
    with pytest.raises(ValueError, match=f"^teacher_device: expected a device .*{device}"):
        make_trainer(tmp_path, teacher_device=device)
