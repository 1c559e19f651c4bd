"""Numbers of positions over all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def global_count(mask: Tensor, group: Any = None) -> Tensor:
    """Number of true values of a mask over all processes of a group, at least 1.

    What to give as ``num_items`` where gradients of the processes are *summed*; the losses of the processes
    then sum to the loss of all sequences. Every process of the group has to call this.

    Args:
        mask: booleans of any shape, which may differ between processes.
        group: process group; ``None`` means all processes. Without `torch.distributed` initialised there is
            one process.

    Returns:
        An integer scalar on the mask's device.

    Raises:
        TypeError: ``mask`` holds no booleans.

    >>> import torch, mlot.distributed
    >>> mlot.distributed.global_count(torch.tensor([[True, False, True]]))
    tensor(2)
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask: expected a torch tensor of booleans, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected booleans, got {mask.dtype}")
    count = mask.sum()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count, group=group)
    return count.clamp(min=1)


def average_count(mask: Tensor, group: Any = None) -> Tensor:
    """`global_count` divided by the number of processes, in float32.

    What to give as ``num_items`` where gradients of the processes are *averaged*, as DDP and FSDP2 do; the
    mean of the processes' losses is then the loss of all sequences. Every process has to call this.

    Args:
        mask: booleans of any shape, which may differ between processes.
        group: process group; ``None`` means all processes.

    Raises:
        TypeError: ``mask`` holds no booleans.
    """
    count = global_count(mask, group).float()
    if dist.is_available() and dist.is_initialized():
        count = count / dist.get_world_size(group)
    return count
