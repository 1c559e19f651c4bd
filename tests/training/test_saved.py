"""A saved teacher in place of the model: the same loss and gradient, and what does not fit is refused beforehand."""

import pytest

pytest.importorskip("transformers")
pytest.importorskip("safetensors")

import torch
from datasets import Dataset

from mlot.saved import SavedTeacher, save_teacher
from mlot.training import DistillationCollator, MultiLevelOTTrainer
from mlot.training._batch import KEYS
from training_cases import (
    chat_tokenizers,
    examples,
    make_arguments,
    make_collator,
    make_student,
    make_teacher,
    make_trainer,
    student_tokenizer,
    teacher_tokenizer,
)

DATA = [*examples(), {"prompt": "what is", "completion": " the end — then"}]


def save(folder, collator, data=DATA, **settings):
    settings = {"k": 6, "dtype": "float64"} | settings
    return save_teacher(
        make_teacher(), collator.tokenizers[1], collator.teacher_examples(data), folder, **settings
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved") / "teacher", make_collator(keys=True))


def losses(trainer, batch):
    student = trainer.model
    student.zero_grad()
    loss = trainer.compute_loss(student, batch)
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in student.named_parameters()}


@pytest.mark.parametrize("pairs", ["boundary", "index"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_loss_and_gradient_are_those_of_the_model(tmp_path, saved, pairs, side):
    student, settings = make_student(), {"pairs": pairs, "padding_side": side}
    collators = make_collator(**settings), make_collator(keys=True, **settings)
    batches = [collator(DATA) for collator in collators]
    assert not any(name.startswith("teacher_") and name != KEYS for name in batches[1])
    found = [
        losses(
            make_trainer(
                tmp_path, model=student, teacher=teacher, collator=collator, dataset=DATA, pairs=pairs
            ),
            batch,
        )
        for teacher, collator, batch in zip((make_teacher(), saved), collators, batches, strict=True)
    ]
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-10)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-8, atol=1e-12)


def test_training_needs_no_model_of_the_teacher(tmp_path, saved):
    runs = []
    for teacher, collator in (
        (make_teacher(), make_collator()),
        (SavedTeacher(saved.folder), make_collator(keys=True)),
    ):
        trainer = make_trainer(
            tmp_path, teacher=teacher, collator=collator, dataset=DATA, max_steps=5, per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
        )  # fmt: skip
        trainer.train()
        runs.append(
            [
                (entry["loss"], entry["had"], entry["sd"])
                for entry in trainer.state.log_history
                if "had" in entry
            ]
        )
    for one, other in zip(*runs, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_data_may_be_shuffled_cut_and_prepared_beforehand(tmp_path, saved):
    collator = make_collator(keys=True)
    data = Dataset.from_list([{"text": row["text"]} for row in DATA[5:2:-1]])
    prepared = data.map(collator.prepare, remove_columns=["text"])
    assert set(prepared["teacher_key"]) <= set(saved.keys)
    for dataset in (data, prepared):
        make_trainer(tmp_path, teacher=saved, collator=collator, dataset=dataset).train()
    make_trainer(tmp_path, teacher=saved, collator=collator, dataset=data, tokenize_ahead=False).train()


def test_conversations(tmp_path):
    student, teacher = chat_tokenizers()
    data = [
        {"messages": [{"role": "user", "content": "the"}, {"role": "assistant", "content": "cat and man"}]}
    ]
    found = []
    for keys in (False, True):
        collator = DistillationCollator(student, teacher, keys=keys)
        trainer = MultiLevelOTTrainer(
            make_student(),
            make_arguments(tmp_path),
            collator,
            data,
            teacher=save(tmp_path / "saved", collator, data) if keys else make_teacher(),
        )
        found.append(trainer.compute_loss(trainer.model, collator(data)).item())
    assert found[0] == pytest.approx(found[1], rel=1e-10)


# -- what does not fit -----------------------------------------------------------------------------------


def test_missing_examples_are_counted(tmp_path, saved):
    data = [*DATA, {"text": "never seen"}, {"text": "nor this"}, DATA[0]]
    for settings in ({}, {"tokenize_ahead": False}):
        with pytest.raises(
            ValueError,
            match="teacher: expected all 11 different examples of train_dataset, 2 of them were not saved",
        ):
            make_trainer(tmp_path, teacher=saved, collator=make_collator(keys=True), dataset=data, **settings)
    # cut elsewhere, they are other examples
    with pytest.raises(ValueError, match=r"teacher: expected all \d different examples .* were not saved"):
        make_trainer(tmp_path, teacher=saved, collator=make_collator(keys=True, max_length=8), dataset=DATA)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 7}, "teacher: k: expected a .* at least 7 columns, it has 6"),
        ({"temperature": 1.5}, "teacher: temperature: expected a teacher saved at 1.5"),
        ({"sequence_temperature": 3.0}, "teacher: sequence_temperature: expected"),
        ({"standardize": True}, "teacher: standardize: expected"),
    ],
)
def test_settings_that_the_saved_teacher_does_not_serve(tmp_path, saved, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, teacher=saved, collator=make_collator(keys=True), dataset=DATA, **settings)


def test_another_tokenizer(tmp_path, saved):
    collator = DistillationCollator(student_tokenizer(), student_tokenizer(), keys=True)
    with pytest.raises(
        ValueError, match="teacher: expected one saved with the tokenizer of data_collator, whose"
    ):
        make_trainer(tmp_path, teacher=saved, collator=collator, dataset=DATA)


def test_collators_of_the_other_kind(tmp_path, saved):
    with pytest.raises(
        ValueError, match="data_collator: expected keys=True for a saved teacher, got keys=False"
    ):
        make_trainer(tmp_path, teacher=saved, dataset=DATA)
    with pytest.raises(ValueError, match="data_collator: expected keys=False for a teacher that is a model"):
        make_trainer(tmp_path, collator=make_collator(keys=True))
    trainer = make_trainer(tmp_path, teacher=saved, collator=make_collator(keys=True), dataset=DATA)
    with pytest.raises(ValueError, match="inputs: expected teacher_keys among them, for a saved teacher"):
        trainer.compute_loss(trainer.model, make_collator()(DATA))
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match="inputs: expected teacher_input_ids and teacher_labels among them"):
        trainer.compute_loss(trainer.model, make_collator(keys=True)(DATA))


def test_prepared_for_a_model_and_used_for_a_saved_teacher(tmp_path, saved):
    rows = [make_collator().prepare(row) for row in DATA]
    with pytest.raises(ValueError, match="got input_ids without teacher_key"):
        make_collator(keys=True)(rows)
    assert make_collator(keys=True).teacher_keys(rows) == make_collator(keys=True).teacher_keys(DATA)
    assert teacher_tokenizer().get_vocab() == make_collator().tokenizers[1].get_vocab()
