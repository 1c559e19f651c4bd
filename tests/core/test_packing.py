"""Several sequences in one row: the loss and the gradient of a row for each, and no copy of logits."""

import pytest
import torch

import mlot
import mlot.nn
from mlot.align import TokenBytes, VocabularyMap, batch_text_positions, text_positions

LENGTHS = ((5, 6), (2, 3), (9, 4), (3, 3))
V_S, V_T = 23, 31


def packed(rows, pad):
    """Rows of these lengths one after the other, in one row."""
    return torch.cat([row[:length] for row, length in zip(rows, pad, strict=True)])[None]


def problem():
    torch.manual_seed(0)
    student_lengths, teacher_lengths = zip(*LENGTHS, strict=True)
    sides = []
    for lengths, vocabulary in ((student_lengths, V_S), (teacher_lengths, V_T)):
        longest = max(lengths)
        logits = 3 * torch.randn(len(lengths), longest, vocabulary, dtype=torch.float64)
        labels = torch.randint(vocabulary, (len(lengths), longest))
        labels[:, 0] = -100
        for row, length in zip(labels, lengths, strict=True):
            row[length:] = -100
        places = torch.cat([torch.arange(length) for length in lengths])[None]
        sides.append((logits, labels, lengths, places))
    pairs = torch.full((len(LENGTHS), 4, 2), -1)
    for n, lengths in enumerate(LENGTHS):
        for p in range(min(4, *lengths) - 1):
            pairs[n, p] = torch.tensor([p, min(2 * p, lengths[1] - 2)])
    return (*sides, pairs)


def moved(rows, lengths):
    """Rows with two positions, counted in the one row."""
    starts = torch.tensor([[0, 0], *LENGTHS[:-1]]).cumsum(0)
    parts = []
    for row, start in zip(rows, starts, strict=True):
        part = row[row[:, 0] >= 0].clone()
        part[:, :2] += start
        parts.append(part)
    return torch.cat(parts)[None]


@pytest.mark.parametrize("num_items", [None, 17])
@pytest.mark.parametrize("matching", ["optimal", "greedy", "rank", "sinkhorn"])
@pytest.mark.parametrize("paired", [True, False])
def test_loss_and_gradient_are_those_of_a_row_each(matching, paired, num_items):
    (s, s_labels, s_lengths, s_places), (t, t_labels, t_lengths, t_places), pairs = problem()
    criterion = mlot.nn.MultiLevelOTLoss(mlot.MultiLevelOTConfig(k=7, matching=matching), alpha=0.7)
    leaf = s.clone().requires_grad_()
    want = criterion.terms(leaf, t, s_labels, t_labels, num_items, pairs=pairs if paired else None)
    (slope,) = torch.autograd.grad(want.loss, leaf)
    flat = packed(s, s_lengths).requires_grad_()
    labels = packed(s_labels, s_lengths), packed(t_labels, t_lengths)
    got = criterion.terms(
        flat,
        packed(t, t_lengths),
        *labels,
        num_items,
        pairs=moved(pairs, LENGTHS) if paired else None,
        student_position_ids=s_places,
        teacher_position_ids=t_places,
    )
    for name in ("loss", "cross_entropy", "distillation"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=1e-10, atol=0)
    for name in ("had", "sl", "sd", "student_columns", "teacher_columns"):
        torch.testing.assert_close(getattr(got.ot, name), getattr(want.ot, name), rtol=1e-10, atol=1e-12)
    (own,) = torch.autograd.grad(got.loss, flat)
    torch.testing.assert_close(own, packed(slope, s_lengths), rtol=1e-10, atol=1e-14)
    ours, theirs = got.ot.diagnostics(), want.ot.diagnostics()
    for name in ("pairs", "teacher_kept_mass", "student_kept_mass", "marginal_error"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-10), name
    assert len(got.sequences) == len(LENGTHS)


def test_several_rows_padding_at_their_ends_and_a_head():
    (s, s_labels, s_lengths, _), (t, t_labels, t_lengths, _), _ = problem()
    criterion = mlot.nn.MultiLevelOTLoss(mlot.MultiLevelOTConfig(k=7), alpha=0.7)
    want = criterion.terms(s, t, s_labels, t_labels)
    # two sequences a row; the shorter row ends with padding at position 0, as collators write it
    rows = []
    for source, labels, lengths in ((s, s_labels, s_lengths), (t, t_labels, t_lengths)):
        halves = [(0, 2), (2, 4)]
        longest = max(sum(lengths[a:b]) for a, b in halves)
        made = []
        for array, fill in ((source, 0.0), (labels, -100)):
            full = array.new_full((2, longest, *array.shape[2:]), fill)
            for n, (a, b) in enumerate(halves):
                part = packed(array[a:b], lengths[a:b])[0]
                full[n, : len(part)] = part
            made.append(full)
        places = torch.zeros(2, longest, dtype=torch.long)
        for n, (a, b) in enumerate(halves):
            ids = torch.cat([torch.arange(length) for length in lengths[a:b]])
            places[n, : len(ids)] = ids
        rows.append((*made, places))
    (s_rows, s_marks, s_at), (t_rows, t_marks, t_at) = rows
    teacher = mlot.LinearHead(t_rows, torch.eye(V_T, dtype=torch.float64))
    got = criterion.terms(
        mlot.LinearHead(s_rows, torch.eye(V_S, dtype=torch.float64)),
        teacher,
        s_marks,
        t_marks,
        student_position_ids=s_at,
        teacher_position_ids=t_at,
    )
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-10, atol=0)
    # traces have a row for each sequence
    traces = mlot.select(t, mlot.mask_from_labels(t_labels), k=7)
    got = criterion.terms(s_rows, traces, s_marks, student_position_ids=s_at)
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-10, atol=0)


def test_the_plan_from_the_text():
    vocabulary = VocabularyMap.from_bytes([b"a", b"b", b"ab", None], [b"ab", b"a", b"b", b"ba", None])
    texts = (
        ("abab", [3, 2, 0, 1], [0, 0, 2, 3], [0, 2, 3, 4], [4, 0, 0], [0, 0, 2], [0, 2, 4]),
        ("ba", [3, 1, 0], [0, 0, 1], [0, 1, 2], [4, 3], [0, 0], [0, 2]),
    )
    rows, ids = [], []
    for text, s_ids, s_starts, s_ends, t_ids, t_starts, t_ends in texts:
        sides = [
            TokenBytes(i, a, b, [True, *[False] * (len(i) - 1)], len(text))
            for i, a, b in ((s_ids, s_starts, s_ends), (t_ids, t_starts, t_ends))
        ]
        rows.append(text_positions(*sides, text, vocabulary))
        ids.append((torch.tensor(s_ids), torch.tensor(t_ids)))
    torch.manual_seed(0)
    sides = []
    for side, width in ((0, 4), (1, 5)):
        longest = max(len(each[side]) for each in ids)
        tokens = torch.zeros(2, longest, dtype=torch.long)
        labels = torch.full((2, longest), -100)
        for n, each in enumerate(ids):
            tokens[n, : len(each[side])] = each[side]
            labels[n, 1 : len(each[side])] = each[side][1:]
        sides.append((torch.randn(2, longest, width, dtype=torch.float64), labels, tokens))
    (s, s_labels, _), (t, t_labels, t_tokens) = sides
    config = mlot.MultiLevelOTConfig(matching="text", k=4, sd_weight=0.1, had_weight=0.3)
    criterion = mlot.nn.MultiLevelOTLoss(config)
    plan = vocabulary.plan()
    leaf = s.clone().requires_grad_()
    text = mlot.TextPositions(torch.from_numpy(batch_text_positions(rows)), t_tokens, plan)
    want = criterion.terms(leaf, t, s_labels, t_labels, text=text)
    lengths = [[len(each[side]) for each in ids] for side in (0, 1)]
    moved_rows = [rows[0], rows[1].copy()]
    moved_rows[1][:, 0] += lengths[0][0]
    moved_rows[1][:, 1] += lengths[1][0]
    both = torch.cat([torch.from_numpy(row) for row in moved_rows])[None]
    flat = packed(s, lengths[0]).requires_grad_()
    places = [torch.cat([torch.arange(length) for length in each])[None] for each in lengths]
    given = {"student_position_ids": places[0], "teacher_position_ids": places[1]}
    one = mlot.TextPositions(both, packed(t_tokens, lengths[1]), plan)
    labels = packed(s_labels, lengths[0]), packed(t_labels, lengths[1])
    got = criterion.terms(flat, packed(t, lengths[1]), *labels, text=one, **given)
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-10, atol=0)
    slopes = [torch.autograd.grad(each.loss, x)[0] for each, x in ((got, flat), (want, leaf))]
    torch.testing.assert_close(slopes[0], packed(slopes[1], lengths[0]), rtol=1e-10, atol=1e-14)


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts arrays made by operations that are as large as the logits; views make none."""

    def __init__(self, size):
        super().__init__()
        self.size, self.made = size, set()
        self.kept = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() >= self.size:
            self.made.add(out.untyped_storage().data_ptr())
            self.kept.append(out)
        return out


def test_no_logits_are_copied():
    """Forward there is no array of their size; backward the one gradient, put together of its parts."""
    torch.manual_seed(0)
    count, length = 16, 12
    student, teacher = torch.randn(1, count * length, 800), torch.randn(1, count * length, 900)
    student.requires_grad_()
    labels = torch.randint(800, (1, count * length))
    labels[:, ::length] = -100
    places = torch.arange(length).repeat(count)[None]
    criterion = mlot.nn.MultiLevelOTLoss(mlot.MultiLevelOTConfig(k=8, matching="rank"))
    size = student.untyped_storage().nbytes()
    own = {student.untyped_storage().data_ptr(), teacher.untyped_storage().data_ptr()}
    with Largest(size) as forward:
        loss = criterion(
            student, teacher, labels, labels, student_position_ids=places, teacher_position_ids=places
        )
    assert forward.made <= own
    with Largest(size) as backward:
        torch.autograd.grad(loss, student)
    assert len(backward.made - own) == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"student_position_ids": torch.zeros(1, 3)},
            TypeError,
            "student_position_ids: expected a torch tensor",
        ),
        ({"student_position_ids": torch.arange(3)[None]}, ValueError, "student_position_ids: expected shape"),
        ({"teacher_position_ids": None}, ValueError, "teacher_position_ids: expected integers"),
        ({"teacher_position_ids": torch.arange(16)[None]}, ValueError, "expected 4 sequences, as .* got 1"),
        ({"student_position_ids": None}, ValueError, "teacher_position_ids: expected None without"),
    ],
)
def test_positions_that_do_not_fit_are_refused(changes, error, message):
    (s, s_labels, s_lengths, s_places), (t, t_labels, t_lengths, t_places), _ = problem()
    given = {"student_position_ids": s_places, "teacher_position_ids": t_places} | changes
    labels = packed(s_labels, s_lengths), packed(t_labels, t_lengths)
    with pytest.raises(error, match=message):
        mlot.nn.MultiLevelOTLoss()(packed(s, s_lengths), packed(t, t_lengths), *labels, **given)
