"""Cases of data parallelism, for two processes; `test_distributed` starts them.

Every process computes the loss and the gradients of all sequences by itself, then of its own share of them,
exchanged as DDP or FSDP2 do.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import distributed_launch
import mlot
import mlot.distributed
import mlot.nn

Batch = dict[str, Tensor]

#: Numbers of sequences of the two processes: uneven, and none at all.
SHARES = ((1, 3), (3, 1), (4, 0), (0, 4))
CRITERION = mlot.nn.MultiLevelOTLoss(mlot.MultiLevelOTConfig(k=6))


class Model(nn.Module):
    """A body and a head, which can be left out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Linear(8, 6, dtype=torch.float64), nn.Tanh())
        self.head = nn.Linear(6, 20, dtype=torch.float64)

    def forward(self, inputs: Tensor, *, headless: bool = False) -> Tensor:
        hidden: Tensor = self.body(inputs)
        return hidden if headless else self.head(hidden)


def batch() -> Batch:
    g = torch.Generator().manual_seed(0)
    student_labels = torch.randint(20, (4, 7), generator=g)
    teacher_labels = torch.randint(30, (4, 9), generator=g)
    student_labels[0, :3] = -100
    student_labels[1, 4:] = -100
    teacher_labels[0, :4] = -100
    return {
        "inputs": torch.randn(4, 7, 8, generator=g, dtype=torch.float64),
        "teacher_logits": torch.randn(4, 9, 30, generator=g, dtype=torch.float64),
        "student_labels": student_labels,
        "teacher_labels": teacher_labels,
    }


def share(whole: Batch, rank: int, shares: tuple[int, ...]) -> Batch:
    start = sum(shares[:rank])
    return {name: value[start : start + shares[rank]] for name, value in whole.items()}


def mask(part: Batch) -> Tensor:
    return mlot.mask_from_labels(part["student_labels"])


def loss_of(logits: Any, part: Batch, items: Any) -> Tensor:
    return CRITERION(
        logits,
        part["teacher_logits"],
        part["student_labels"],
        part["teacher_labels"],
        num_items_in_batch=items,
    )


def alone() -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of one process with all sequences."""
    model, whole = Model(), batch()
    loss = loss_of(model(whole["inputs"]), whole, mask(whole).sum())
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def same_as_alone(
    losses: list[Tensor], model: nn.Module, whole_gradient: Callable[[Tensor], Tensor] = lambda g: g
) -> None:
    want, gradients = alone()
    mean = torch.stack(losses).detach().sum()
    dist.all_reduce(mean)
    torch.testing.assert_close(mean / dist.get_world_size(), want, rtol=1e-12, atol=0)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(whole_gradient(parameter.grad), gradient, rtol=1e-10, atol=1e-14)


def from_dtensor(gradient: Tensor) -> Tensor:
    whole: Tensor = gradient.full_tensor()  # type: ignore[attr-defined]
    return whole


# -- counts ----------------------------------------------------------------------------------------------


def counts_are_those_of_all_processes(rank: int, world: int) -> None:
    masks = [torch.ones(2, 3, dtype=torch.bool), torch.zeros(0, 5, dtype=torch.bool)]
    count = mlot.distributed.global_count(masks[rank])
    assert count.dtype == torch.int64
    assert int(count) == 6
    assert float(mlot.distributed.average_count(masks[rank])) == 3
    assert int(mlot.distributed.global_count(masks[1])) == 1  # never a division by zero


def summed_gradients(rank: int, world: int) -> None:
    """A plain loop: losses over `global_count`, gradients added up by hand."""
    for shares in SHARES:
        model, part = Model(), share(batch(), rank, shares)
        loss = loss_of(model(part["inputs"]), part, mlot.distributed.global_count(mask(part)))
        loss.backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
        same_as_alone([loss * world], model)


# -- DDP -------------------------------------------------------------------------------------------------


def ddp_with_uneven_shares(rank: int, world: int) -> None:
    for shares in SHARES:
        model = DistributedDataParallel(Model())
        part = share(batch(), rank, shares)
        loss = loss_of(model(part["inputs"]), part, mlot.distributed.average_count(mask(part)))
        loss.backward()
        same_as_alone([loss], model)


def ddp_with_accumulated_gradients(rank: int, world: int) -> None:
    """Two rounds of backward for one step; one process has nothing in the second."""
    model, whole = DistributedDataParallel(Model()), batch()
    rounds = [share(whole, rank, (1, 2)), share({n: v[3:] for n, v in whole.items()}, rank, (1, 0))]
    items = mlot.distributed.average_count(torch.cat([mask(part) for part in rounds]))
    losses = []
    for number, part in enumerate(rounds):
        with model.no_sync() if number == 0 else nullcontext():
            losses.append(loss_of(model(part["inputs"]), part, items))
            losses[-1].backward()
    same_as_alone(losses, model)


def ddp_with_a_head_that_forms_no_logits(rank: int, world: int) -> None:
    """The head takes part in the model's forward only if the loss is computed in there."""

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Model()

        def forward(self, part: Batch, items: Tensor) -> Tensor:
            hidden = self.model(part["inputs"], headless=True)
            head = self.model.head
            return loss_of(mlot.LinearHead(hidden, head.weight, head.bias), part, items)

    for shares in SHARES:
        model, part = DistributedDataParallel(WithLoss()), share(batch(), rank, shares)
        loss = model(part, mlot.distributed.average_count(mask(part)))
        loss.backward()
        same_as_alone([loss], model)


# -- FSDP2 -----------------------------------------------------------------------------------------------


def sharded_model(world: int, *, head: bool) -> Any:
    mesh = init_device_mesh("cpu", (world,))
    model = Model()
    fully_shard(model.body, mesh=mesh)
    if head:
        fully_shard(model.head, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def steps(rank: int) -> Iterator[tuple[Batch, Tensor]]:
    for shares in SHARES:
        part = share(batch(), rank, shares)
        yield part, mlot.distributed.average_count(mask(part))


def fsdp_with_uneven_shares(rank: int, world: int) -> None:
    for part, items in steps(rank):
        model = sharded_model(world, head=True)
        loss = loss_of(model(part["inputs"]), part, items)
        loss.backward()
        same_as_alone([loss], model, from_dtensor)


def fsdp_with_a_head_of_the_root(rank: int, world: int) -> None:
    """The root's parameters stay whole until the backward pass, so its head is there to be used."""
    for part, items in steps(rank):
        model = sharded_model(world, head=False)
        hidden = model(part["inputs"], headless=True)
        loss = loss_of(mlot.LinearHead(hidden, model.head.weight, model.head.bias), part, items)
        loss.backward()
        same_as_alone([loss], model, from_dtensor)


def fsdp_with_a_head_sharded_by_itself(rank: int, world: int) -> None:
    for part, items in steps(rank):
        model = sharded_model(world, head=True)
        hidden = model(part["inputs"], headless=True)
        weight, bias = (mlot.distributed.unsharded(p) for p in (model.head.weight, model.head.bias))
        loss = loss_of(mlot.LinearHead(hidden, weight, bias), part, items)
        loss.backward()
        same_as_alone([loss], model, from_dtensor)


def sharded_tensors_are_refused_with_the_way_out(rank: int, world: int) -> None:
    model, part = sharded_model(world, head=True), batch()
    hidden = model(part["inputs"], headless=True)
    source = mlot.LinearHead(hidden, model.head.weight, model.head.bias)
    for call in (
        lambda: mlot.multi_level_ot(source, part["teacher_logits"]),
        lambda: mlot.select(source, k=3),
        lambda: loss_of(source, part, None),
        lambda: mlot.nn.MultiLevelOTLoss(alpha=0.0)(
            source, part["teacher_logits"], part["student_labels"], part["teacher_labels"]
        ),
    ):
        with pytest.raises(TypeError, match=r"mlot\.distributed\.unsharded"):
            call()
    plain = torch.zeros(3)
    assert mlot.distributed.unsharded(plain) is plain


if __name__ == "__main__":
    distributed_launch.main(__file__, globals())
