"""Cases of a sharded vocabulary, for four processes; `test_distributed_vocabulary` starts them.

Every process makes the same whole problem, computes its answer without shards, and then from its own columns.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import distributed_launch
import mlot
import mlot.nn
from benchmarks.memory import peak_bytes
from mlot.backends.torch import rows as torch_rows
from mlot.backends.torch.ops import cross_entropy
from mlot.distributed import VocabShard, average_count, unsharded

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


# -- selection -------------------------------------------------------------------------------------------


def selection_is_that_of_the_whole(rank: int, world: int) -> None:
    whole = problem()
    mask = whole["masks"]["student_mask"]
    for k in (1, 7, 25, None):  # up to more than every shard has, and all
        for standardize in (False, True):
            for temperature, extra in ((1.0, (2.0,)), (0.7, (2.0, 1.4, 3.0)), (2.0, ())):
                settings = {"k": k, "temperature": temperature, "extra_temperatures": extra}
                want = mlot.select(whole["student"], mask, standardize=standardize, **settings)
                got = mlot.select(
                    shard(whole["student"], rank, STUDENT), mask, standardize=standardize, **settings
                )
                assert torch.equal(got.columns, want.columns)
                for name in ("log_probs", "log_normalizers", "column_mass"):
                    close(getattr(got, name), getattr(want, name), 1e-12)
                for name in ("vocab_size", "temperature", "extra_temperatures", "standardize"):
                    assert getattr(got, name) == getattr(want, name)


def selection_is_the_same_on_every_process_to_the_last_bit(rank: int, world: int) -> None:
    for seed, dtype in enumerate((torch.float64, torch.float32, torch.bfloat16)):
        whole = problem(seed, dtype)
        traces = mlot.select(shard(whole["student"], rank, STUDENT), k=11)
        for name in ("columns", "log_probs", "log_normalizers", "column_mass"):
            value = getattr(traces, name).detach().contiguous()
            everyone = [torch.empty_like(value) for _ in range(world)]
            dist.all_gather(everyone, value)
            assert all(torch.equal(value, other) for other in everyone), (name, dtype)


def ties_go_to_the_lower_index_of_the_whole(rank: int, world: int) -> None:
    g = torch.Generator().manual_seed(1)
    for _ in range(5):
        logits = torch.randint(3, (2, 1, 25), generator=g).expand(2, 4, 25).float()
        want = mlot.select(logits.contiguous(), k=12)
        got = mlot.select(shard(logits, rank, STUDENT), k=12)
        assert torch.equal(got.columns, want.columns)


def excluded_columns_and_positions_count_for_nothing(rank: int, world: int) -> None:
    """A shard whose columns are all impossible, and positions that hold no numbers."""
    whole = problem()
    student = whole["student"].clone()
    student[..., columns_of(1, STUDENT)] = -torch.inf
    mask = whole["masks"]["student_mask"]
    want = mlot.select(student, mask, k=20)
    polluted = student.clone()
    polluted[~mask] = torch.nan
    part = shard(polluted, rank, STUDENT)
    got = mlot.select(part, mask, k=20)
    assert torch.equal(got.columns, want.columns)
    close(got.log_probs, want.log_probs)
    got.log_probs[mask].exp().sum().backward()
    assert torch.isfinite(gradients(part)[0]).all()
    assert not gradients(part)[0][~mask].any()


def given_columns_are_taken(rank: int, world: int) -> None:
    whole = problem()
    mask = whole["masks"]["student_mask"]
    columns = torch.tensor([[24, 0, 9], [8, 12, 13], [1, 2, 3]])
    source = leaves(whole["student"])
    want = mlot.get_backend("torch").take(
        source, columns, mask, temperature=1.0, extra_temperatures=(2.0,), standardize=True
    )
    part = shard(whole["student"], rank, STUDENT)
    got = part.take(columns, mask, standardize=True)
    close(got.log_probs, want.log_probs)
    close(got.column_mass, want.column_mass)
    for traces in (want, got):
        (traces.at(2.0)[mask].square().sum() + traces.log_probs[mask].sum()).backward()
    close(gradients(part), mine(source, rank, STUDENT))
    with pytest.raises(ValueError, match="columns: expected 0 to 24, got 25"):
        part.take(columns + 1, mask)


# -- the loss and its gradients --------------------------------------------------------------------------


def loss_with_either_side_sharded(rank: int, world: int) -> None:
    for seed, shards in enumerate(("s", "t", "st")):
        for matching in ("optimal", "rank", "greedy", "sinkhorn"):
            whole = problem(seed)
            same_loss_and_gradients(
                rank,
                whole["student"],
                whole["teacher"],
                replace(CONFIG, matching=matching),
                whole["masks"],
                shards=shards,
            )


def loss_of_standardised_logits(rank: int, world: int) -> None:
    for seed, shards in enumerate(("s", "st")):
        whole = problem(seed)
        config = replace(CONFIG, standardize=True, temperature=0.8)
        same_loss_and_gradients(
            rank, whole["student"], whole["teacher"], config, whole["masks"], shards=shards
        )


def loss_of_heads(rank: int, world: int) -> None:
    masks = problem()["masks"]
    student, teacher = head(sum(STUDENT), 6, 1), head(sum(TEACHER), 8, 2)
    for standardize in (False, True):
        config = replace(CONFIG, standardize=standardize)
        same_loss_and_gradients(rank, student, teacher, config, masks, shards="st")
    same_loss_and_gradients(rank, student, problem()["teacher"], CONFIG, masks, shards="s")


def loss_without_truncation(rank: int, world: int) -> None:
    whole = problem()
    config = mlot.MultiLevelOTConfig(k=None, matching="rank")
    same_loss_and_gradients(rank, whole["student"], whole["teacher"], config, whole["masks"], shards="st")


def loss_over_a_group_of_two(rank: int, world: int) -> None:
    group = dist.new_group([2, 0])
    if rank in (1, 3):
        with pytest.raises(ValueError, match="group: expected one that this process belongs to"):
            VocabShard(torch.zeros(1, 2, 3), group)
        return
    inside = dist.get_rank(group)
    whole = problem(student=(3, 15))
    same_loss_and_gradients(
        inside,
        whole["student"],
        whole["teacher"],
        CONFIG,
        whole["masks"],
        shards="st",
        sizes=((3, 15), (30, 1)),
        group=group,
    )


def random_problems(rank: int, world: int) -> None:
    """Batches, lengths, splits and settings of all sorts; some shards are empty."""
    g = torch.Generator().manual_seed(11)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    for _ in range(25):
        batch, lengths = draw(0, 3), (draw(1, 5), draw(1, 5))
        sizes = [tuple(draw(0, 6) for _ in range(world)) for _ in range(2)]
        student_sizes, teacher_sizes = ((3, *each[1:]) if sum(each) < 2 else each for each in sizes)
        logits = [
            (10 ** draw(-1, 1)) * torch.randn(batch, length, sum(each), generator=g, dtype=torch.float64)
            for length, each in zip(lengths, (student_sizes, teacher_sizes), strict=True)
        ]
        masks = {
            f"{name}_mask": torch.rand(batch, length, generator=g) < 0.6
            for name, length in zip(("student", "teacher"), lengths, strict=True)
        }
        config = mlot.MultiLevelOTConfig(
            k=draw(1, 8),
            pool=(None, 8, 11)[draw(0, 2)],
            matching=("optimal", "rank", "greedy", "sinkhorn")[draw(0, 3)],  # type: ignore[arg-type]
            temperature=(1.0, 2.0, 0.6)[draw(0, 2)],
            sequence_temperature=(2.0, 1.0)[draw(0, 1)],
            standardize=bool(draw(0, 1)),
        )
        same_loss_and_gradients(
            rank,
            *logits,
            config,
            masks,
            shards=("s", "t", "st")[draw(0, 2)],
            sizes=(student_sizes, teacher_sizes),
        )


def large_logits(rank: int, world: int) -> None:
    """Thousands apart in float32, and a largest one in another shard than the rest."""
    logits = 1000 * problem()["student"].float()
    logits[:, :, 10] += 1e4
    want, part = leaves(logits), shard(logits, rank, STUDENT)
    for source in (want, part):
        traces = mlot.select(source, k=25, temperature=3.0)
        (traces.log_probs.exp().square().sum() + traces.at(2.0).exp().square().sum()).backward()
    assert torch.isfinite(gradients(part)[0]).all()
    close(gradients(part), mine(want, rank, STUDENT), 1e-5)


def positions_are_blanked_where_nobody_looks(rank: int, world: int) -> None:
    """As on an accelerator: positions that are masked out are computed with the others, whatever they hold."""
    patch = pytest.MonkeyPatch()
    whole = problem()
    student = head(sum(STUDENT), 6, 1)
    assert student.bias is not None
    mask = whole["masks"]["student_mask"]
    targets = labels(sum(STUDENT), 6, 1).clamp(min=0)
    for standardize in (False, True):
        found = []
        for polluted in (False, True):
            hidden = student.hidden.masked_fill(~mask[..., None], torch.nan) if polluted else student.hidden
            patch.setattr(torch_rows, "can_look", lambda device, polluted=polluted: not polluted)
            part = shard(replace(student, hidden=hidden), rank, STUDENT)
            loss = mlot.multi_level_ot(
                part, whole["teacher"], **whole["masks"], config=replace(CONFIG, standardize=standardize)
            ).loss
            loss = loss + cross_entropy(part, targets, mask).sum()  # type: ignore[arg-type]
            loss.backward()
            found.append((loss.detach(), gradients(part)))
        patch.undo()
        close(found[1], found[0])


def gradient_by_finite_differences(rank: int, world: int) -> None:
    """Of one number of one shard at a time, while the other processes keep theirs."""
    masks = problem()["masks"]
    whole = head(sum(STUDENT), 6, 3)
    part = shard(whole, rank, STUDENT)
    teacher = problem()["teacher"]

    def loss() -> Tensor:
        return mlot.multi_level_ot(part, teacher, **masks, config=CONFIG).loss

    loss().backward()
    step = 1e-6
    assert isinstance(part.local, mlot.LinearHead)
    tensors = (part.local.hidden, part.local.weight, part.local.bias)
    for turn in range(world):
        for which, index in ((1, (2, 3)), (2, (1,)), (1, (0, 0))):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    tensor = tensors[which]
                    assert tensor is not None
                    if rank == turn:
                        tensor[index] += sign * step
                    values.append(loss())
                    if rank == turn:
                        tensor[index] -= sign * step
            if rank == turn:
                slope = (values[0] - values[1]) / (2 * step)
                close(gradients(part)[which][index], slope, 1e-7)
    for index in ((0, 1, 2), (1, 0, 4)):  # hidden states are the same everywhere, so they change everywhere
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                tensors[0][index] += sign * step  # type: ignore[index]
                values.append(loss())
                tensors[0][index] -= sign * step  # type: ignore[index]
        close(gradients(part)[0][index], (values[0] - values[1]) / (2 * step), 1e-7)


def low_precision_stays_within_the_error_of_the_whole(rank: int, world: int) -> None:
    """|ours - truth| <= |whole in bfloat16 - truth| + a little, for loss and gradients."""
    for make in ("logits", "head"):
        whole = problem(5, torch.bfloat16)
        student: Any = whole["student"] if make == "logits" else head(sum(STUDENT), 6, 1, torch.bfloat16)
        exact = student.map(Tensor.double) if make == "head" else student.double()
        results = []
        for source, teacher in ((exact, whole["teacher"].double()), (student, whole["teacher"])):
            source = leaves(source)
            loss = mlot.multi_level_ot(source, teacher, **whole["masks"], config=CONFIG).loss
            loss.backward()
            results.append((loss, mine(source, rank, STUDENT)))
        part = shard(student, rank, STUDENT)
        teacher_part = shard(whole["teacher"], rank, TEACHER)
        loss = mlot.multi_level_ot(part, teacher_part, **whole["masks"], config=CONFIG).loss
        loss.backward()
        (truth, true_pulls), (naive, naive_pulls) = results
        assert (loss - truth).abs() <= (naive - truth).abs() + 1e-5
        for ours, theirs, true in zip(gradients(part), naive_pulls, true_pulls, strict=True):
            assert ours.dtype == torch.bfloat16
            budget = (theirs - true).abs().amax() if true.numel() else torch.tensor(0.0)
            worst = (ours - true).abs().amax() if true.numel() else torch.tensor(0.0)
            assert worst <= budget + 1e-5, (make, worst, budget)


# -- the module ------------------------------------------------------------------------------------------


def labels(vocabulary: int, length: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    made = torch.randint(vocabulary, (3, length), generator=g)
    return made.masked_fill(torch.rand(made.shape, generator=g) < 0.3, -100)


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
            assert sum(sent) == 2 * positions * standardize + 3 * positions + 2 * batch * k + positions * k
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
    for source, leaves, own, share in (
        (VocabShard(logits), (logits,), size, 4),
        (VocabShard(mlot.LinearHead(hidden, weight)), (hidden, weight), 0, 2),
    ):

        def step(source: VocabShard = source, leaves: tuple[Tensor, ...] = leaves) -> object:
            loss = mlot.multi_level_ot(source, teacher).loss
            return torch.autograd.grad(loss, leaves)

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
