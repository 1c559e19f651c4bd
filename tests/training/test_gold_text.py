"""The plan from the text in TRL's GOLD: positions from the byte offsets that it passes."""

import os
from typing import Any

import numpy as np
import pytest
import torch

import mlot
from gold_cases import COMPLETIONS, batch, settings, spans, tokenizers
from mlot import align
from mlot.trl import MultiLevelOTLoss

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
pytest.importorskip("trl.experimental.gold", exc_type=ImportError)


@pytest.mark.parametrize("skip", [True, False])
def test_the_plan_from_the_text(gold: Any, skip: bool) -> None:
    """By `mlot.align` on the completions; the rows that count are those that predict them."""
    inputs = batch(gold)
    chosen = settings(uld_skip_student_eos=skip, uld_skip_teacher_eos=skip)
    student, teacher = tokenizers()
    criterion = MultiLevelOTLoss(chosen, student, teacher)
    criterion.settings = mlot.MultiLevelOTConfig.text()
    vocabulary = align.VocabularyMap.from_tokenizers(student, teacher)
    rows = []
    for n, completion in enumerate(COMPLETIONS):
        tokens = []
        for tokenizer in (student, teacher):
            ranges = align.byte_ranges(tokenizer, completion)
            tokens.append(
                align.TokenBytes(
                    np.array([1, *ranges.ids, tokenizer.eos_token_id]),
                    np.array([0, *ranges.starts, ranges.total]),
                    np.array([0, *ranges.ends, ranges.total]),
                    np.array([True, *ranges.special, True]),
                    ranges.total,
                )
            )
        found = align.text_positions(*tokens, completion, vocabulary)
        starts = [spans(inputs[f"{side}_labels"])[n][0] - 1 for side in ("student", "teacher")]
        rows.append(found + np.array([*starts, *[0] * 7]))
    text = mlot.TextPositions(
        torch.from_numpy(align.batch_text_positions(rows)), inputs["teacher_input_ids"], vocabulary.plan()
    )
    bayesian = settings(
        uld_skip_student_eos=skip, uld_skip_teacher_eos=skip, uld_token_merge_strategy="bayesian"
    )
    masks = MultiLevelOTLoss(bayesian).masks(inputs["student_labels"], inputs["teacher_labels"])
    want = mlot.multi_level_ot(
        inputs["student_logits"],
        inputs["teacher_logits"],
        student_mask=masks[0],
        teacher_mask=masks[1],
        config=criterion.settings,
        text=text,
    )
    assert bool((want.diagnostics().served_mass > 0.8).all())
    torch.testing.assert_close(criterion(**inputs).double(), want.loss.double(), rtol=1e-6, atol=1e-8)
    assert criterion.last["pairs"] > 20


def test_the_plan_from_the_text_needs_tokenizers_and_offsets(gold: Any) -> None:
    inputs = batch(gold)
    for criterion, match in (
        (MultiLevelOTLoss(settings()), "student_tokenizer: expected a tokenizer with matching='text'"),
        (
            MultiLevelOTLoss(settings(use_extended_uld=False), *tokenizers()),
            "use_extended_uld: expected True",
        ),
    ):
        criterion.settings = mlot.MultiLevelOTConfig.text()
        with pytest.raises(ValueError, match=match):
            criterion(**inputs)
