"""A run of ``python -m mlot.distill`` that is stopped and continued ends as one that was not."""

import json
import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from distill_cases import MADE, save_gpt2, save_llama, texts_of, write_text
from mlot._hf.made import train_bpe, train_unigram
from mlot.distill import run as running
from mlot.distill.cli import main
from mlot.distill.output import ENTRIES
from mlot.training._stage import Clock, Stage

pytestmark = pytest.mark.slow

# Checkpoints fall between logs and evaluations: what these sum up must survive.
RUN = "--steps 6 --batch-size 4 --length 32 --k 8 --evaluations 2 --threads 1 --checkpoint-every 2".split()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of seven documents."""
    return write_text(tmp_path_factory.mktemp("text"), documents=7)


@pytest.fixture(scope="module")
def folders(text, tmp_path_factory):
    """Options that name a GPT-2 that teaches and a Llama with dropout that learns."""
    folder, documents = tmp_path_factory.mktemp("models"), texts_of(text)
    teacher = save_gpt2(folder / "gpt2", train_bpe(documents, 300, 32))
    student = save_llama(folder / "llama", train_unigram(documents, 280, 32), attention_dropout=0.3)
    return ["--teacher", str(teacher), "--student", str(student), "--text", str(text)]


@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory):
    """Output of a run that nobody stopped, and that kept nothing."""
    output = tmp_path_factory.mktemp("whole")
    assert main([*RUN, *folders, "--output", str(output), "--checkpoint-every", "0"]) == 0
    return output


def results(output):
    """Everything that a run found but how long it took and where it went."""
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    del report["seconds"]
    for name in ("output", "resume", "checkpoint_every"):
        del report["settings"][name]
    for model in report["models"].values():
        del model["seconds"]
    weights = {
        name: load_file(output / name / "model.safetensors")
        for name in report["models"]
        if (output / name).exists()
    }
    return report, weights


def assert_equal_results(one, other):
    (first, weights), (second, others) = results(one), results(other)
    assert first == second
    assert weights.keys() == others.keys()
    for model, found in weights.items():
        for name, weight in found.items():
            assert torch.equal(weight, others[model][name]), (model, name)


def interrupt(monkeypatch, name, step):
    """Press Ctrl-C after a step of one of the models."""

    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if args.output_dir.endswith(name) and state.global_step == step:
                raise KeyboardInterrupt

    trainer = running.MultiLevelOTTrainer

    def interrupted(*args, callbacks, **kwargs):
        return trainer(*args, callbacks=[*callbacks, Interrupt()], **kwargs)

    monkeypatch.setattr(running, "MultiLevelOTTrainer", interrupted)


def test_ctrl_c_and_resume(text, tmp_path, capsys, monkeypatch):
    """Stopped twice: while the teacher is trained, and while the second student is."""
    command = [*MADE, *RUN, "--text", str(text)]
    assert main([*command, "--output", str(tmp_path / "whole")]) == 0
    output = tmp_path / "stopped"
    for arguments, name, step in (([], "teacher", 3), (["--resume"], "student-mlot", 5)):
        with monkeypatch.context() as patch:
            interrupt(patch, name, step)
            assert main([*command, *arguments, "--output", str(output)]) == 130
        assert (
            "mlot.distill: interrupted; the same command with --resume continues it"
            in capsys.readouterr().err
        )
        assert [path.name for path in output.iterdir()] == ["unfinished"]
    (checkpoint,) = (output / "unfinished" / "student-mlot").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-4"
    assert main([*command, "--output", str(output)]) == 2
    assert "holds a stopped run; --resume continues it, --overwrite drops it" in capsys.readouterr().err
    assert main([*command, "--output", str(output), "--resume"]) == 0
    err = capsys.readouterr().err
    assert "teacher: complete before" in err
    assert "student-mlot: continues from checkpoint-4" in err
    assert sorted(path.name for path in output.iterdir()) == sorted(ENTRIES)
    assert_equal_results(output, tmp_path / "whole")


KILLED = """
import os, signal, sys
from transformers import Trainer
from mlot.distill.cli import main

write = Trainer._save_optimizer_and_scheduler

def write_or_die(self, folder):
    if self.state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, folder)

Trainer._save_optimizer_and_scheduler = write_or_die
main(sys.argv[1:])
"""


def test_kill_while_a_checkpoint_is_written_and_resume(folders, whole, tmp_path):
    output = tmp_path / "killed"
    command = [*RUN, *folders, "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    stage = output / "unfinished" / "student-mlot"
    assert sorted(path.name for path in stage.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert json.loads((stage / "latest.json").read_text())["checkpoint"] == "checkpoint-2"
    assert main([*command, "--resume"]) == 0
    assert sorted(path.name for path in output.iterdir()) == ["report.html", "report.json", "student-mlot"]
    assert_equal_results(output, whole)


def test_another_run_is_not_continued(folders, text, tmp_path, capsys, monkeypatch):
    output, other = tmp_path / "out", tmp_path / "text.txt"
    command = [*RUN, *folders, "--output", str(output)]
    with monkeypatch.context() as patch:
        interrupt(patch, "student-mlot", 3)
        assert main(command) == 130
    kept = sorted(output.rglob("*"))
    for changed, message in (
        (["--steps", "8"], "--resume: expected --steps as of the stopped run, 6, got 8"),
        (["--matching", "rank"], "--resume: expected --matching as of the stopped run, optimal, got rank"),
    ):
        assert main([*command, "--resume", *changed]) == 2
        assert message in capsys.readouterr().err
    other.write_text(text.read_text(encoding="utf-8").replace("Größe", "size"), encoding="utf-8")
    saved = text.read_bytes()
    try:
        text.write_bytes(other.read_bytes())
        assert main([*command, "--resume"]) == 2
    finally:
        text.write_bytes(saved)
    assert "--resume: expected the text of the stopped run, got another" in capsys.readouterr().err
    assert sorted(output.rglob("*")) == kept
    # how often checkpoints are written may change
    assert main([*command, "--resume", "--checkpoint-every", "0"]) == 0
    assert not (output / "unfinished").exists()


def test_overwrite_drops_a_stopped_run_once_it_gets_somewhere(folders, whole, tmp_path, monkeypatch):
    output = tmp_path / "out"
    command = [*RUN, *folders, "--output", str(output)]
    with monkeypatch.context() as patch:
        interrupt(patch, "student-mlot", 3)
        assert main([*command, "--seed", "1"]) == 130
    kept = sorted(output.rglob("*"))
    assert main([*command, "--overwrite", "--text", str(tmp_path / "nowhere")]) == 2
    assert sorted(output.rglob("*")) == kept
    with monkeypatch.context() as patch:
        interrupt(patch, "student-mlot", 1)
        assert main([*command, "--overwrite"]) == 130
    assert sorted(output.rglob("*")) == kept
    assert main([*command, "--overwrite", "--checkpoint-every", "0"]) == 0
    assert not (output / "unfinished").exists()
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    expected = json.loads((whole / "report.json").read_text(encoding="utf-8"))
    assert report["models"]["student-mlot"]["curve"] == expected["models"]["student-mlot"]["curve"]


def test_resume_where_there_is_nothing_begins(folders, whole, tmp_path, capsys):
    command = [*RUN, *folders, "--output", str(tmp_path / "new"), "--resume"]
    assert main(command) == 0
    assert_equal_results(tmp_path / "new", whole)
    assert main(command) == 2
    assert "--resume: expected a stopped run in" in capsys.readouterr().err


def test_stopped_before_the_first_checkpoint_nothing_is_left(folders, tmp_path, capsys, monkeypatch):
    interrupt(monkeypatch, "student-mlot", 1)
    output = tmp_path / "deeper" / "out"
    assert main([*RUN, *folders, "--output", str(output)]) == 130
    assert "mlot.distill: interrupted; nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "deeper").exists()


def test_the_last_checkpoint_is_the_one_that_was_pointed_at(tmp_path):
    stage = Stage(tmp_path, Clock())
    assert stage.checkpoint() is None
    for step in (2, 4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step < 6:
            stage.point(step, float(step))
    assert stage.checkpoint() == tmp_path / "checkpoint-4"
    assert stage.seconds == 4.0
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
