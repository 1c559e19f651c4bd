"""The benchmarks measure what they say: agreement, memory, time in turns, and what is written down."""

import numpy as np
import pytest
import torch

import mlot
from benchmarks import libraries, plain
from benchmarks.agreement import Outcome, differences, within
from benchmarks.bandwidth import measured, select_bandwidth
from benchmarks.contest import compete
from benchmarks.contestant import Contestant
from benchmarks.inputs import predictions, traces
from benchmarks.loss import from_logits
from benchmarks.memory import highest, peak_bytes, saved_bytes, storage_bytes
from benchmarks.timing import interleaved
from benchmarks.transport import solvers

CPU = torch.device("cpu")


def logits(vocabulary, seed, batch=2, length=12):
    sizes = (batch, length, vocabulary, 8)
    return predictions(*sizes, seed=seed, dtype=torch.float64, device=CPU).logits


def gradient(value, leaf):
    return torch.autograd.grad(value, leaf)[0].numpy()


def test_peak_of_a_known_pattern():
    def action():
        first = torch.empty(1000, 1000)
        second = torch.empty(500, 1000)
        del first
        third = torch.empty(750, 1000)
        return second, third

    # What an earlier action left behind does not count.
    assert [peak_bytes(action, CPU) for _ in range(3)] == [4_000_000 + 2_000_000] * 3


def test_peak_is_beyond_what_was_there_before():
    before = [torch.empty(1000, 1000)]

    def action():
        before.clear()  # its release must not make room for what comes
        return torch.empty(500, 1000)

    assert peak_bytes(action, CPU) == 2_000_000


def test_peak_sees_scratch_space_and_the_backward_pass():
    leaf = torch.randn(1000, 1000, requires_grad=True)

    def action():
        return torch.autograd.grad(leaf.exp().sum(), leaf)

    # The exponential, kept for backward, and the gradient.
    assert 8_000_000 <= peak_bytes(action, CPU) < 8_001_000


def test_highest_sorts_matches_addresses_and_leaves_out_devices():
    changes = [
        (3, -10, 1, 0),
        (1, 10, 1, 0),
        (2, 5, 2, 0),
        (0, -1000, 9, 0),  # allocated before the action
        (4, 8, 3, 0),
        (5, 10_000, 4, 1),
    ]
    names = ("Ev Idx", "Bytes", "Addr", "Device Type")
    events = [{"name": "[memory]", "args": dict(zip(names, change, strict=True))} for change in changes]
    events.append({"name": "aten::add", "args": {}})
    assert highest(events) == 15
    assert highest([]) == 0


def test_saved_bytes_counts_each_storage_once_and_no_input():
    leaf = torch.randn(100, 10, dtype=torch.float64, requires_grad=True)

    def twice_the_same():
        root = leaf.exp()  # saves its result
        return (root * root[:, :]).sum()  # saves the same storage, twice

    def dropped():
        (leaf.exp() * 2).sin()  # saved, but part of no graph that outlives the call
        return leaf.exp().sum()

    assert saved_bytes(twice_the_same, [leaf]) == 8000
    assert saved_bytes(dropped, [leaf]) == 8000
    assert saved_bytes(lambda: (leaf * leaf).sum(), [leaf]) == 0
    assert saved_bytes(lambda: (leaf * leaf).sum(), []) == 8000
    assert storage_bytes([leaf[:5], leaf[5:], torch.zeros(()).expand(1000)]) == 8000 + 4


@pytest.mark.slow
def test_actions_take_turns():
    order = []
    actions = [lambda n=n: order.append(n) for n in range(3)]
    seconds = interleaved(actions, 3, CPU)
    assert order == [0, 1, 2, 1, 2, 0, 2, 0, 1]
    assert [len(each) for each in seconds] == [3, 3, 3]
    assert all(value > 0 for each in seconds for value in each)


def contestant(name, factor=1.0, *, leaf, shift=0.0, claims=True, forward=None):
    def scaled():
        return factor * leaf.square().sum() + shift

    return Contestant(name, "squares", forward or scaled, (leaf,), "first", claims=claims)


def test_differences_are_relative():
    leaf = torch.tensor([3.0, 4.0], dtype=torch.float64)
    reference = Outcome(torch.tensor([1.0, 10.0], dtype=torch.float64), (leaf,))
    found = Outcome(torch.tensor([1.0, 11.0], dtype=torch.float64), (leaf * 1.5,))
    assert differences(found, reference) == pytest.approx((0.1, 0.5))
    assert differences(Outcome(found.value.sum(), (leaf,)), reference) == (float("inf"), float("inf"))


@pytest.mark.parametrize("apart", [(float("nan"), 0.0), (0.0, float("nan")), (1e-9, 0.0), (0.0, 1e-8)])
def test_what_is_not_within_tolerance(apart):
    assert within((0.0, 0.0), torch.float64)
    assert not within(apart, torch.float64)


def test_a_broken_claim_shows():
    leaf = torch.randn(5, dtype=torch.float64, requires_grad=True)
    shift = 1e-3 * float(leaf.detach().square().sum())
    entries = [
        contestant("first", leaf=leaf),
        contestant("same", leaf=leaf),
        contestant("other value, same gradient", shift=shift, leaf=leaf),
        contestant("other gradient, same value", 1 + 1e-3, shift=-shift, leaf=leaf),
        contestant("other, and says so", 2.0, leaf=leaf, claims=False),
    ]
    rows = compete(entries, 1, CPU, torch.float64)
    assert [row.agrees for row in rows] == [True, True, False, False, False]
    assert [row.is_bad for row in rows] == [False, False, True, True, False]
    assert [row.is_reference for row in rows] == [True, False, False, False, False]
    assert rows[2].value_difference == pytest.approx(1e-3)
    assert rows[3].gradient_difference == pytest.approx(1e-3)


def test_failures_and_absences_are_rows(capsys):
    leaf = torch.randn(5, dtype=torch.float64, requires_grad=True)

    def fails():
        raise RuntimeError("a message with /a/path")

    entries = [contestant("first", leaf=leaf), contestant("broken", leaf=leaf, forward=fails)]
    entries.append(Contestant("absent", "squares", None, (leaf,), "first", remark="not installed"))
    first, broken, absent = compete(entries, 2, CPU, torch.float64)
    assert (first.status, broken.status, absent.status) == (
        "measured",
        "failed: RuntimeError",
        "not installed",
    )
    assert "a message with /a/path" in capsys.readouterr().err
    for row in (broken, absent):
        assert (row.seconds, row.peak_bytes, row.agrees, row.is_bad) == ([], None, None, False)


def test_ratios_are_over_the_baseline():
    leaf = torch.randn(1000, dtype=torch.float64, requires_grad=True)

    def larger():
        return torch.cat([leaf.square(), leaf.new_zeros(9000)]).sum()

    rows = compete(
        [contestant("first", leaf=leaf), contestant("larger", leaf=leaf, forward=larger)], 3, CPU, leaf.dtype
    )
    assert rows[0].time_ratio == rows[0].memory_ratio == 1
    ratios = np.divide(rows[1].seconds, rows[0].seconds)  # of one round each
    assert rows[1].time_ratio == pytest.approx(np.median(ratios))
    assert rows[1].time_ratio_spread == pytest.approx(tuple(np.quantile(ratios, (0.25, 0.75))))
    assert rows[1].memory_ratio == rows[1].peak_bytes / rows[0].peak_bytes > 1
    assert rows[1].gradient_bytes == 8000
    assert rows[1].beyond_gradient_bytes == rows[1].peak_bytes - 8000


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("matching", ["rank", "optimal"])
def test_plain_equals_mlot(matching, seed):
    student, teacher = logits(400, seed).requires_grad_(), logits(300, seed + 100)
    config = mlot.MultiLevelOTConfig(k=20, matching=matching)
    ours = mlot.multi_level_ot(student, teacher, config=config).loss
    theirs = plain.multi_level_ot(student, teacher, k=20, pool=256 if matching == "optimal" else None)
    np.testing.assert_allclose(theirs.item(), ours.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient(theirs, student), gradient(ours, student), rtol=1e-8, atol=1e-14)
    # Both follow the reference backend, which shares no numerical code with either.
    reference = mlot.multi_level_ot(student.detach().numpy(), teacher.numpy(), config=config).loss
    np.testing.assert_allclose(theirs.item(), reference, rtol=1e-10)


@pytest.mark.parametrize(("wide", "narrow"), [(400, 300), (300, 400), (300, 300)])
def test_plain_uld_equals_mlot(wide, narrow):
    student, teacher = logits(wide, 1).requires_grad_(), logits(narrow, 2)
    ours, theirs = mlot.uld(student, teacher), plain.uld(student, teacher)
    np.testing.assert_allclose(theirs.item(), ours.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient(theirs, student), gradient(ours, student), rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("solver", [plain.rescaled_plan, plain.scaled_kernel, plain.log_potentials])
@pytest.mark.parametrize("rounds", [1, 20])
def test_plain_plans_equal_mlot(solver, rounds):
    cost = torch.rand(2, 6, 9, dtype=torch.float64)
    expected = mlot.sinkhorn(cost.numpy(), epsilon=0.1, n_iter=rounds).plan
    np.testing.assert_allclose(solver(cost, 0.1, rounds).numpy(), expected, rtol=1e-9)


def test_pot_computes_the_same_distance():
    student, teacher = traces(2, 10, 8, seed=0, dtype=torch.float64, device=CPU)
    entries = [entry for entry in solvers(student.requires_grad_(), teacher, 0.1, 20) if entry.forward]
    rows = {row.name: row for row in compete(entries, 1, CPU, torch.float64)}
    claimed = [name for name, row in rows.items() if row.claims]
    assert {"POT ot.sinkhorn, sequence by sequence", "POT ot.batch, log_sinkhorn"} <= set(claimed)
    assert all(rows[name].agrees for name in claimed)
    constant_plan = rows["POT ot.batch, its default gradient"]
    assert constant_plan.value_difference < 1e-12
    assert constant_plan.gradient_difference > 0.01


@pytest.mark.parametrize(
    ("strategy", "aligned", "positions"),
    [("observed", False, 12), ("observed", True, 12), ("bayesian", False, 11)],
)
def test_trl_computes_uld(strategy, aligned, positions):
    pytest.importorskip("trl")
    student, teacher = logits(400, 1), logits(300, 2)
    value = libraries.trl_uld(strategy, aligned=aligned)(student, teacher)
    expected = mlot.uld(student[:, :positions], teacher[:, :positions]).item()
    np.testing.assert_allclose(value.item(), expected, rtol=1e-12)


def test_a_library_that_is_not_there():
    assert libraries.load("no_such_library.at_all") == "not installed"
    assert libraries.load("mlot.no_such_module") == "import failed: ModuleNotFoundError"


@pytest.mark.slow
def test_bandwidth_is_measured_on_devices_only():
    student = logits(400, 1).requires_grad_()
    assert select_bandwidth(student, 20, 2) == "not measured"
    rates = measured(student, 20, 2, copy_bytes=1 << 20)
    for way in ("forward", "backward"):
        fraction = rates[f"select {way}"] / rates["copy"]
        assert rates[f"select {way}, fraction of copy"] == pytest.approx(fraction)
        assert fraction > 0


def test_a_narrow_vocabulary_keeps_all_of_it():
    entries = from_logits(logits(30, 1).requires_grad_(), logits(20, 2), 50)
    assert all(row.agrees for row in compete(entries, 1, CPU, torch.float64))
