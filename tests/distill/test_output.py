"""The output folder of the example trainer: what it accepts, and how results get there."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from mlot._folders import created
from mlot._folders import staging as staging_of
from mlot.distill.errors import DistillError
from mlot.distill.output import ENTRIES, FORMAT, check_output, is_finished_run, is_stopped_run


def staging(folder):
    return staging_of(folder, ENTRIES, replaces=is_finished_run(folder))


def test_entries_of_the_right_name_but_no_run_are_refused(tmp_path):
    (tmp_path / "teacher").mkdir()
    for report in (None, "{}", "not json", f'["{FORMAT}"]', '{"format": "mlot.distill.1"}'):
        if report is not None:
            (tmp_path / "report.json").write_text(report)
        with pytest.raises(DistillError, match="holds (report.json, )?teacher; --overwrite"):
            check_output(tmp_path, overwrite=False, sources=[])
    (tmp_path / "report.json").unlink()
    (tmp_path / "teacher").rmdir()
    for n in range(5):
        (tmp_path / f"{n}.txt").touch()
    with pytest.raises(DistillError, match="holds 0.txt, 1.txt, 2.txt and 2 more; --overwrite"):
        check_output(tmp_path, overwrite=False, sources=[])
    check_output(tmp_path, overwrite=True, sources=[])


def test_a_finished_run_is_not_replaced_unasked(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"format": FORMAT}))
    with pytest.raises(DistillError, match="holds a finished run; --overwrite replaces it"):
        check_output(tmp_path, overwrite=False, sources=[])
    check_output(tmp_path, overwrite=True, sources=[])


def test_new_and_empty_folders_are_fine(tmp_path):
    check_output(tmp_path, overwrite=False, sources=[])
    check_output(tmp_path / "new", overwrite=False, sources=[])
    (tmp_path / ".partial-of-a-killed-run").mkdir()
    check_output(tmp_path, overwrite=False, sources=[])


def test_results_replace_an_earlier_run_and_leave_other_files(tmp_path):
    (tmp_path / "student-ce").mkdir()
    (tmp_path / "student-ce" / "old").touch()
    (tmp_path / "teacher").mkdir()
    (tmp_path / "report.json").write_text(json.dumps({"format": FORMAT}))
    (tmp_path / "other.txt").write_text("other")
    with staging(tmp_path) as folder:
        (folder / "student-ce").mkdir()
        (folder / "student-ce" / "new").touch()
        (folder / "report.json").write_text("new")
        assert (tmp_path / "student-ce" / "old").exists()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "other.txt",
        "report.json",
        "student-ce",
        "student-ce/new",
    ]
    assert (tmp_path / "report.json").read_text() == "new"


def test_a_foreign_entry_without_a_successor_stays(tmp_path):
    (tmp_path / "teacher").mkdir()
    with staging(tmp_path) as folder:
        (folder / "report.json").touch()
    assert (tmp_path / "teacher").exists()


def test_a_failure_leaves_nothing_of_the_new_and_all_of_the_old(tmp_path, monkeypatch):
    output = tmp_path / "a" / "b"

    def write_and_fail():
        with staging(output) as folder:
            (folder / "report.json").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert not (tmp_path / "a").exists()

    old = ("student-ce", "student-mlot", "report.json")
    output.mkdir(parents=True)
    for name in old:
        (output / name).write_text("old")
    (output / "report.json").write_text(json.dumps({"format": FORMAT}))
    replace = Path.replace

    def fail_at_the_report(self, target):
        if self.name == "report.json" and self.parent.name == "new":
            raise OSError("disk full")
        return replace(self, target)

    def write_all():
        with staging(output) as folder:
            for name in old:
                (folder / name).write_text("new")

    monkeypatch.setattr(Path, "replace", fail_at_the_report)
    with pytest.raises(OSError, match="disk full"):
        write_all()
    assert sorted(path.name for path in output.iterdir()) == sorted(old)
    assert (output / "student-ce").read_text() == (output / "student-mlot").read_text() == "old"
    assert "format" in (output / "report.json").read_text()


def leave_a_stopped_run(folder, *, got_somewhere=True):
    """What a killed run leaves."""
    stage = folder / "unfinished" / "student-mlot"
    (stage / "checkpoint-3").mkdir(parents=True)
    (stage.parent / "run.json").write_text(json.dumps({"format": FORMAT, "settings": {}}))
    if got_somewhere:
        (stage / "latest.json").write_text(json.dumps({"checkpoint": "checkpoint-3"}))


def test_a_stopped_run_is_not_dropped_unasked(tmp_path):
    leave_a_stopped_run(tmp_path)
    (tmp_path / ".partial-of-a-killed-run").mkdir()
    assert is_stopped_run(tmp_path)
    with pytest.raises(
        DistillError, match="holds a stopped run; --resume continues it, --overwrite drops it"
    ):
        check_output(tmp_path, overwrite=False, sources=[])
    check_output(tmp_path, overwrite=False, sources=[], resume=True)
    check_output(tmp_path, overwrite=True, sources=[])
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(DistillError, match="holds thesis.txt; --overwrite leaves other files alone"):
        check_output(tmp_path, overwrite=False, sources=[], resume=True)


def test_a_run_stopped_before_it_got_anywhere_is_nothing(tmp_path):
    leave_a_stopped_run(tmp_path, got_somewhere=False)
    assert not is_stopped_run(tmp_path)
    check_output(tmp_path, overwrite=False, sources=[])


def test_a_complete_run_has_nothing_to_resume(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"format": FORMAT}))
    with pytest.raises(
        DistillError, match="--resume: expected a stopped run in .*, but the one there is complete"
    ):
        check_output(tmp_path, overwrite=False, sources=[], resume=True)
    leave_a_stopped_run(tmp_path)
    check_output(tmp_path, overwrite=False, sources=[], resume=True)


def test_a_folder_that_is_called_unfinished_and_is_not_ours_is_never_dropped(tmp_path):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "novel.txt").touch()
    for overwrite in (False, True):
        with pytest.raises(DistillError, match="--output: expected no foreign 'unfinished' in "):
            check_output(tmp_path, overwrite=overwrite, sources=[])


def test_what_the_run_reads_is_not_among_its_results(tmp_path):
    for name in (*ENTRIES, "unfinished"):
        with pytest.raises(DistillError, match="is read by this run and would be replaced by its results"):
            check_output(tmp_path, overwrite=True, sources=[tmp_path / name / "model"])


def test_folders_made_and_left_empty_go_again(tmp_path):
    with created(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()
    with created(tmp_path / "a" / "b"):
        (tmp_path / "a" / "kept").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]
