"""Saved teachers with ``matching="text"``: likeliest tokens and targets give the loss that the model gives."""

import pytest

pytest.importorskip("transformers")
pytest.importorskip("safetensors")

import torch
from datasets import Dataset

import mlot
from mlot.align import batch_text_positions
from mlot.saved import SavedTeacher, save_teacher
from mlot.training import DistillationCollator
from mlot.training._batch import TEXT_POSITIONS
from training_cases import (
    chat_tokenizers,
    examples,
    make_collator,
    make_student,
    make_teacher,
    make_trainer,
    student_tokenizer,
    teacher_tokenizer,
)

DATA = [*examples(), {"prompt": "what is", "completion": " the end — then"}]
K = 12
TEXT = {"matching": "text", "k": K}
#: With everything that the loss has, and not SL alone.
ALL = TEXT | {"had_weight": 1.0, "sd_weight": 0.1}
VOCABULARY = 275


def save(folder, keep, data=DATA, tokenizers=None, **settings):
    student, teacher = tokenizers or (student_tokenizer(), teacher_tokenizer())
    collator = DistillationCollator(student, teacher, pairs="text", keys=True)
    defaults = {"k": VOCABULARY if keep == "likeliest" else K, "dtype": "float64"}
    if keep == "targets":
        defaults["student_tokenizer"] = student
    settings = defaults | settings
    return save_teacher(
        make_teacher(), teacher, collator.teacher_examples(data), folder, keep=keep, **settings
    )


@pytest.fixture(scope="module", params=["likeliest", "targets"])
def saved(request, tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved") / "teacher", request.param)


def text_collator(**settings):
    return make_collator(pairs="text", **settings)


def losses(trainer, batch):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}


@pytest.mark.parametrize("side", ["right", "left"])
def test_loss_and_gradient_are_those_of_the_model(tmp_path, saved, side):
    """All tokens of the teacher are kept, and the targets that the loss asks for: nothing is lost."""
    student, settings = make_student(), {"padding_side": side, "pad_to_multiple_of": 4}
    found = []
    for teacher, keys in ((make_teacher(), False), (saved, True)):
        collator = text_collator(keys=keys, **settings)
        trainer = make_trainer(
            tmp_path, model=student, teacher=teacher, collator=collator, dataset=DATA, **ALL
        )
        found.append(losses(trainer, collator(DATA)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-10)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-8, atol=1e-12)


def test_what_is_saved_is_what_the_model_gives(saved):
    """Likeliest tokens are those of its logits; targets are `mlot.text_targets` of them."""
    collator = text_collator()
    for row in map(collator.prepare, DATA):
        ids = torch.tensor([row["teacher_input_ids"]])
        with torch.no_grad():
            logits = make_teacher()(ids).logits
        mask = mlot.mask_from_labels(torch.tensor([row["teacher_labels"]]))
        (key,) = text_collator(keys=True).teacher_keys([row], saved.manifest.keep)
        read = saved.batch([key], backend="torch")
        if saved.manifest.keep == "likeliest":
            top = logits.log_softmax(-1).topk(VOCABULARY)
            assert read.vocab_size == VOCABULARY
            assert torch.equal(read.ids[mask], top.indices[mask])
            torch.testing.assert_close(read.logprobs[mask], top.values[mask], rtol=0, atol=1e-10)
            assert (read.ids[~mask] == -1).all()
            continue
        rows = torch.from_numpy(batch_text_positions([row[TEXT_POSITIONS]]))
        wanted = mlot.text_targets(
            logits,
            mlot.TextPositions(rows, ids, collator.plan),
            student_mask=mlot.mask_from_labels(torch.tensor([row["labels"]])),
            teacher_mask=mask,
            k=K,
        )
        assert torch.equal(read.ids, wanted.ids)
        for name in ("log_probs", "rest", "served"):
            torch.testing.assert_close(getattr(read, name), getattr(wanted, name), rtol=0, atol=1e-10)


def test_fewer_tokens_of_the_teacher_are_top_k_of_the_model(tmp_path):
    """With the likeliest 20 tokens the loss is that of `mlot.TopKLogprobs` of the model, by text and by traces."""
    saved = save(tmp_path / "teacher", "likeliest", k=20)
    collator, keyed = text_collator(), text_collator(keys=True)
    batch = collator(DATA)
    with torch.no_grad():
        logits = make_teacher()(batch["teacher_input_ids"], batch["teacher_attention_mask"]).logits
    mask = mlot.mask_from_labels(batch["teacher_labels"])
    top = logits.log_softmax(-1).topk(20)
    live = mlot.TopKLogprobs(top.indices.masked_fill(~mask[..., None], -1), top.values, vocab_size=VOCABULARY)
    read = saved.batch(keyed.teacher_keys(DATA), backend="torch")
    text = mlot.TextPositions(batch[TEXT_POSITIONS], batch["teacher_input_ids"], collator.plan)
    student = torch.randn(*batch["labels"].shape, 270, dtype=torch.float64, generator=torch.manual_seed(0))
    for config, by_text in ((mlot.MultiLevelOTConfig.text(), text), (mlot.MultiLevelOTConfig(k=9), None)):
        criterion = mlot.nn.MultiLevelOTLoss(config)
        given = [criterion(student, teacher, batch["labels"], text=by_text) for teacher in (live, read)]
        torch.testing.assert_close(given[1], given[0], rtol=1e-12, atol=0)
    trainer = make_trainer(tmp_path, teacher=saved, collator=keyed, dataset=DATA, **TEXT)
    assert trainer.compute_loss(trainer.model, keyed(DATA)).isfinite()
    paper = make_collator(keys=True)
    trainer = make_trainer(tmp_path, teacher=saved, collator=paper, dataset=DATA)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert {"had", "sl", "sd", "teacher_kept_mass", "paired_share"} <= set(logged)
    assert 0 < logged["teacher_kept_mass"] < 1


def test_half_precision_changes_sl_by_no_more_than_is_said(tmp_path):
    collator, found = text_collator(keys=True), []
    batch = collator(DATA)
    logits = make_student()(batch["input_ids"]).logits.detach()
    for dtype in ("float64", "float16"):
        saved = save(tmp_path / dtype, "targets", dtype=dtype)
        targets = saved.batch(collator.teacher_keys(DATA, "targets"), backend="torch")
        mask = mlot.mask_from_labels(batch["labels"])
        config = mlot.MultiLevelOTConfig.text()
        found.append(mlot.multi_level_ot(logits, targets, student_mask=mask, config=config).sl.item())
    assert 0 < abs(found[1] - found[0]) <= saved.storage_error.sl_relative * found[0]


def test_half_precision_of_likeliest_tokens_changes_targets_by_no_more_than_is_said(tmp_path):
    collator, found = text_collator(keys=True), []
    batch = collator(DATA)
    rows = batch[TEXT_POSITIONS]
    for dtype in ("float64", "float16"):
        saved = save(tmp_path / dtype, "likeliest", dtype=dtype)
        targets = mlot.text_targets(
            saved.batch(collator.teacher_keys(DATA), backend="torch"),
            mlot.TextPositions(rows, batch["teacher_input_ids"], collator.plan),
            student_mask=mlot.mask_from_labels(batch["labels"]),
            k=264,
        )
        q = torch.zeros(targets.shape, dtype=torch.float64)
        q.scatter_add_(2, targets.ids.clamp(min=0), targets.log_probs.double().exp())
        found.append(q)
    chained = torch.zeros(rows.shape[0], batch["labels"].shape[1], dtype=torch.bool)
    b, n = (rows[..., 8] > 1).nonzero(as_tuple=True)
    chained[b, rows[b, n, 0]] = True
    exact, half = (q[~chained] for q in found)
    assert chained.any()
    assert torch.equal(exact > 0, half > 0)
    changed = (half / exact - 1)[exact > 0].abs().max().item()
    epsilon = saved.storage_error.sl_relative
    assert 0 < changed <= 2 * epsilon / (1 - epsilon)


def test_several_saved_teachers(tmp_path):
    """Targets and likeliest tokens beside one another; equal teachers give what one gives."""
    made = [save(tmp_path / keep, keep) for keep in ("targets", "likeliest")]
    collator, found = text_collator(keys=True), []
    for teacher in (made[0], [mlot.Teacher(each, 0.5) for each in made]):
        trainer = make_trainer(tmp_path, teacher=teacher, collator=collator, dataset=DATA, **TEXT)
        found.append(trainer.compute_loss(trainer.model, collator(DATA)).item())
    assert found[1] == pytest.approx(found[0], rel=1e-10)


def test_training_needs_no_model_of_the_teacher(tmp_path, saved):
    runs = []
    for teacher, keys in ((make_teacher(), False), (SavedTeacher(saved.folder), True)):
        trainer = make_trainer(
            tmp_path,
            teacher=teacher,
            collator=text_collator(keys=keys),
            dataset=DATA,
            max_steps=4,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            **TEXT,
        )
        trainer.train()
        runs.append([(entry["loss"], entry["sl"]) for entry in trainer.state.log_history if "sl" in entry])
    assert len(runs[0]) == 4
    for one, other in zip(*runs, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_data_may_be_shuffled_cut_and_prepared_beforehand(tmp_path, saved):
    collator = text_collator(keys=True)
    data = Dataset.from_list([{"text": row["text"]} for row in DATA[5:2:-1]])
    prepared = data.map(collator.prepare, remove_columns=["text"])
    name = "target_key" if saved.manifest.keep == "targets" else "teacher_key"
    assert set(prepared[name]) <= set(saved.keys)
    for dataset in (data, prepared):
        make_trainer(tmp_path, teacher=saved, collator=collator, dataset=dataset, **TEXT).train()


def test_conversations(tmp_path):
    tokenizers = chat_tokenizers()
    data = [
        {"messages": [{"role": "user", "content": "the"}, {"role": "assistant", "content": "cat and man"}]}
    ]
    found = []
    for keep in (None, "likeliest", "targets"):
        collator = DistillationCollator(*tokenizers, pairs="text", keys=keep is not None)
        teacher = make_teacher() if keep is None else save(tmp_path / keep, keep, data, tokenizers)
        trainer = make_trainer(tmp_path, teacher=teacher, collator=collator, dataset=data, **ALL)
        found.append(trainer.compute_loss(trainer.model, collator(data)).item())
    assert found[1:] == pytest.approx(found[:1] * 2, rel=1e-10)


def test_targets_from_texts_are_those_from_what_the_collator_prepares(tmp_path):
    """`save_teacher` tokenises for both models as the collator does; the files are the same."""
    tokenizers = student_tokenizer(), teacher_tokenizer()
    prepared = save(tmp_path / "prepared", "targets")
    settings = {"keep": "targets", "student_tokenizer": tokenizers[0], "k": K, "dtype": "float64"}
    for folder, data in (("mappings", DATA), ("texts", [row.get("text", row) for row in DATA])):
        made = save_teacher(make_teacher(), tokenizers[1], data, tmp_path / folder, **settings)
        assert made.keys == prepared.keys
        for name in ("00000.safetensors", "manifest.json"):
            assert (made.folder / name).read_bytes() == (prepared.folder / name).read_bytes()
    cut = save_teacher(make_teacher(), tokenizers[1], DATA, tmp_path / "cut", max_length=9, **settings)
    collator = text_collator(keys=True, teacher_max_length=9)
    assert set(collator.teacher_keys(DATA, "targets")) == set(cut.keys)
    with pytest.raises(ValueError, match="^max_length: expected None for examples that are prepared already"):
        save(tmp_path / "no", "targets", max_length=5)


def test_examples_of_which_the_teacher_is_asked_nothing(tmp_path):
    """They have no target, though the student is asked for something."""
    row = text_collator(keys=True).prepare(DATA[0])
    silent = dict(row, teacher_labels=[-100] * len(row["teacher_labels"]))
    settings = {"keep": "targets", "student_tokenizer": student_tokenizer(), "k": K, "batch_size": 1}
    saved = save_teacher(make_teacher(), teacher_tokenizer(), [row, silent], tmp_path / "t", **settings)
    saved.verify()
    targets = saved.batch([0, 1])
    assert targets.shape[1] == len(row["input_ids"])
    assert targets.served[0].any()
    assert not targets.served[1].any()
    wrong = dict(row, text_positions=[[1, 2]])
    with pytest.raises(ValueError, match=r"^examples\[0\]: text_positions: expected integers \(P, 9\), got"):
        save_teacher(make_teacher(), teacher_tokenizer(), [wrong], tmp_path / "w", **settings)


def test_what_was_lost_is_made_again(tmp_path, saved):
    """The files of a run that resumes are those of a run without interruption."""
    keep = saved.manifest.keep
    whole = save(tmp_path / "whole", keep, examples_per_shard=4, batch_size=2)
    contents = {path.name: path.read_bytes() for path in whole.folder.glob("*.safetensors")}
    assert len(contents) == 3
    (whole.folder / "00001.safetensors").unlink()
    again = save(tmp_path / "whole", keep, examples_per_shard=4, batch_size=2)
    assert {path.name: path.read_bytes() for path in again.folder.glob("*.safetensors")} == contents


# -- what does not fit -----------------------------------------------------------------------------------


def test_another_student(tmp_path):
    targets = save(tmp_path / "teacher", "targets")
    collator = DistillationCollator(teacher_tokenizer(), teacher_tokenizer(), pairs="text", keys=True)
    with pytest.raises(
        ValueError, match="teacher: expected targets in the tokens of data_collator's student"
    ):
        make_trainer(tmp_path, teacher=targets, collator=collator, dataset=DATA, **TEXT)


def test_what_the_loss_cannot_be_computed_from(tmp_path):
    targets = save(tmp_path / "targets", "targets")
    collator = text_collator(keys=True)
    for settings, message in (
        (TEXT | {"k": K + 1}, "teacher: k: expected targets saved with k=13, as the loss, got 12"),
        (TEXT | {"temperature": 2.0}, "teacher: temperature: expected a teacher saved at 2.0"),
        ({"pairs": "index"}, "teacher: keep: expected a teacher saved with 'traces' or 'likeliest'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, teacher=targets, collator=collator, dataset=DATA, **settings)
    more = [*DATA, {"text": "never seen"}]
    with pytest.raises(ValueError, match="expected all 10 different .*, 1 of them were not saved"):
        make_trainer(tmp_path, teacher=targets, collator=collator, dataset=more, **TEXT)
    # the same for the teacher, cut elsewhere for the student
    short = text_collator(keys=True, max_length=9)
    with pytest.raises(ValueError, match="different examples .* were not saved"):
        make_trainer(tmp_path, teacher=targets, collator=short, dataset=DATA, **TEXT)
    with pytest.raises(ValueError, match="^keep: expected a collator with pairs='text' for targets, got"):
        make_collator(keys=True).teacher_keys(DATA, "targets")
    trainer = make_trainer(tmp_path, teacher=targets, collator=collator, dataset=DATA, **TEXT)
    with pytest.raises(ValueError, match="inputs: expected target_keys among them, for a saved teacher"):
        trainer.compute_loss(trainer.model, make_collator(keys=True)(DATA))


def test_what_saving_refuses(tmp_path):
    tokenizers = student_tokenizer(), teacher_tokenizer()
    for examples_, settings, error, message in (
        (
            DATA,
            {"keep": "targets"},
            ValueError,
            "^student_tokenizer: expected a tokenizer with keep='targets'",
        ),
        (
            DATA,
            {"keep": "likeliest", "student_tokenizer": tokenizers[0]},
            ValueError,
            "^student_tokenizer: expected None with keep='likeliest'",
        ),
        (DATA, {"keep": "all"}, ValueError, "^keep: expected one of"),
        (
            DATA,
            {"keep": "likeliest", "extra_temperatures": (2.0,)},
            ValueError,
            "^extra_temperatures: expected none",
        ),
        (DATA, {"k": "all"}, TypeError, "^k: expected"),
        (
            [([1, 2], [1, 2])],
            {"keep": "targets", "student_tokenizer": tokenizers[0]},
            TypeError,
            r"^examples\[0\]: expected a text, or a mapping, for keep='targets', got tuple",
        ),
        (
            [make_collator().prepare(DATA[0])],
            {"keep": "targets", "student_tokenizer": tokenizers[0]},
            ValueError,
            r"^examples\[0\]: expected input_ids, labels, teacher_input_ids, teacher_labels, text_positions for",
        ),
        (
            "text",
            {"keep": "targets", "student_tokenizer": tokenizers[0]},
            TypeError,
            "^examples: expected several examples, got one str",
        ),
    ):
        with pytest.raises(error, match=message):
            save_teacher(make_teacher(), tokenizers[1], examples_, tmp_path / "t", **settings)
    assert not (tmp_path / "t").exists()
