"""Saving a teacher in several runs: killed, continued, and with something else."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch

import saved_models
from mlot._hf.made import train_bpe
from mlot.saved import SavedTeacher, save_teacher, verify_folder
from saved_cases import files_of
from saved_models import LONGEST, TEXTS, llama

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return saved_models.tokenizer()


def test_resuming_gives_the_same_files(tokenizer: object, tmp_path: Path) -> None:
    model = llama()
    settings = {"k": 20, "batch_size": 2, "examples_per_shard": 3}
    whole = save_teacher(model, tokenizer, TEXTS, tmp_path / "whole", **settings)
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done > 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_teacher(model, tokenizer, TEXTS, tmp_path / "cut", progress=stop, **settings)
    assert seen == [(0, 11), (2, 11), (3, 11), (5, 11), (6, 11), (8, 11)]
    assert len(SavedTeacher(tmp_path / "cut")) == 6
    seen.clear()
    resumed = save_teacher(
        model, tokenizer, TEXTS, tmp_path / "cut", progress=lambda *each: seen.append(each), **settings
    )
    assert seen[0] == (6, 11)
    assert seen[-1] == (11, 11)
    assert files_of(resumed.folder) == files_of(whole.folder)
    # Nothing is left to do, so the teacher does not run; a lost file is made up for.
    lost = resumed.folder / "00001.safetensors"
    lost.unlink()
    save_teacher(model, tokenizer, TEXTS, resumed.folder, **settings)
    assert files_of(resumed.folder) == files_of(whole.folder)


def test_killed_in_the_middle(tokenizer: object, tmp_path: Path) -> None:
    """A process that runs a model dies of SIGKILL; this one completes its folder, byte for byte."""
    code = (
        "import os, signal, sys\n"
        "import saved_models as here\n"
        "from mlot.saved import save_teacher\n"
        "die = lambda done, total: done > 7 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "save_teacher(here.llama(), here.tokenizer(), here.TEXTS, sys.argv[1], k=20, batch_size=2,\n"
        "             examples_per_shard=3, progress=die)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "t")], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(SavedTeacher(tmp_path / "t")) == 6
    settings = {"k": 20, "batch_size": 2, "examples_per_shard": 3}
    save_teacher(llama(), tokenizer, TEXTS, tmp_path / "t", **settings)
    save_teacher(llama(), tokenizer, TEXTS, tmp_path / "whole", **settings)
    assert files_of(tmp_path / "t") == files_of(tmp_path / "whole")
    assert set(verify_folder(tmp_path / "t").values()) == {None}


def test_a_larger_data_set_adds_to_a_folder(tokenizer: object, tmp_path: Path) -> None:
    model = llama()
    save_teacher(model, tokenizer, TEXTS[:5], tmp_path, k=20)
    before = files_of(tmp_path)
    saved = save_teacher(model, tokenizer, list(reversed(TEXTS)), tmp_path, k=20)
    assert len(saved) == len(TEXTS)
    assert before.items() <= files_of(tmp_path).items()


def test_another_model_or_tokenizer_is_refused(tokenizer: object, tmp_path: Path) -> None:
    model = llama()
    save_teacher(model, tokenizer, TEXTS[:2], tmp_path, k=20)
    before = files_of(tmp_path)
    other = llama()
    with torch.no_grad():
        other.model.norm.weight[3] += 1e-3
    with pytest.raises(
        ValueError, match="is another one: model_fingerprint: expected '[0-9a-f]{32}', it has"
    ):
        save_teacher(other, tokenizer, TEXTS, tmp_path, k=20)
    retrained = train_bpe(TEXTS, 268, LONGEST)
    with pytest.raises(ValueError, match="is another one: tokenizer_fingerprint: expected"):
        save_teacher(model, retrained, TEXTS, tmp_path, k=20)
    with pytest.raises(ValueError, match="k: expected 19, it has 20; dtype: expected 'float32', it has"):
        save_teacher(model, tokenizer, TEXTS, tmp_path, k=19, dtype="float32")
    assert files_of(tmp_path) == before
