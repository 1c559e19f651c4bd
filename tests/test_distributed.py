"""Data parallelism: two processes give the loss and the gradient of one."""

from pathlib import Path

import pytest
import torch
import torch.distributed

import mlot.distributed
from distributed_launch import case_names, launch

SCRIPT = Path(__file__).with_name("distributed_data.py")


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return launch(SCRIPT, 2, tmp_path_factory.mktemp("data"))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
@pytest.mark.parametrize("case", case_names(SCRIPT))
def test_two_processes_are_as_one(failures: dict[str, str], case: str) -> None:
    assert not failures[case], failures[case]


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
