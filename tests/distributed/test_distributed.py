"""Data parallelism: two processes give the loss and the gradient of one."""

from pathlib import Path

import pytest
import torch
import torch.distributed

import mlot.distributed
from distributed_launch import launch, report

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "support" / "distributed_data.py"


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_two_processes_are_as_one(tmp_path: Path) -> None:
    """All cases in one test, since starting the processes costs more than any of them."""
    failures = launch(SCRIPT, 2, tmp_path)
    assert len(failures) > 7
    assert not any(failures.values()), report(failures)


def test_counts_of_one_process() -> None:
    mask = torch.tensor([[True, False, True]])
    assert int(mlot.distributed.global_count(mask)) == 2
    assert float(mlot.distributed.average_count(mask)) == 2
    assert int(mlot.distributed.global_count(mask & False)) == 1


def test_counts_refuse_what_is_no_mask() -> None:
    with pytest.raises(TypeError, match="mask: expected a torch tensor of booleans, got list"):
        mlot.distributed.global_count([True])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"mask: expected booleans, got torch\.int64"):
        mlot.distributed.average_count(torch.tensor([1]))
    with pytest.raises(TypeError, match="parameter: expected a torch tensor, got list"):
        mlot.distributed.unsharded([1.0])  # type: ignore[arg-type]
