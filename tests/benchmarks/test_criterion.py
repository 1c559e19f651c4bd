"""The benchmark of the whole criterion: processes in turns, agreement across them, and what has become slower."""

import json
from pathlib import Path

import pytest

from benchmarks import criterion
from benchmarks.cli import main
from benchmarks.contestant import Contestant, Findings, Row

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results" / "cpu" / "criterion.json"


@pytest.mark.slow
def test_everyone_runs_in_a_process_and_agrees(tmp_path):
    pytest.importorskip("transformers")
    sizes = ["--batch", "1", "--length", "12", "--student-vocabulary", "700", "--teacher-vocabulary", "600"]
    output = tmp_path / "criterion.json"
    quick = [*sizes, "--hidden", "8", "--k", "5", "--repeats", "2", "--output", str(output)]
    assert main(["criterion", *quick]) == 0
    rows = {row["name"]: row for row in json.loads(output.read_text())["rows"]}
    for name, row in rows.items():
        if row["ours"] or row["claims"]:
            assert row["status"] in ("measured", "not installed", "needs a GPU"), name
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


@pytest.fixture
def no_work(monkeypatch):
    """The options that a run would have been done with; none is done."""
    runs = []
    monkeypatch.setattr(criterion, "run", lambda options: runs.append(options) or Findings([]))
    return runs


@pytest.mark.parametrize("option", ["--output", "--markdown"])
@pytest.mark.parametrize("place", [".", "missing/file"])
def test_where_nothing_can_be_written_no_work_is_done(option, place, tmp_path, no_work, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["criterion", option, str(tmp_path / place)])
    assert ended.value.code == 2
    assert f"{option}: expected a file in a folder that exists" in capsys.readouterr().err
    assert not no_work


def test_a_result_with_other_settings_is_no_yardstick(tmp_path, no_work, capsys):
    assert main(["criterion", "--against", str(COMMITTED)]) == 0  # the defaults are those it was taken with
    assert main(["criterion", "--repeats", "3", "--against", str(COMMITTED)]) == 0
    assert len(no_work) == 2
    for arguments, said in (
        (["--k", "7", "--against", str(COMMITTED)], "which has k 50"),
        (["--against", str(COMMITTED.with_name("align.json"))], "expected"),
        (["--against", str(tmp_path)], "expected a result of this benchmark"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["criterion", *arguments])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    assert len(no_work) == 2
