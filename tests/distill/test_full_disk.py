"""``python -m mlot.distill`` where no more can be written: a named error, and nothing that is not whole."""

import json
from contextlib import ExitStack

import pytest

pytest.importorskip("transformers")

from distill_cases import MADE, write_text
from full_disk import files_at_most
from mlot.distill.cli import main
from mlot.distill.errors import is_write_failure
from mlot.training._stage import Stage

pytestmark = pytest.mark.slow

RUN = "--steps 6 --batch-size 4 --length 32 --k 8 --evaluations 2 --threads 1".split()


@pytest.fixture
def command(tmp_path):
    return [*MADE, *RUN, "--text", str(write_text(tmp_path, documents=7)), "--output", str(tmp_path / "out")]


@pytest.mark.parametrize("checkpoints", [0, 2])
def test_nothing_is_left_of_what_got_nowhere(checkpoints, command, tmp_path, capsys):
    """By safetensors, which has an error of its own, and by ourselves."""
    with files_at_most(2000):
        assert main([*command, "--checkpoint-every", str(checkpoints)]) == 2
    err = capsys.readouterr().err
    assert "mlot.distill: error: --output: a file could not be written (" in err
    assert "as on a full disk; nothing was written" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("written", ["model.safetensors", "optimizer.pt"])
def test_the_last_whole_checkpoint_stays_and_is_continued(written, command, tmp_path, capsys, monkeypatch):
    """The second checkpoint of the last student fails, in its model or in what torch writes beside it."""
    out, point, sizes = tmp_path / "out", Stage.point, {}
    command = [*command, "--checkpoint-every", "2"]
    with ExitStack() as stack:

        def fill_the_disk(self, step, *rest):
            point(self, step, *rest)
            if self.folder.name == "student-mlot" and not sizes:
                checkpoint = self.folder / f"checkpoint-{step}"
                sizes.update({path.name: path.stat().st_size for path in checkpoint.iterdir()})
                assert sizes["optimizer.pt"] > sizes["model.safetensors"]
                stack.enter_context(files_at_most(sizes[written] - 1))

        stack.enter_context(monkeypatch.context()).setattr(Stage, "point", fill_the_disk)
        assert main(command) == 2
    err = capsys.readouterr().err
    assert "a file could not be written (" in err
    assert "as on a full disk; the same command with --resume continues it" in err
    stage = out / "unfinished" / "student-mlot"
    assert [path.name for path in stage.glob("checkpoint-*")] == ["checkpoint-2"]
    assert {path.name: path.stat().st_size for path in (stage / "checkpoint-2").iterdir()} == sizes
    assert main([*command, "--resume"]) == 0
    assert "student-mlot: continues from checkpoint-2" in capsys.readouterr().err
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))["models"]


def test_other_errors_are_no_failures_to_write():
    assert not is_write_failure(RuntimeError("shape mismatch"))
    error = ValueError("no such option")
    error.__context__ = FileNotFoundError(2, "No such file or directory")
    assert not is_write_failure(error)
    error = RuntimeError("stopped")
    error.__cause__ = OSError(28, "No space left on device")
    assert is_write_failure(error)
