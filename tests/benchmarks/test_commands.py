"""The commands of the benchmarks, on small problems: what they print and write, and how they fail."""

import json
import platform

import numpy as np
import pytest
import torch

import mlot
from benchmarks import plain
from benchmarks.cli import main

pytestmark = pytest.mark.slow

SMALL_LOSS = ["loss", "--batch", "2", "--length", "12", "--student-vocabulary", "400"]
SMALL_LOSS += ["--teacher-vocabulary", "300", "--hidden", "16", "--k", "20", "--repeats", "2"]
SMALL_TRANSPORT = ["transport", "--batch", "2", "--length", "12", "--k", "8", "--repeats", "2"]
SMALL_SWEEP = ["sweep", "--length", "8", "--vocabulary", "300", "--k", "10", "--repeats", "1"]
SMALL_SWEEP += ["--vocabularies", "300", "600", "--lengths", "8", "16", "--batches", "1", "2"]


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


@pytest.mark.filterwarnings("ignore")
def test_trainer_command(tmp_path):
    sizes = [
        "--batch",
        "2",
        "--characters",
        "48",
        "--student-vocabulary",
        "300",
        "--teacher-vocabulary",
        "400",
    ]
    sizes += ["--width", "32", "--layers", "1", "--k", "12", "--repeats", "2"]
    code, figures, markdown = run(["trainer", *sizes], tmp_path)
    assert code == 0
    rows = {row["name"]: row for row in figures["rows"]}
    assert {"cross-entropy alone", "mlot, rank", "mlot, optimal", "mlot, text"} <= set(rows)
    for name, row in rows.items():
        if name.startswith("GOLD") and row["status"] == "not installed":
            continue
        assert row["status"] == "measured"
        assert row["gradient_norm"] > 0
        assert row["median_seconds"] > 0
        assert f"| {name} |" in markdown
    assert rows["mlot, optimal"]["value"] < rows["mlot, rank"]["value"]


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
    told = "date,cpu,cores,usable cores,threads,device,system,python,mlot,torch,numpy,scipy"
    told += ",POT,geomloss,TRL,Liger,Triton"
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
    assert rows["mlot.align, from encodings to rows"]["value"] > reference["value"]
    assert "Megabytes of text per second: " in " ".join(found["notes"])
    assert rows["collator, 150-byte texts, BPE of 2,048 and 4,096 tokens"]["time_ratio"] > 1
    assert rows["collator, 400-byte texts, BPE of 2,048 and 4,096 tokens"]["value"] > 1000
    assert "beyond tokenizing" in " ".join(found["notes"])
