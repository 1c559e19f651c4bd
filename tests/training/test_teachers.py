"""Several teachers that read the same tokens: the weighted sum of what each gives alone."""

import pytest

pytest.importorskip("transformers")

import torch

import mlot
from mlot.saved import save_teacher
from training_cases import FLOAT32, examples, make_collator, make_student, make_teacher, make_trainer


def other_teacher():
    teacher = make_teacher()
    with torch.no_grad():
        for n, weight in enumerate(teacher.parameters()):
            weight.add_(0.3 * torch.sin(torch.arange(weight.numel()) + n).view_as(weight))
    return teacher


def loss_and_gradient(folder, teacher, collator=None, **settings):
    student = make_student()
    trainer = make_trainer(folder, model=student, teacher=teacher, collator=collator, **settings)
    loss = trainer.compute_loss(student, trainer.data_collator(examples()))
    loss.backward()
    return loss.item(), {name: weight.grad for name, weight in student.named_parameters()}


@pytest.mark.parametrize(
    "settings", [{}, {"pairs": "index"}, {"use_linear_head": True, "use_teacher_linear_head": True}]
)
def test_loss_is_the_sum_by_weights(tmp_path, settings):
    models = make_teacher(), other_teacher()
    alone = [loss_and_gradient(tmp_path, model, **settings) for model in models]
    plain, slopes = loss_and_gradient(tmp_path, None, alpha=0.0)
    assert abs(alone[0][0] - alone[1][0]) > 1e-4
    teachers = [mlot.Teacher(model, weight) for model, weight in zip(models, (0.8, 0.5), strict=True)]
    loss, gradient = loss_and_gradient(tmp_path, teachers, **settings)
    assert loss == pytest.approx(0.8 * alone[0][0] + 0.5 * alone[1][0] - 0.3 * plain, rel=1e-10)
    for name, slope in gradient.items():
        expected = 0.8 * alone[0][1][name] + 0.5 * alone[1][1][name] - 0.3 * slopes[name]
        torch.testing.assert_close(slope, expected, rtol=1e-8, atol=1e-12)


def test_settings_of_one_of_them(tmp_path):
    model = make_teacher()
    teachers = [mlot.Teacher(model, 0.5, config=mlot.MultiLevelOTConfig(k=9)), mlot.Teacher(model, 0.5)]
    loss, _ = loss_and_gradient(tmp_path, teachers)
    expected = [loss_and_gradient(tmp_path, model, k=k)[0] for k in (9, 6)]
    assert loss == pytest.approx(sum(expected) / 2, rel=1e-10)


def test_logs_are_sums_by_weights_whatever_the_accumulation(tmp_path):
    teachers = [mlot.Teacher(make_teacher(), 0.8), mlot.Teacher(other_teacher(), 0.5)]
    logs = []
    for size, steps in ((8, 1), (3, 3)):
        trainer = make_trainer(
            tmp_path, teacher=teachers, per_device_train_batch_size=size, gradient_accumulation_steps=steps
        )
        trainer.train()
        logs.append(trainer.state.log_history[0])
    for name in ("ce", "had", "sl", "sd", "teacher_kept_mass", "matching_gap", "paired_share"):
        assert logs[0][name] == pytest.approx(logs[1][name], rel=1e-9), name
    made_up = logs[0]["ce"] + 0.7 * (logs[0]["had"] + 0.1 * logs[0]["sl"] + 0.1 * logs[0]["sd"])
    assert logs[0]["loss"] == pytest.approx(made_up, rel=FLOAT32)
    assert 0 < logs[0]["paired_share"] <= 1


def test_saved_ones(tmp_path):
    collator = make_collator(keys=True)
    models = make_teacher(), other_teacher()
    saved = [
        save_teacher(
            model,
            collator.tokenizers[1],
            collator.teacher_examples(examples()),
            tmp_path / f"{n}",
            k=6,
            dtype="float64",
        )
        for n, model in enumerate(models)
    ]
    found = [
        loss_and_gradient(tmp_path, [mlot.Teacher(one, 0.8), mlot.Teacher(other, 0.5)], made)
        for (one, other), made in ((models, None), (saved, collator))
    ]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-10)
    with pytest.raises(ValueError, match=r"teacher\[0\]: k: expected"):
        make_trainer(tmp_path, teacher=[mlot.Teacher(each) for each in saved], collator=collator, k=7)
    with pytest.raises(ValueError, match="data_collator: expected keys='both' for teachers of both"):
        make_trainer(tmp_path, teacher=[mlot.Teacher(models[0]), mlot.Teacher(saved[0])])


@pytest.mark.parametrize("settings", [{}, {"padding_side": "left"}, {"pairs": "text"}])
def test_saved_ones_and_models_in_one_list(tmp_path, settings):
    collator = make_collator(keys="both", **settings)
    models = make_teacher(), other_teacher()
    kept = {"keep": "likeliest", "k": 275} if "pairs" in settings else {"k": 6}
    saved = save_teacher(
        models[0],
        collator.tokenizers[1],
        collator.teacher_examples(examples()),
        tmp_path / "saved",
        dtype="float64",
        **kept,
    )
    rest = {"matching": "text", "k": 8} if "pairs" in settings else {}
    results = [
        loss_and_gradient(tmp_path, [mlot.Teacher(first, 0.8), mlot.Teacher(models[1], 0.5)], made, **rest)
        for first, made in ((models[0], make_collator(**settings)), (saved, collator))
    ]
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-10)
    for name, slope in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], slope, rtol=1e-7, atol=1e-10)
    teachers = [mlot.Teacher(saved), mlot.Teacher(models[1])]
    for keys in (True, False):
        with pytest.raises(ValueError, match="keys='both' for teachers of both kinds"):
            make_trainer(tmp_path, teacher=teachers, collator=make_collator(keys=keys, **settings), **rest)


def test_what_is_refused(tmp_path):
    model, mask = make_teacher(), torch.ones(1, 1, dtype=torch.bool)
    for teacher, kind, message in (
        ([], ValueError, "teacher: expected at least one, got an empty sequence"),
        ([model], TypeError, r"teacher\[0\]: expected a mlot.Teacher, got LlamaForCausalLM"),
        (
            [mlot.Teacher(model), mlot.Teacher(model, mask=mask)],
            ValueError,
            r"teacher\[1\]: .* without mask and pairs",
        ),
        (
            [mlot.Teacher(torch.zeros(1, 2, 3))],
            TypeError,
            r"teacher\[0\]: expected a model, its folder or name, a mlot.saved.SavedTeacher, got",
        ),
    ):
        with pytest.raises(kind, match=message):
            make_trainer(tmp_path, teacher=teacher)
    student = make_student()
    with pytest.raises(ValueError, match=r"teacher\[0\]: expected another model than the student"):
        make_trainer(tmp_path, model=student, teacher=[mlot.Teacher(student)])
