"""The pictures of the page show what the loss computed: against the reference backend, on whole predictions."""

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from transformers import set_seed

import mlot
from mlot._examples import Example
from mlot._hf.made import make_llama, train_bpe, train_unigram
from mlot.distill import Examples, Piece, make_pieces
from mlot.distill.setup import ModelBundle
from mlot.training._inspect import Painter, spell

TEXTS = [
    "Return the sum of a sequence, however long it is. ☃",
    "Räume — naïve café\n\tdone 🤖",
    "one two three four five six seven eight nine ten eleven twelve " * 4,
]
LENGTH, K = 96, 9


@pytest.fixture(scope="module")
def bundles():
    """An untrained student and an untrained teacher."""
    tokenizers = train_unigram(TEXTS, 290, LENGTH), train_bpe(TEXTS, 310, LENGTH)
    models = [make_llama(t, width=32, layers=1, length=LENGTH, seed=n) for n, t in enumerate(tokenizers)]
    with torch.no_grad():  # predictions that differ from place to place
        for model in models:
            model.double().lm_head.weight.mul_(20)
    return ModelBundle(models[0], tokenizers[0]), ModelBundle(models[1], tokenizers[1])


def painter(bundles, pieces, *, boundary=True, **settings):
    """A painter, and both models' logits, masks and pairs of its examples, computed one by one."""
    student, teacher = bundles
    examples = Examples(pieces, student.tokenizer, teacher.tokenizer, LENGTH)
    others = Examples(pieces, teacher.tokenizer, student.tokenizer, LENGTH)
    config = mlot.MultiLevelOTConfig(k=K, **settings)

    made = Painter(
        student.model,
        (student.tokenizer, teacher.tokenizer),
        examples,
        teacher.model,
        config,
        boundary=boundary,
    )

    def expected(n):
        sides = []
        for bundle, rows in ((student, examples), (teacher, others)):
            with torch.no_grad():
                logits = bundle.model(torch.tensor(rows[n]["input_ids"][None])).logits.double().numpy()
            sides += [logits, np.append(np.array(rows[n]["labels"])[1:] != -100, False)[None]]
        pairs = np.array([examples[n]["pairs"]]) if boundary else None
        result = mlot.multi_level_ot(
            sides[0], sides[2], student_mask=sides[1], teacher_mask=sides[3], pairs=pairs, config=config,
            reduction="none", return_plan=True,
        )  # fmt: skip
        return examples[n], sides, result

    return made, expected


def probabilities(logits):
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("boundary", [True, False])
@pytest.mark.parametrize(
    ("matching", "standardize"), [("optimal", False), ("rank", False), ("optimal", True)]
)
def test_pictures_of_a_text_that_is_shown_whole(bundles, boundary, matching, standardize):
    pieces = make_pieces(TEXTS[:2], bundles[0].tokenizer, bundles[1].tokenizer, LENGTH)
    made, expected = painter(bundles, pieces, boundary=boundary, matching=matching, standardize=standardize)
    found = made.paint([1])
    row, (student, student_mask, teacher, teacher_mask), result = expected(1)
    assert not found.cut
    assert sum(match.distance for match in found.matches) == pytest.approx(result.had[0], rel=1e-9)
    rows, columns = np.flatnonzero(teacher_mask[0]), np.flatnonzero(student_mask[0])
    np.testing.assert_allclose(found.plan, result.plan[0][np.ix_(rows, columns)] * len(rows), rtol=1e-9)
    np.testing.assert_allclose(found.plan.sum(axis=0), len(rows) / len(columns), rtol=1e-9)
    assert (len(found.teacher_tokens), len(found.student_tokens)) == found.plan.shape
    pairs = np.array(row["pairs"])
    if not boundary:
        count = min(len(rows), len(columns))
        pairs = np.stack([columns[:count], rows[:count]], axis=1)
    for traces, logits, kept, side in (
        (found.student_traces, student, result.student_columns, 0),
        (found.teacher_traces, teacher, result.teacher_columns, 1),
    ):
        if standardize:
            logits = logits / (logits.std(axis=-1, ddof=1, keepdims=True) + 1e-4)
        wanted = probabilities(logits[0])[pairs[:, side]][:, kept[0]].T
        np.testing.assert_allclose(traces, wanted, rtol=1e-9, atol=1e-12)
        masses = [match.student_mass if side == 0 else match.teacher_mass for match in found.matches]
        np.testing.assert_allclose(masses, wanted.sum(axis=1), rtol=1e-9, atol=1e-12)
    names = spell(bundles[1].tokenizer, result.teacher_columns[0])
    assert [match.teacher for match in found.matches] == names
    assert [match.student for match in found.matches] == spell(
        bundles[0].tokenizer, result.student_columns[0]
    )
    for side, name in (("student", "input_ids"), ("teacher", "teacher_input_ids")):
        bundle = bundles[0] if side == "student" else bundles[1]
        tokens = spell(bundle.tokenizer, np.array(row[name]))
        assert [token for part in found.segments for token in getattr(part, side)] == tokens
        assert list(getattr(found, f"{side}_tokens")) == tokens[1:]
    assert sum(part.paired for part in found.segments) == len(row["pairs"])
    assert len(found.paired_tokens) == len(pairs)


def test_of_a_long_text_the_beginning_is_shown(bundles):
    pieces = make_pieces(TEXTS, bundles[0].tokenizer, bundles[1].tokenizer, LENGTH)
    long = next(n for n, piece in enumerate(pieces) if piece.document == 2)
    made, expected = painter(bundles, pieces)
    found = made.paint([long])
    _, sides, result = expected(long)
    assert found.cut
    assert 10 < len(found.student_tokens) <= 40
    assert found.plan.shape == (len(found.teacher_tokens), len(found.student_tokens))
    np.testing.assert_allclose(
        found.plan, result.plan[0][: found.plan.shape[0], : found.plan.shape[1]] * sides[3].sum(), rtol=1e-9
    )
    for side in ("student", "teacher"):
        drawn = [token for part in found.segments for token in getattr(part, side)]
        assert drawn[1:] == list(getattr(found, f"{side}_tokens"))
        assert pieces[long].text.replace(" ", "␣").startswith("".join(drawn[1:]))
    assert all(part.paired for part in found.segments)
    assert "".join(found.student_tokens) == "".join(found.teacher_tokens)
    # masses and distances are those of the whole text all the same
    assert sum(match.distance for match in found.matches) == pytest.approx(result.had[0], rel=1e-9)


def test_the_most_readable_example_is_chosen(bundles):
    pieces = make_pieces(TEXTS, bundles[0].tokenizer, bundles[1].tokenizer, LENGTH)
    made, expected = painter(bundles, pieces)
    sizes = [max(int(mask.sum()) for mask in expected(n)[1][1::2]) for n in range(len(pieces))]
    nearest = int(np.argmin(np.abs(np.array(sizes) - 26)))
    assert made.paint(range(len(pieces))).segments == made.paint([nearest]).segments
    assert made.paint(range(len(pieces))).segments != made.paint([(nearest + 1) % len(pieces)]).segments


def test_of_a_soft_matching_the_heaviest_partner_is_shown(bundles):
    pieces = make_pieces(TEXTS[:1], bundles[0].tokenizer, bundles[1].tokenizer, LENGTH)
    made, expected = painter(bundles, pieces, matching="sinkhorn")
    _, _, result = expected(0)
    partners = result.student_columns[0][result.coupling[0].argmax(axis=1)]
    assert [m.student for m in made.paint([0]).matches] == spell(bundles[0].tokenizer, partners)


def test_prompts_are_not_shown(bundles):
    example = {"prompt": "Say one two three. ", "completion": "Return the sum."}
    record = Example(example, "here")
    made, _ = painter(bundles, [Piece(record.text, 0, True, record)])
    found = made.paint([0], seen_in_training=True)
    assert found.seen_in_training
    for side in ("student", "teacher"):
        drawn = [token for part in found.segments for token in getattr(part, side)]
        assert "".join(drawn[1:]) == "Return␣the␣sum.</s>"


def test_diagnostics_are_those_of_each_example(bundles):
    pieces = make_pieces(TEXTS * 15, bundles[0].tokenizer, bundles[1].tokenizer, LENGTH)
    made, expected = painter(bundles, pieces)
    found = made.diagnostics(range(len(pieces)))
    assert all(len(values) == 32 for values in found.values())
    for n in (0, 3, 31):
        wanted = vars(expected(n)[2].diagnostics())
        for name, values in found.items():
            np.testing.assert_allclose(values[n], wanted[name][0], rtol=1e-9, atol=1e-9, err_msg=name)


def test_columns_are_spelled_as_text():
    tokenizer = train_bpe(["naïve ☃ tabs\t" * 5], 280, 32)
    set_seed(0)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<s>", "Ġ", "Ċ", "ĉ", "â")}
    shown = spell(tokenizer, np.array([*ids.values(), 10**6]))
    assert shown == ["<s>", "␣", "↵", "→", "\\xe2", "#1000000"]
