"""A vocabulary sharded over four processes gives what the whole one gives."""

from pathlib import Path

import pytest
import torch
import torch.distributed

import mlot
from distributed_launch import launch, report
from mlot.distributed import VocabShard

SUPPORT = Path(__file__).parents[1] / "support"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed"),
]


@pytest.mark.parametrize(
    ("script", "cases"),
    [
        ("distributed_vocabulary.py", 14),
        ("distributed_vocabulary_modules.py", 8),
        ("distributed_vocabulary_text.py", 1),
    ],
)
def test_four_processes(tmp_path: Path, script: str, cases: int) -> None:
    """All cases of a script in one test, since starting the processes costs more than any of them."""
    failures = launch(SUPPORT / script, 4, tmp_path)
    assert len(failures) >= cases
    assert not any(failures.values()), report(failures)


def test_without_processes_it_says_so() -> None:
    with pytest.raises(ValueError, match="group: expected an initialised process group .* found none"):
        VocabShard(torch.zeros(1, 2, 3))


def test_what_is_no_logits_is_refused() -> None:
    for value, error, match in (
        ([1.0], TypeError, "local: expected a torch tensor"),
        (torch.zeros(2, 3), ValueError, r"local: expected logits \(B, T, V\), got shape"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), TypeError, "local: expected floating-point numbers"),
        (mlot.select(torch.zeros(1, 2, 3), k=2), TypeError, "local: expected"),
    ):
        with pytest.raises(error, match=match):
            VocabShard(value)  # type: ignore[arg-type]
