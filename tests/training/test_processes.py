"""Two processes: evaluation counts every example once, logs are averaged, a resumed run is the run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
if not torch.distributed.is_available():
    pytest.skip("torch was built without distributed", allow_module_level=True)

from training_cases import FLOAT32
from training_processes import runs

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Logs of one process with batches of eight, and of two with batches of four."""
    folder = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(HERE / "training_processes.py"), str(folder)],
        env=os.environ | {"PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return runs(tmp_path_factory.mktemp("one"), 8), json.loads((folder / "found.json").read_text())


def compare(one, other, tolerance=1e-7):
    logs = [[entry for entry in each if "ce" in entry] for each in (one, other)]
    assert [entry["step"] for entry in logs[0]] == [entry["step"] for entry in logs[1]] == [2, 4]
    for a, b in zip(*logs, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=max(4 * FLOAT32, tolerance))
        for name in (
            "ce",
            "had",
            "sl",
            "sd",
            "grad_norm",
            "teacher_kept_mass",
            "student_kept_mass",
            "paired_share",
        ):
            assert b[name] == pytest.approx(a[name], rel=tolerance), name
        assert b["matching_gap"] == pytest.approx(a["matching_gap"], rel=tolerance, abs=1e-9)


def test_an_untied_head_without_logits_trains_alike(both):
    compare(both[0]["whole"], both[1]["whole"])


def test_evaluation_counts_every_example_once(both):
    one, other = ([entry for entry in each["whole"] if "eval_loss" in entry] for each in both)
    for name in ("eval_loss", "eval_bits_per_byte"):
        assert other[0][name] == pytest.approx(one[0][name], rel=1e-6)


def test_resumed_run_is_the_run(both):
    for each in both:
        compare(each["whole"], each["resumed"], tolerance=1e-12)


def test_means_of_each_process_differ_from_those_of_all(both):
    """Without counts over all processes, gradients are means of means, and so are the logs."""
    one, other = ([entry for entry in each["local"] if "ce" in entry] for each in both)
    assert one[0]["ce"] == pytest.approx(both[0]["whole"][0]["ce"], rel=1e-12)
    assert other[0]["ce"] != pytest.approx(one[0]["ce"], rel=1e-4)
    assert other[0]["ce"] == pytest.approx(one[0]["ce"], rel=0.2)
    assert other[0]["loss"] == pytest.approx(
        other[0]["ce"] + 0.7 * (other[0]["had"] + 0.1 * other[0]["sl"] + 0.1 * other[0]["sd"]),
        rel=4 * FLOAT32,
    )
