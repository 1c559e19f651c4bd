"""What surrounds the kernels of a vocabulary, with stand-ins of plain torch in their place."""

import numpy as np
import pytest
import torch
from torch import Tensor

import mlot
from mlot.backends.torch import kernels as torch_kernels
from mlot.backends.torch import ops as torch_ops
from mlot.backends.torch import read as torch_read
from mlot.backends.torch import statistics
from mlot.backends.torch.read import Request
from mlot.backends.torch.rows import DenseRows
from mlot.backends.torch.statistics import Settings


def row_totals(
    logits: Tensor, mask: Tensor, temperatures: tuple[float, ...], dtype: torch.dtype, left_out=None
) -> tuple[Tensor, Tensor]:
    z = logits.to(dtype)
    top = z.amax(2)
    totals = [((z - top[..., None]) / t).logsumexp(2) for t in temperatures]
    if left_out is not None:
        below = z - top[..., None]
        for n in range(left_out.shape[2]):
            token = left_out[..., n : n + 1]
            index = torch.arange(z.shape[2])
            below = below.masked_fill(index == token, -torch.inf)
        totals.append((below / temperatures[0]).logsumexp(2))
    return top.masked_fill(~mask, 0), torch.stack(totals).masked_fill(~mask, 0)


def column_sums(logits: Tensor, mask: Tensor, top: Tensor, totals: Tensor, temperature: float) -> Tensor:
    probs = ((logits.to(top.dtype) - top[..., None]) / temperature - totals[..., None]).exp()
    return probs.masked_fill(~mask[..., None], 0).sum(1)


def row_gradient(
    logits: Tensor,
    mask: Tensor,
    top: Tensor,
    totals: Tensor,
    weights: Tensor,
    temperatures: tuple[float, ...],
    *,
    overwrite: bool,
) -> Tensor:
    below = logits.to(top.dtype) - top[..., None]
    value = torch.zeros_like(below)
    for n, (total, weight) in enumerate(zip(totals, weights, strict=True)):
        temperature = temperatures[n] if n < len(temperatures) else temperatures[0]
        value += (below / temperature - total[..., None]).clamp(max=0).exp() * weight[..., None]
    return value.masked_fill(~mask[..., None], 0).to(logits.dtype)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    for function in (row_totals, column_sums, row_gradient):
        monkeypatch.setattr(torch_kernels, function.__name__, function)
    for module in (statistics, torch_read):
        monkeypatch.setattr(
            module,
            "kernels_serve",
            lambda rows, settings: isinstance(rows, DenseRows) and len(settings.extra) <= 1,
        )


def test_sums_of_entries_with_the_same_index() -> None:
    rng = np.random.default_rng(0)
    index = torch.from_numpy(rng.integers(4, size=(2, 3, 7)))
    values = torch.from_numpy(rng.normal(size=(2, 2, 3, 7)))
    got = torch_read._sums_by_index(index, values)
    for place in np.ndindex(2, 2, 3, 7):
        row = place[1:3]
        same = index[row] == index[(*row, place[3])]
        assert float(got[place]) == pytest.approx(float(values[(place[0], *row)][same].sum()))
    nothing = torch.empty((2, 1, 3, 0))
    assert torch_read._sums_by_index(torch.empty((1, 3, 0), dtype=torch.long), nothing).shape == nothing.shape


def problem(seed: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(scale=3, size=(2, 5, 12))), torch.from_numpy(rng.random((2, 5)) < 0.7)


@pytest.mark.parametrize("extra", [(), (3.0,)])
@pytest.mark.parametrize("without", [0, 3])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_reading(extra, without, temperature, stand_ins, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns and tokens that are read, some the same, and a sum without some of them: as without kernels."""
    logits, mask = problem(0)
    rng = np.random.default_rng(1)
    ids = np.stack([rng.permutation(12)[:3] for _ in range(10)]).reshape(2, 5, 3)
    ids[0, 0, 1:] = -1
    ids[1, 2] = -1
    ids = torch.from_numpy(np.concatenate([ids, rng.integers(12, size=(2, 5, 2))], 2))
    mask[0, 0] = mask[1, 2] = True
    columns = torch.tensor([[0, 2], [7, 1]])
    request, settings = Request(None, columns, ids, without=without), Settings(temperature, extra, False)

    def compute() -> list[Tensor]:
        leaf = logits.clone().requires_grad_()
        reading = torch_ops.read(leaf, mask, settings, request)
        parts = [
            reading.kept.masked_fill(~mask[..., None], 0),
            reading.listed.masked_fill(~mask[..., None] | (ids < 0), 0),
            reading.log_totals.masked_fill(~mask, 0),
        ]
        generator = torch.Generator().manual_seed(0)
        total = sum((p * torch.randn(p.shape, generator=generator, dtype=p.dtype)).sum() for p in parts)
        return [*parts, *torch.autograd.grad(total, leaf)]

    got = compute()
    monkeypatch.undo()
    for one, other in zip(got, compute(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (1.0, 2.0), (0.7, 1.5)])
def test_loss(temperatures: tuple[float, float], stand_ins, monkeypatch: pytest.MonkeyPatch) -> None:
    student, mask = problem(2)
    teacher, _ = problem(3)
    config = mlot.MultiLevelOTConfig(
        k=4, matching="rank", temperature=temperatures[0], sequence_temperature=temperatures[1]
    )

    def compute() -> list[Tensor]:
        leaf = student.clone().requires_grad_()
        result = mlot.multi_level_ot(leaf, teacher, student_mask=mask, config=config)
        return [result.loss.detach(), result.student_columns, *torch.autograd.grad(result.loss, leaf)]

    got = compute()
    monkeypatch.undo()
    for one, other in zip(got, compute(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)
