"""Data parallelism: two processes give the loss and the gradient of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed

import distributed_case


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_two_processes_are_as_one(tmp_path: Path) -> None:
    script = Path(distributed_case.__file__)
    root = script.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), "2", str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in running:
        printed, _ = process.communicate(timeout=240)
        assert process.returncode == 0, printed
    loss, gradients = torch.load(tmp_path / "found.pt")
    student, whole = distributed_case.model(), distributed_case.batch()
    items = (whole["student_labels"][:, 1:] != -100).sum().double()
    want = distributed_case.step(student, whole, items, 1)
    torch.testing.assert_close(loss, want, rtol=1e-12, atol=0)
    for got, parameter in zip(gradients, student.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-10, atol=1e-14)
