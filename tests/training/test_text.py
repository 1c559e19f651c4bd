"""Training with the plan from the text: the trainer does what a loop by hand does."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

import mlot
import mlot.nn
from mlot.training import DistillationCollator, MultiLevelOTTrainingArguments
from training_cases import examples, make_collator, make_student, make_teacher, make_trainer

SETTINGS = {"matching": "text", "alpha": 1.0, "k": 256}


def text_collator(**settings):
    tokenizers = make_collator().tokenizers
    return DistillationCollator(*tokenizers, pairs="text", **settings)


def loss_by_hand(student, teacher, batch, plan):
    """The mean over the student's targets of cross-entropy, and of -sum q log s over all tokens."""
    with torch.no_grad():
        logits = teacher(
            input_ids=batch["teacher_input_ids"], attention_mask=batch["teacher_attention_mask"]
        ).logits
    text = mlot.TextPositions(batch["text_positions"].numpy(), batch["teacher_input_ids"].numpy(), plan)
    mask = mlot.mask_from_labels(batch["labels"].numpy())
    targets = mlot.text_targets(
        logits.double().numpy(),
        text,
        student_mask=mask,
        teacher_mask=mlot.mask_from_labels(batch["teacher_labels"].numpy()),
        k=plan.student_vocab_size,
    )
    z = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    log_s = z.log_softmax(-1)
    kept = batch["labels"][:, 1:] != -100
    label = batch["labels"][:, 1:].clamp(min=0)[..., None]
    total = -(log_s[:, :-1].gather(-1, label).squeeze(-1) * kept).sum()
    ids, probs = torch.from_numpy(targets.ids), torch.from_numpy(np.exp(targets.log_probs))
    total = total - (probs * log_s.gather(-1, ids.clamp(min=0))).sum()
    return total / kept.sum(), targets


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("head", [False, True])
def test_a_step_is_the_one_by_hand(tmp_path, side, head):
    student, teacher = make_student(), make_teacher()
    collator = text_collator(padding_side=side)
    k = len(collator.tokenizer)
    trainer = make_trainer(
        tmp_path,
        model=student,
        teacher=teacher,
        collator=collator,
        use_linear_head=head,
        **(SETTINGS | {"k": k}),
    )
    batch = collator([trainer.train_dataset[n] for n in range(3)])
    loss = trainer.compute_loss(student, dict(batch))
    positions = {name: batch[name] for name in ("position_ids",) if name in batch}
    assert bool(positions) == (side == "left")
    if side == "right":
        expected, targets = loss_by_hand(student.eval(), teacher, batch, collator.plan)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert (targets.served > 0).sum() >= 0.95 * (batch["labels"][:, 1:] != -100).sum().item()
    loss.backward()
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)


def test_padding_on_either_side_is_one_loss(tmp_path):
    losses = []
    for side in ("right", "left"):
        collator = text_collator(padding_side=side)
        trainer = make_trainer(tmp_path / side, collator=collator, **SETTINGS)
        batch = collator([trainer.train_dataset[n] for n in range(4)])
        trainer.model.eval()
        losses.append(trainer.compute_loss(trainer.model, dict(batch)).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_training_logs_its_terms_and_what_was_served(tmp_path):
    trainer = make_trainer(tmp_path, collator=text_collator(), max_steps=2, logging_steps=1, **SETTINGS)
    trainer.train()
    first = trainer.state.log_history[0]
    assert {"ce", "had", "sl", "served_mass", "teacher_kept_mass", "paired_share"} <= set(first)
    assert "sd" not in first
    assert first["loss"] == pytest.approx(first["ce"] + first["sl"], rel=1e-4)
    assert 0.9 < first["served_mass"] <= 1
    assert 0.9 < first["paired_share"] <= 1


def test_the_matching_chooses_the_defaults():
    text = MultiLevelOTTrainingArguments("out", matching="text", report_to="none")
    assert text.ot_config() == mlot.MultiLevelOTConfig.text()
    assert text.alpha == 1
    paper = MultiLevelOTTrainingArguments("out", report_to="none")
    assert paper.ot_config() == mlot.MultiLevelOTConfig.paper()
    assert paper.alpha == 0.15
    own = MultiLevelOTTrainingArguments("out", matching="text", had_weight=1.0, k=None, report_to="none")
    assert (own.ot_config().had_weight, own.ot_config().k, own.ot_config().sl_weight) == (1.0, None, 1.0)
    for each in fields(mlot.MultiLevelOTConfig):
        assert hasattr(text, each.name)


def test_a_collator_that_brings_no_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pairs: expected a collator with pairs='text', as matching"):
        make_trainer(tmp_path, collator=make_collator(), **SETTINGS)


def test_several_teachers(tmp_path):
    """The sum of what each gives alone."""
    teachers = [make_teacher(), make_teacher()]
    with torch.no_grad():
        teachers[1].model.embed_tokens.weight.mul_(3)
    collator = text_collator()
    losses = []
    given = [teachers[0], teachers[1], [mlot.Teacher(teachers[0], 0.7), mlot.Teacher(teachers[1], 0.3)]]
    for n, teacher in enumerate(given):
        trainer = make_trainer(tmp_path / str(n), teacher=teacher, collator=collator, **SETTINGS)
        batch = collator([trainer.train_dataset[n] for n in range(3)])
        trainer.model.eval()
        terms = trainer._terms_of(
            trainer.model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits,
            trainer._predictions_of(_batch(batch), torch.device("cpu")),
            _batch(batch),
            10,
        )
        losses.append(terms.distillation.item())
    assert losses[2] == pytest.approx(0.7 * losses[0] + 0.3 * losses[1], rel=1e-5)


def _batch(batch):
    from mlot.training._batch import Batch

    return Batch.of(dict(batch))


def test_the_module_takes_positions_or_targets():
    collator = text_collator()
    batch = collator(examples()[:2])
    student, teacher = make_student().eval(), make_teacher().eval()
    logits = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    with torch.no_grad():
        others = teacher(
            input_ids=batch["teacher_input_ids"], attention_mask=batch["teacher_attention_mask"]
        ).logits
    text = mlot.TextPositions(batch["text_positions"], batch["teacher_input_ids"], collator.plan)
    criterion = mlot.nn.MultiLevelOTLoss(mlot.MultiLevelOTConfig.text())
    assert criterion.alpha == 1
    one = criterion(logits, others, batch["labels"], batch["teacher_labels"], text=text)
    targets = mlot.text_targets(
        others,
        text,
        student_mask=mlot.mask_from_labels(batch["labels"]),
        teacher_mask=mlot.mask_from_labels(batch["teacher_labels"]),
    )
    assert one.item() == pytest.approx(criterion(logits, targets, batch["labels"]).item(), rel=1e-6)
