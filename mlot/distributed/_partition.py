"""Where the columns of one process lie in the whole vocabulary, and the exchange with the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class VocabularyPartition(NamedTuple):
    """Columns ``start`` to ``start + sizes[rank]`` of a vocabulary that a group of processes shares."""

    group: Any
    rank: int
    sizes: tuple[int, ...]

    @property
    def start(self) -> int:
        return sum(self.sizes[: self.rank])

    @property
    def vocabulary(self) -> int:
        return sum(self.sizes)

    def locate(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Which of some columns of the vocabulary are here, and their places (0 for the others)."""
        here = (columns >= self.start) & (columns < self.start + self.sizes[self.rank])
        return here, torch.where(here, columns - self.start, 0)

    def maximum(self, values: Tensor) -> Tensor:
        """Largest value over the processes, in place."""
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values

    def total(self, values: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        dist.all_reduce(values, dist.ReduceOp.SUM, group=self.group)
        return values

    def gather(self, values: Tensor, widths: Sequence[int]) -> Tensor:
        """Concatenate ``(B, widths[rank])`` of every process along the second axis, in their order."""
        padded = values.new_zeros((values.shape[0], max(widths)))
        padded[:, : values.shape[1]] = values
        gathered = [torch.empty_like(padded) for _ in widths]
        dist.all_gather(gathered, padded, group=self.group)
        return torch.cat([each[:, :width] for each, width in zip(gathered, widths, strict=True)], dim=1)


def rank_in(group: Any) -> tuple[int, int]:
    """Rank in a group, and its size.

    Raises:
        ValueError: there is no process group, or this process is not in it.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            "group: expected an initialised process group (torch.distributed.init_process_group), found none"
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("group: expected one that this process belongs to, got another")
    return rank, dist.get_world_size(group)


def agree_on_sizes(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, group: Any
) -> VocabularyPartition:
    """Tell each other the shapes ``(B, T, V_rank)``; the same error on every process if they do not fit.

    Raises:
        ValueError: batch, length or type differ between processes.
    """
    rank, world = rank_in(group)
    mine = torch.tensor([*shape, _DTYPES.index(dtype)], device=device)
    gathered = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(gathered, mine, group=group)
    everyone = torch.stack(gathered).tolist()
    if any(other[:2] != everyone[0][:2] or other[3] != everyone[0][3] for other in everyone):
        listed = "; ".join(f"{tuple(each[:3])} {_DTYPES[each[3]]}" for each in everyone)
        raise ValueError(f"local: expected one batch, length and type on all processes, got {listed}")
    return VocabularyPartition(group, rank, tuple(each[2] for each in everyone))
