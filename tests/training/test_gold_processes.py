"""GOLD in two processes, accumulated or not: the gradient and the logs of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
pytest.importorskip("trl.experimental.gold", exc_type=ImportError)
if not torch.distributed.is_available():
    pytest.skip("torch was built without distributed", allow_module_level=True)

from distributed_launch import environment
from gold_processes import CUTS, step

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "support" / "gold_processes.py"


def test_two_processes_step_as_one_does(tmp_path: Path) -> None:
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(SCRIPT), str(tmp_path)],
        env=environment(SCRIPT),
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = torch.load(tmp_path / "results.pt")
    alone = step(tmp_path / "alone", 4, 1)
    assert max(float(change.abs().max()) for change in alone["changes"].values()) > 1e-4
    for name in CUTS:
        assert results[name]["processes"] == 2
        for key, change in alone["changes"].items():
            torch.testing.assert_close(results[name]["changes"][key], change, rtol=1e-7, atol=1e-10, msg=key)
        for term in ("had", "sl", "sd", "cross_entropy", "pairs"):
            assert results[name]["log"][term] == pytest.approx(alone["log"][term], rel=1e-7), (name, term)
        assert results[name]["log"]["loss"] == pytest.approx(alone["log"]["loss"], rel=1e-4)
