"""The benchmark of the whole criterion: processes in turns, agreement across them, and what has become slower."""

import json

import pytest

from benchmarks import criterion
from benchmarks.cli import main
from benchmarks.contestant import Contestant, Row

pytestmark = pytest.mark.slow


def test_everyone_runs_in_a_process_and_agrees(tmp_path):
    pytest.importorskip("transformers")
    sizes = ["--batch", "1", "--length", "12", "--student-vocabulary", "700", "--teacher-vocabulary", "600"]
    output = tmp_path / "criterion.json"
    quick = [*sizes, "--hidden", "8", "--k", "5", "--repeats", "2", "--output", str(output)]
    assert main(["criterion", *quick]) == 0
    rows = {row["name"]: row for row in json.loads(output.read_text())["rows"]}
    for name, row in rows.items():
        if row["ours"] or row["claims"]:
            assert row["status"] in ("measured", "not installed"), name
        if row["status"] == "measured":
            assert len(row["seconds"]) == 2
            assert row["agrees"] or not row["claims"], name
    assert rows["mlot, text"]["status"] == "measured"
    assert rows["mlot, rank"]["value"] == pytest.approx(rows["plain PyTorch, rank"]["value"], rel=1e-5)


def a_row(ratio, spread, ours=True):
    row = Row.of(Contestant("mlot, rank", "q", None, (), "base", ours=ours))
    row.time_ratio, row.time_ratio_spread = ratio, spread
    return row


def test_what_has_become_slower_is_told_but_noise_is_not():
    committed = {"rows": [{"name": "mlot, rank", "time_ratio": 3.0}]}
    assert criterion.slower([a_row(3.1, (3.0, 3.3))], committed) == []
    assert criterion.slower([a_row(5.0, (2.9, 9.0))], committed) == []  # a disturbed run
    assert criterion.slower([a_row(5.0, (4.8, 5.2), ours=False)], committed) == []
    (line,) = criterion.slower([a_row(5.0, (4.8, 5.2))], committed)
    assert line == "mlot, rank: 5.00 times its base, 3.00 before"
