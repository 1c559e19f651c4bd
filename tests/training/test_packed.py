"""Batches without padding: the loss, the gradient and the logs of padded ones."""

import pytest

pytest.importorskip("transformers")

import torch
from transformers import DataCollatorWithFlattening

from mlot.nn import ULDLoss
from mlot.saved import save_teacher
from training_cases import examples, make_collator, make_llama, make_teacher, make_trainer

CASES = {
    "boundary": ({}, {}),
    "index": ({"pairs": "index"}, {"pairs": "index"}),
    "text": ({"pairs": "text"}, {"matching": "text", "k": 8}),
    "head": ({}, {"use_linear_head": True, "use_teacher_linear_head": True}),
}


def student():
    return make_llama(0, vocab_size=270)


@pytest.mark.parametrize(("collated", "settings"), CASES.values(), ids=CASES)
def test_loss_gradient_logs_and_evaluation_are_those_of_padded_batches(tmp_path, collated, settings):
    results = []
    for packed in (False, True):
        model = student()
        trainer = make_trainer(
            tmp_path,
            model=model,
            collator=make_collator(packed=packed, **collated),
            eval_dataset=examples(),
            learning_rate=1e-2,
            **settings,
        )
        trainer.compute_loss(model, trainer.data_collator(examples())).backward()
        slopes = {name: weight.grad.clone() for name, weight in model.named_parameters()}
        model.zero_grad()
        held_out = trainer.evaluate()
        trainer.train()
        results.append((slopes, held_out, trainer.state.log_history, model.state_dict()))
    (slopes, held_out, logs, weights), (ours, own, entries, moved) = results
    for name, slope in slopes.items():
        torch.testing.assert_close(ours[name], slope, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(moved[name], weights[name], rtol=1e-7, atol=1e-9)
    for name in ("eval_loss", "eval_bits_per_byte"):
        assert own[name] == pytest.approx(held_out[name], rel=1e-10)
    one, other = (next(entry for entry in each if "ce" in entry) for each in (logs, entries))
    assert one.keys() == other.keys()
    for name in ("ce", "had", "sl", "teacher_kept_mass", "paired_share", "grad_norm"):
        assert other[name] == pytest.approx(one[name], rel=1e-9), name


def test_rows_are_those_of_collators_without_padding():
    made = make_collator(packed=True)
    rows = made.prepare_batch(examples())
    theirs = DataCollatorWithFlattening()([{n: row[n] for n in ("input_ids", "labels")} for row in rows])
    batch = made(rows)
    for name in ("input_ids", "labels", "position_ids"):
        assert torch.equal(batch[name], theirs[name]), name
    assert "attention_mask" not in batch
    assert "teacher_attention_mask" not in batch


def test_a_saved_teacher(tmp_path):
    collator = make_collator(keys=True, packed=True)
    read = collator.teacher_examples(examples())
    saved = save_teacher(make_teacher(), collator.tokenizers[1], read, tmp_path / "t", k=6, dtype="float64")
    losses = []
    for teacher, made in ((saved, collator), (make_teacher(), make_collator())):
        trainer = make_trainer(tmp_path, model=student(), teacher=teacher, collator=made)
        losses.append(trainer.compute_loss(trainer.model, made(examples())))
    torch.testing.assert_close(*losses, rtol=1e-10, atol=0)


def test_what_is_not_made_for_it_is_refused(tmp_path):
    for settings in ({"criterion": ULDLoss()}, {"eval_distillation": True}):
        with pytest.raises(ValueError, match="data_collator: expected packed=False"):
            make_trainer(tmp_path, collator=make_collator(packed=True), **settings)
    for settings in ({"keys": "both"}, {"keys": True, "pairs": "text"}, {"pad_to_multiple_of": 8}):
        with pytest.raises(ValueError, match="packed: expected False"):
            make_collator(packed=True, **settings)
