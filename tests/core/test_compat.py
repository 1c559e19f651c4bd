"""The released code's loss: its facts, apart from the recorded values."""

import pytest
import torch

import mlot
from mlot.compat import released_loss, released_terms


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(9, (2, 8), generator=g)
    labels[:, :2] = -100
    labels[1, 6:] = -100
    return {
        "student_logits": torch.randn(2, 8, 60, generator=g, dtype=torch.float64),
        "teacher_logits": torch.randn(2, 8, 70, generator=g, dtype=torch.float64),
        "student_labels": labels,
        "teacher_labels": labels.clone(),
    }


def test_terms_make_the_loss(batch: dict[str, torch.Tensor]) -> None:
    terms = released_terms(**batch, factor=1.5)
    torch.testing.assert_close(terms.loss, 1.5 * (terms.had + 0.1 * terms.sl + 0.1 * terms.sd))
    assert torch.equal(released_loss(**batch, factor=1.5), terms.loss)
    assert released_loss(**batch, factor=0) == 0


def test_rows_outside_the_answer_do_not_matter(batch: dict[str, torch.Tensor]) -> None:
    """Answers start at the row that predicts the first label; the student loses its last row, the teacher none."""
    want = released_loss(**batch)
    other = {name: v.clone() for name, v in batch.items()}
    for side, last in (("student", (6, 4)), ("teacher", (7, 5))):
        for n in range(2):
            other[f"{side}_logits"][n, :1] = 7.0
            other[f"{side}_logits"][n, last[n] :] = -3.0
    torch.testing.assert_close(released_loss(**other), want, rtol=1e-14, atol=0)
    other["teacher_logits"][0, 6, 0] += 9.0  # inside the answer
    assert float(abs(released_loss(**other) - want)) > 1e-6


def test_it_is_not_the_papers_loss(batch: dict[str, torch.Tensor]) -> None:
    """The second softmax makes the logarithmic term that of uniform predictions, where the models are certain."""
    for side in ("student_logits", "teacher_logits"):
        batch[side][:, :, 3] += 50.0
    mask = mlot.mask_from_labels(batch["student_labels"])
    config = mlot.MultiLevelOTConfig(matching="rank", standardize=True)
    paper = mlot.multi_level_ot(
        batch["student_logits"], batch["teacher_logits"], student_mask=mask, teacher_mask=mask, config=config
    )
    uniform = torch.tensor(50.0).log().item()
    assert abs(float(released_terms(**batch).sl) - uniform) < 0.02 * uniform
    assert float(paper.sl) < 0.2 * uniform


def test_narrow_vocabularies(batch: dict[str, torch.Tensor]) -> None:
    for narrow in ("student_logits", "teacher_logits"):
        cut = {**batch, narrow: batch[narrow][:, :, :12].clone().requires_grad_()}
        loss = released_loss(**cut)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(cut[narrow].grad).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"student_logits": [[1.0]]}, TypeError, "student_logits: expected a torch tensor, got list"),
        (
            {"teacher_logits": torch.zeros(2, 8)},
            ValueError,
            r"teacher_logits: expected \(B, T, V\), none of them 0",
        ),
        (
            {"student_logits": torch.zeros(2, 8, 60, dtype=torch.long)},
            TypeError,
            "student_logits: expected floating-point numbers, got torch.int64",
        ),
        (
            {"student_labels": torch.zeros(2, 9, dtype=torch.long)},
            ValueError,
            r"student_labels: expected shape \(2, 8\), as student_logits, got \(2, 9\)",
        ),
        (
            {"teacher_labels": torch.zeros(2, 8)},
            TypeError,
            "teacher_labels: expected integers, got torch.float32",
        ),
        (
            {"student_labels": torch.full((2, 8), -100)},
            ValueError,
            "student_labels: expected at least 2 answer labels in sequence 0, got 0",
        ),
        (
            {"teacher_logits": torch.zeros(1, 8, 70), "teacher_labels": torch.zeros(1, 8, dtype=torch.long)},
            ValueError,
            "teacher: expected the batch size of student, 2, got 1",
        ),
        ({"factor": -1}, ValueError, "factor: expected a finite number >= 0, got -1"),
    ],
)
def test_bad_input(
    change: dict, error: type[Exception], message: str, batch: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        released_loss(**{**batch, **change})
