"""The benchmarks measure what they say: agreement, memory, time in turns, and what is written down."""

import json
import platform

import numpy as np
import pytest
import torch

import mlot
from benchmarks import libraries, plain
from benchmarks.agreement import Outcome, differences, within
from benchmarks.bandwidth import measured, select_bandwidth
from benchmarks.cli import main
from benchmarks.contest import compete
from benchmarks.contestant import Contestant
from benchmarks.inputs import predictions, traces
from benchmarks.loss import from_logits
from benchmarks.memory import highest, peak_bytes, saved_bytes, storage_bytes
from benchmarks.timing import interleaved
from benchmarks.transport import solvers

CPU = torch.device("cpu")
SMALL_LOSS = ["loss", "--batch", "2", "--length", "12", "--student-vocabulary", "400"]
SMALL_LOSS += ["--teacher-vocabulary", "300", "--hidden", "16", "--k", "20", "--repeats", "2"]
SMALL_TRANSPORT = ["transport", "--batch", "2", "--length", "12", "--k", "8", "--repeats", "2"]
SMALL_SWEEP = ["sweep", "--length", "8", "--vocabulary", "300", "--k", "10", "--repeats", "1"]
SMALL_SWEEP += ["--vocabularies", "300", "600", "--lengths", "8", "16", "--batches", "1", "2"]


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
    assert rows[1].time_ratio == pytest.approx(np.median(rows[1].seconds) / np.median(rows[0].seconds))
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


def test_bandwidth_is_measured_on_devices_only():
    student = logits(400, 1).requires_grad_()
    assert select_bandwidth(student, 20, 2) == "not measured"
    rates = measured(student, 20, 2, copy_bytes=1 << 20)
    for way in ("forward", "backward"):
        fraction = rates[f"select {way}"] / rates["copy"]
        assert rates[f"select {way}, fraction of copy"] == pytest.approx(fraction)
        assert fraction > 0


def run(arguments, tmp_path):
    output, markdown = tmp_path / "figures.json", tmp_path / "table.md"
    code = main([*arguments, "--output", str(output), "--markdown", str(markdown)])
    return code, json.loads(output.read_text(encoding="utf-8")), markdown.read_text(encoding="utf-8")


def check_row(row):
    assert row["status"] == "measured"
    assert row["median_seconds"] == pytest.approx(np.median(row["seconds"]))
    assert row["gradient_bytes"] > 0
    assert row["saved_bytes"] >= 0
    assert row["beyond_gradient_bytes"] == row["peak_bytes"] - row["gradient_bytes"] >= 0
    assert min(row["time_ratio"], row["memory_ratio"], row["gradient_norm"]) > 0
    if row["claims"]:
        assert row["agrees"]


def test_loss_command(tmp_path, capsys):
    threads = torch.get_num_threads()
    code, figures, markdown = run(SMALL_LOSS, tmp_path)
    printed = capsys.readouterr().out
    assert (code, torch.get_num_threads()) == (0, threads)
    rows = {row["name"]: row for row in figures["rows"]}
    ours = {"mlot, rank", "mlot, optimal", "mlot, LinearHead", "mlot.uld", "mlot.compat.released_loss"}
    assert ours | {"plain, rank", "plain, optimal", "plain, ULD"} <= set(rows)
    for name, row in rows.items():
        if name.startswith("TRL") and row["status"] == "not installed":
            assert row["seconds"] == []
        else:
            check_row(row)
        assert name in printed
        assert f"| {name} |" in markdown
    assert rows["mlot.compat.released_loss"]["claims"]
    assert rows["mlot, rank"]["gradient_bytes"] == 2 * 12 * 400 * 4
    assert rows["mlot, LinearHead"]["gradient_bytes"] == (2 * 12 * 16 + 400 * 16) * 4
    # The value is one loss, however the logits come.
    assert rows["mlot, LinearHead"]["value"] == pytest.approx(rows["mlot, rank"]["value"], rel=1e-5)
    assert rows["mlot, optimal"]["value"] < rows["mlot, rank"]["value"]
    assert "Memory bandwidth of select: not measured." in printed


def test_step_command(tmp_path):
    sizes = ["--batch", "2", "--length", "8", "--student-vocabulary", "90", "--teacher-vocabulary", "70"]
    code, figures, _ = run(["step", *sizes, "--width", "64", "--layers", "1", "--repeats", "2"], tmp_path)
    assert code == 0
    rows = {row["name"]: row for row in figures["rows"]}
    assert set(rows) >= {"cross-entropy alone", "MultiLevelOT, rank", "ULD"}
    for row in rows.values():
        assert row["status"] == "measured"
        assert len(row["seconds"]) == 2
    # The same loss, however the logits come.
    head, dense = rows["MultiLevelOT, rank, from the head"], rows["MultiLevelOT, rank"]
    assert head["value"] == pytest.approx(dense["value"], rel=1e-5)
    assert head["gradient_norm"] == pytest.approx(dense["gradient_norm"], rel=1e-4)
    assert any("weights" in note for note in figures["notes"])


def test_transport_command(tmp_path, capsys):
    code, figures, markdown = run([*SMALL_TRANSPORT, "--dtype", "float64", "--seed", "3"], tmp_path)
    assert code == 0
    rows = {row["name"]: row for row in figures["rows"]}
    assert len(rows) == 10
    for row in rows.values():
        if row["status"] != "not installed":
            check_row(row)
    scaled, rescaled = (rows[f"plain, {name}"]["saved_bytes"] for name in ("scaled kernel", "rescaled plan"))
    assert rows["mlot.sinkhorn_distance"]["saved_bytes"] < scaled < rescaled
    assert figures["benchmark"] == "transport"
    settings = "batch length k rounds epsilon repeats threads dtype device seed"
    assert set(figures["settings"]) == set(settings.split())
    assert (figures["settings"]["seed"], figures["settings"]["dtype"]) == (3, "float64")
    environment = figures["environment"]
    told = "date,cpu,cores,usable cores,threads,device,system,python,mlot,torch,numpy,scipy,POT,geomloss,TRL"
    assert set(environment) == set(told.split(","))
    assert (environment["threads"], environment["torch"]) == (1, torch.__version__)
    assert platform.node() not in environment.values()
    for text in (json.dumps(figures), markdown, capsys.readouterr().out):
        assert str(tmp_path) not in text


def test_sweep_command(tmp_path):
    plot = tmp_path / "curves.png"
    code, figures, markdown = run([*SMALL_SWEEP, "--plot", str(plot)], tmp_path)
    assert code == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    for row in figures["rows"]:
        check_row(row)
    points = [(row["point"]["axis"], row["point"][row["point"]["axis"]]) for row in figures["rows"]]
    axes = {"vocabulary": (300, 600), "length": (8, 16), "batch": (1, 2)}
    assert points == [(axis, size) for axis, sizes in axes.items() for size in sizes for _ in range(4)]
    assert "## vocabulary 600 (B = 1, T = 8, V = 600)" in markdown
    assert figures["rows"][-1]["gradient_bytes"] == 2 * 8 * 300 * 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_loss_command_in_low_precision(dtype, tmp_path):
    code, figures, _ = run([*SMALL_LOSS, "--dtype", dtype], tmp_path)
    assert code == 0
    rows = {row["name"]: row for row in figures["rows"]}
    assert rows["plain, optimal"]["agrees"]
    assert rows["mlot, rank"]["gradient_bytes"] == 2 * 12 * 400 * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("arguments", [SMALL_LOSS, SMALL_TRANSPORT])
def test_commands_on_cuda(arguments, tmp_path):
    code, figures, _ = run([*arguments, "--device", "cuda"], tmp_path)
    assert code == 0
    for row in figures["rows"]:
        if row["status"] == "measured":
            check_row(row)
    assert figures["environment"]["device"] == torch.cuda.get_device_name()
    if arguments is SMALL_LOSS:
        assert figures["bandwidth"]["copy"] > 0


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_a_mismatch_is_shown_and_fails(factor, tmp_path, capsys, monkeypatch):
    right = plain.log_potentials
    monkeypatch.setattr(plain, "log_potentials", lambda *arguments: factor * right(*arguments))
    code, figures, markdown = run(SMALL_TRANSPORT, tmp_path)
    assert code == 1
    (row,) = (row for row in figures["rows"] if row["name"] == "plain, log domain")
    assert not row["agrees"]
    # JSON holds no NaN.
    assert row["value_difference"] == (pytest.approx(0.01, rel=1e-3) if factor == 1.01 else None)
    assert row["seconds"]
    assert "MISMATCH" in markdown
    assert "MISMATCH" in capsys.readouterr().out


def test_a_failure_of_mlot_fails(tmp_path, capsys, monkeypatch):
    def broken(*_, **__):
        raise ValueError("at /some/where")

    monkeypatch.setattr(mlot, "sinkhorn_distance", broken)
    code, figures, markdown = run(SMALL_TRANSPORT, tmp_path)
    assert code == 1
    assert figures["rows"][0]["status"] == "failed: ValueError"
    assert figures["rows"][1]["agrees"]
    assert "/some/where" not in json.dumps(figures) + markdown + capsys.readouterr().out


_BAD = ["", "nothing", "loss --repeats 0", "loss --threads -1", "loss --k 2.5", "loss --dtype int64"]
_BAD += ["transport --epsilon 0", "transport --dtype bfloat16"]


@pytest.mark.parametrize("arguments", _BAD)
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_narrow_vocabulary_keeps_all_of_it():
    entries = from_logits(logits(30, 1).requires_grad_(), logits(20, 2), 50)
    assert all(row.agrees for row in compete(entries, 1, CPU, torch.float64))


def test_align_command(tmp_path, capsys):
    output = tmp_path / "align.json"
    assert main(["align", "--bytes", "30000", "--repeats", "1", "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    rows = {row["name"]: row for row in found["rows"]}
    reference = rows["comparison of byte prefixes"]
    assert reference["is_reference"]
    assert reference["value"] > 1000
    for name in ("mlot.align, from encodings", "mlot.align, from ids"):
        assert rows[name]["agrees"]
        assert rows[name]["value"] == reference["value"]
        assert rows[name]["time_ratio"] > 0
    assert "Megabytes of text per second: " in " ".join(found["notes"])
