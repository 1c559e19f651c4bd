"""A problem on every process, whole and as its own shard of the vocabulary; used by the cases for four processes."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mlot
import mlot.nn
from mlot.distributed import VocabShard

#: Widths of the shards of a student and a teacher; some narrower than k, one empty.
STUDENT, TEACHER = (9, 4, 7, 5), (17, 0, 6, 8)
CONFIG = mlot.MultiLevelOTConfig(k=7, pool=11)


def problem(
    seed: int = 0, dtype: torch.dtype = torch.float64, student: tuple[int, ...] = STUDENT
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    student_mask, teacher_mask = torch.rand(3, 6, generator=g) < 0.7, torch.rand(3, 8, generator=g) < 0.7
    student_mask[0] = True
    student_mask[2] = False  # no position at all
    return {
        "student": (2 * torch.randn(3, 6, sum(student), generator=g, dtype=torch.float64)).to(dtype),
        "teacher": (2 * torch.randn(3, 8, sum(TEACHER), generator=g, dtype=torch.float64)).to(dtype),
        "masks": {"student_mask": student_mask, "teacher_mask": teacher_mask},
    }


def head(vocabulary: int, length: int, seed: int, dtype: torch.dtype = torch.float64) -> mlot.LinearHead:
    g = torch.Generator().manual_seed(seed)
    return mlot.LinearHead(
        torch.randn(3, length, 5, generator=g, dtype=torch.float64).to(dtype),
        torch.randn(vocabulary, 5, generator=g, dtype=torch.float64).to(dtype),
        torch.randn(vocabulary, generator=g, dtype=torch.float64).to(dtype),
        softcap=6.0,
        scale=1.3,
    )


def columns_of(rank: int, sizes: tuple[int, ...]) -> slice:
    start = sum(sizes[:rank])
    return slice(start, start + sizes[rank])


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def leaves(source: Any) -> Any:
    return source.map(leaf) if isinstance(source, mlot.LinearHead) else leaf(source)


def shard(source: Any, rank: int, sizes: tuple[int, ...], group: Any = None) -> VocabShard:
    """This process's part of a whole source, of leaves of its own."""
    mine = columns_of(rank, sizes)
    if isinstance(source, mlot.LinearHead):
        assert source.bias is not None
        local: Any = replace(
            source, hidden=leaf(source.hidden), weight=leaf(source.weight[mine]), bias=leaf(source.bias[mine])
        )
    else:
        local = leaf(source[..., mine])
    return VocabShard(local, group)


def gradients(source: Any) -> list[Tensor]:
    if isinstance(source, VocabShard):
        return gradients(source.local)
    tensors = [source.hidden, source.weight, source.bias] if isinstance(source, mlot.LinearHead) else [source]
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in tensors]


def mine(source: Any, rank: int, sizes: tuple[int, ...]) -> list[Tensor]:
    """What the gradients of this process's shard should be, from those of the whole."""
    found, at = gradients(source), columns_of(rank, sizes)
    if isinstance(source, mlot.LinearHead):
        return [found[0], found[1][at], found[2][at]]
    return [found[0][..., at]]


def close(got: Any, want: Any, tol: float = 1e-10) -> None:
    torch.testing.assert_close(got, want, rtol=tol, atol=tol)


def same_loss_and_gradients(
    rank: int,
    student: Any,
    teacher: Any,
    config: mlot.MultiLevelOTConfig,
    masks: dict[str, Any],
    *,
    shards: str,
    sizes: tuple[tuple[int, ...], tuple[int, ...]] = (STUDENT, TEACHER),
    group: Any = None,
) -> None:
    whole = leaves(student), leaves(teacher)
    want = mlot.multi_level_ot(*whole, **masks, config=config, reduction="sum")
    want.loss.backward()
    parts = tuple(
        shard(source, rank, widths, group) if which in shards else leaves(source)
        for which, source, widths in zip("st", (student, teacher), sizes, strict=True)
    )
    got = mlot.multi_level_ot(*parts, **masks, config=config, reduction="sum")
    got.loss.backward()
    for name in ("loss", "had", "sl", "sd"):
        close(getattr(got, name), getattr(want, name))
    assert torch.equal(got.teacher_columns, want.teacher_columns)
    assert torch.equal(got.student_columns, want.student_columns)
    for ours, theirs in zip(vars(got.diagnostics()).values(), vars(want.diagnostics()).values(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)  # NaN where there is no bound
    for part, source, widths in zip(parts, whole, sizes, strict=True):
        expected = mine(source, rank, widths) if isinstance(part, VocabShard) else gradients(source)
        for ours, theirs in zip(gradients(part), expected, strict=True):
            close(ours, theirs)


def labels(vocabulary: int, length: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    made = torch.randint(vocabulary, (3, length), generator=g)
    return made.masked_fill(torch.rand(made.shape, generator=g) < 0.3, -100)
