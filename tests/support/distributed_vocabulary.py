"""Cases of a sharded vocabulary, for four processes; `test_vocabulary` starts them.

Every process makes the same whole problem, computes its answer without shards, and then from its own columns.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import distributed_launch
import mlot
import mlot.nn
from mlot.backends.torch import rows as torch_rows
from mlot.backends.torch.ops import cross_entropy
from mlot.distributed import VocabShard
from vocabulary_shards import (
    CONFIG,
    STUDENT,
    TEACHER,
    close,
    columns_of,
    gradients,
    head,
    labels,
    leaves,
    mine,
    problem,
    same_loss_and_gradients,
    shard,
)

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
    student[..., ::4] = -torch.inf  # and some of every shard
    mask = whole["masks"]["student_mask"]
    polluted = student.clone()
    polluted[~mask] = torch.nan
    for standardize in (False, True):
        source, part = leaves(student), shard(polluted, rank, STUDENT)
        want = mlot.select(source, mask, k=20, standardize=standardize)
        got = mlot.select(part, mask, k=20, standardize=standardize)
        assert torch.equal(got.columns, want.columns)
        close(got.log_probs, want.log_probs)
        for traces in (got, want):
            (traces.at(2.0)[mask].exp().square().sum() + traces.log_normalizers[mask].sum()).backward()
        close(gradients(part), mine(source, rank, STUDENT))
        excluded = ~mask[..., None] | student[..., columns_of(rank, STUDENT)].isneginf()
        assert not gradients(part)[0][excluded].any()


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


if __name__ == "__main__":
    distributed_launch.main(__file__, globals())
