"""Further cases of a sharded vocabulary, for four processes: modules, DTensors, communication, errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import distributed_launch
import mlot
import mlot.nn
from benchmarks.memory import peak_bytes
from mlot.backends.torch.ops import cross_entropy
from mlot.distributed import VocabShard, average_count, unsharded
from vocabulary_shards import (
    CONFIG,
    STUDENT,
    TEACHER,
    close,
    gradients,
    head,
    labels,
    leaves,
    mine,
    problem,
    shard,
)

# -- the module ------------------------------------------------------------------------------------------


def module_with_cross_entropy(rank: int, world: int) -> None:
    student_labels, teacher_labels = labels(sum(STUDENT), 6, 1), labels(sum(TEACHER), 8, 2)
    for student in (problem()["student"], head(sum(STUDENT), 6, 1)):
        for alpha, items in ((0.15, None), (0.0, None), (0.5, 17)):
            criterion = mlot.nn.MultiLevelOTLoss(CONFIG, alpha=alpha)
            source, part = leaves(student), shard(student, rank, STUDENT)
            teacher = problem()["teacher"]
            want = criterion.terms(source, teacher, student_labels, teacher_labels, items)
            got = criterion.terms(part, shard(teacher, rank, TEACHER), student_labels, teacher_labels, items)
            close([got.loss, got.cross_entropy], [want.loss, want.cross_entropy])
            want.loss.backward()
            got.loss.backward()
            close(gradients(part), mine(source, rank, STUDENT))


def vocabulary_by_two_and_data_by_two(rank: int, world: int) -> None:
    """Two pairs of processes have one and two of the sequences, those of a pair half of the vocabulary each."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "vocabulary"))
    row, column = mesh.get_local_rank("data"), mesh.get_local_rank("vocabulary")
    sequences, sizes = (slice(0, 1), slice(1, 3))[row], (12, 13)
    source, teacher = leaves(head(25, 6, 1)), problem()["teacher"]
    asked = labels(25, 6, 1), labels(sum(TEACHER), 8, 2)
    criterion = mlot.nn.MultiLevelOTLoss(CONFIG)
    want = criterion(source, teacher, *asked, mlot.mask_from_labels(asked[0]).sum())
    want.backward()

    part = replace(source, hidden=source.hidden[sequences])
    part = shard(part, column, sizes, mesh.get_group("vocabulary"))
    mine_of = [each[sequences] for each in asked]
    items = average_count(mlot.mask_from_labels(mine_of[0]), mesh.get_group("data"))
    loss = criterion(part, teacher[sequences], *mine_of, items)
    loss.backward()
    hidden, weight, bias = gradients(part)
    for value in (loss.detach(), weight, bias):
        dist.all_reduce(value, group=mesh.get_group("data"))
    expected = mine(source, column, sizes)
    close([loss / 2, hidden / 2, weight / 2, bias / 2], [want, expected[0][sequences], *expected[1:]])


def several_teachers_and_served_ones(rank: int, world: int) -> None:
    whole = problem()
    ids = torch.arange(5).expand(3, 8, 5).contiguous()
    served = mlot.TopKLogprobs(ids, torch.full(ids.shape, 0.19).log().double(), vocab_size=40)
    student, part = leaves(whole["student"]), shard(whole["student"], rank, STUDENT)
    for source, teacher in ((student, whole["teacher"]), (part, shard(whole["teacher"], rank, TEACHER))):
        teachers = [mlot.Teacher(teacher, weight=0.7), mlot.Teacher(served, weight=0.4)]
        loss = mlot.multi_teacher_ot(
            source, teachers, student_mask=whole["masks"]["student_mask"], config=CONFIG
        ).loss
        loss.backward()
    close(gradients(part), mine(student, rank, STUDENT))


# -- DTensors, communication, errors ---------------------------------------------------------------------


def a_head_parallelised_by_torch(rank: int, world: int) -> None:
    """The last layer of a model by columns: its logits as a DTensor, or its weight in a linear head."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    def model() -> torch.nn.Sequential:
        torch.manual_seed(2)
        return torch.nn.Sequential(
            torch.nn.Linear(3, 4, dtype=torch.float64),
            torch.nn.Tanh(),
            torch.nn.Linear(4, 25, bias=False, dtype=torch.float64),
        )

    mesh, inputs = init_device_mesh("cpu", (world,)), torch.linspace(-1, 1, 54).double().view(3, 6, 3)
    whole, teacher = model(), problem()["teacher"]
    asked = labels(25, 6, 1), labels(sum(TEACHER), 8, 2)
    criterion = mlot.nn.MultiLevelOTLoss(CONFIG)
    want = criterion(whole(inputs), teacher, *asked)
    want.backward()
    plan = {"2": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)}
    for headless in (False, True):
        split = parallelize_module(model(), mesh, plan)
        if headless:
            hidden = split[1](split[0](inputs))
            weight: Any = split[2].weight
            source = VocabShard(mlot.LinearHead(hidden, weight.to_local()), mesh.get_group())
        else:
            source = VocabShard.from_dtensor(split(inputs))
        loss = criterion(source, teacher, *asked)
        loss.backward()
        close(loss, want)
        for got, expected in zip(split.parameters(), whole.parameters(), strict=True):
            assert got.grad is not None
            close(unsharded(got.grad), expected.grad)


def logits_as_dtensors(rank: int, world: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))
    whole = problem()  # 25 columns: shards of 7, 7, 7 and 4
    student = distribute_tensor(whole["student"], mesh, [Shard(2)]).requires_grad_()
    source = VocabShard.from_dtensor(student)
    assert source.sizes == (7, 7, 7, 4)
    dense = leaves(whole["student"])
    for x in (source, dense):
        mlot.multi_level_ot(x, whole["teacher"], **whole["masks"], config=CONFIG).loss.backward()
    assert student.grad is not None
    close(student.grad.full_tensor(), dense.grad)  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=r"logits: expected a DTensor, got Tensor"):
        VocabShard.from_dtensor(whole["student"])
    with pytest.raises(ValueError, match=r"logits: expected Shard\(2\) once, .* got placements"):
        VocabShard.from_dtensor(distribute_tensor(whole["student"], mesh, [Replicate()]))
    with pytest.raises(TypeError, match=r"from_dtensor"):
        VocabShard(student)


@contextmanager
def counted() -> Iterator[list[int]]:
    """Numbers sent by each collective operation of this process."""
    sent: list[int] = []
    reduce, gather = dist.all_reduce, dist.all_gather

    def counting_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.numel())
        return reduce(tensor, *args, **kwargs)

    def counting_gather(tensors: list[Tensor], tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.numel())
        return gather(tensors, tensor, *args, **kwargs)

    dist.all_reduce, dist.all_gather = counting_reduce, counting_gather  # type: ignore[assignment]
    try:
        yield sent
    finally:
        dist.all_reduce, dist.all_gather = reduce, gather


def communication_does_not_grow_with_the_vocabulary(rank: int, world: int) -> None:
    batch, length, k, width = 2, 6, 7, 5
    for vocabulary in (60, 600):
        for standardize in (False, True):
            logits = torch.randn(batch, length, vocabulary, dtype=torch.float64, requires_grad=True)
            with counted() as sent:
                traces = mlot.select(
                    VocabShard(logits, sizes=(vocabulary,) * world), k=k, standardize=standardize
                )
            positions = batch * length
            assert sum(sent) == 3 * positions * standardize + 3 * positions + 2 * batch * k + positions * k
            with counted() as sent:
                traces.log_probs.sum().backward()
            assert sum(sent) == positions * standardize
        targets, mask = torch.zeros(batch, length, dtype=torch.long), torch.ones(batch, length).bool()
        with counted() as sent:
            losses = cross_entropy(VocabShard(logits, sizes=(vocabulary,) * world), targets, mask)
        assert sent == 3 * [positions]
        with counted() as sent:
            losses.sum().backward()
        assert sent == []
        hidden = torch.randn(batch, length, width, requires_grad=True)
        weight = torch.randn(vocabulary, width, requires_grad=True)
        traces = mlot.select(VocabShard(mlot.LinearHead(hidden, weight), sizes=(vocabulary,) * world), k=k)
        with counted() as sent:
            traces.log_probs.sum().backward()
        assert sent == [batch * length * width]


def a_shard_takes_a_quarter_of_its_logits_beside_their_gradient(rank: int, world: int) -> None:
    """No second copy of the logits, and none of the others' columns."""
    torch.manual_seed(0)
    logits = torch.randn(2, 96, 16000, requires_grad=True)
    hidden, weight = torch.randn(2, 96, 16, requires_grad=True), torch.randn(16000, 16, requires_grad=True)
    teacher = torch.randn(2, 8, 50)
    size = logits.numel() * logits.element_size()
    for source, tensors, own, share in (
        (VocabShard(logits), (logits,), size, 4),
        (VocabShard(mlot.LinearHead(hidden, weight, chunk_bytes=1 << 20)), (hidden, weight), 0, 2),
    ):

        def step(source: VocabShard = source, tensors: tuple[Tensor, ...] = tensors) -> object:
            loss = mlot.multi_level_ot(source, teacher).loss
            return torch.autograd.grad(loss, tensors)

        extra = peak_bytes(step, logits.device) - own
        assert 0 < extra <= size // share, (extra, size)


def shapes_that_do_not_fit_are_refused_everywhere(rank: int, world: int) -> None:
    with pytest.raises(
        ValueError, match=r"local: expected one batch, length and type on all processes, got \(1"
    ):
        VocabShard(torch.zeros(1, 2 + rank, 3))
    with pytest.raises(ValueError, match="local: expected one batch, length and type"):
        VocabShard(torch.zeros(1, 2, 3, dtype=torch.float64 if rank else torch.float32))
    for sizes, match in (
        ((3, 3), "expected 4 of them"),
        ((4, 4, 4, 4), r"sizes: expected 3, the width of local"),
    ):
        with pytest.raises(ValueError, match=match):
            VocabShard(torch.zeros(1, 2, 3), sizes=sizes)
    with pytest.raises(TypeError, match="sizes: expected integers, one for each rank, got int"):
        VocabShard(torch.zeros(1, 2, 3), sizes=3)  # type: ignore[arg-type]
    source = VocabShard(torch.zeros(1, 2, 3), sizes=(3, 3, 3, 3))
    with pytest.raises(
        TypeError, match="student: expected logits or a LinearHead, since ULD needs every column"
    ):
        mlot.uld(source, torch.zeros(1, 2, 12))
    with pytest.raises(TypeError, match="expected a torch tensor"):
        mlot.select(source, k=2, backend="numpy")
    assert source.shape == (1, 2, 12)
    assert all(a <= b for a, b in pairwise(source.sizes or ()))


if __name__ == "__main__":
    distributed_launch.main(__file__, globals())
