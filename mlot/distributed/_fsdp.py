"""Parameters that FSDP2 has sharded, whole again for a linear head."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def unsharded(parameter: Tensor) -> Tensor:
    """Return a parameter whole, with a gradient that is averaged over processes and sharded again.

    ``torch.distributed.fsdp.fully_shard`` shows the parameters of a module whole only while the module runs
    (those of the root module until the backward pass). A `mlot.LinearHead` uses the head's weight outside of
    it, so for a head that was sharded as a module of its own: ``LinearHead(hidden, unsharded(head.weight))``.
    Every process has to call this, and the backward pass.

    Args:
        parameter: a parameter, sharded or replicated as a DTensor, or a plain tensor, which is returned.

    Returns:
        A plain tensor: the all-gathered parameter. The gradient that flows back is averaged over the
        processes that share the parameter, which is what FSDP2 does with the gradients of a batch.

    Raises:
        TypeError: ``parameter`` is no tensor.
    """
    if not isinstance(parameter, Tensor):
        raise TypeError(f"parameter: expected a torch tensor, got {type(parameter).__name__}")
    if not is_dtensor(parameter):
        return parameter
    from torch.distributed.tensor import Partial

    mean = [Partial("avg")] * parameter.device_mesh.ndim  # type: ignore[attr-defined]
    whole: Tensor = parameter.full_tensor(grad_placements=mean)  # type: ignore[attr-defined]
    return whole


def is_dtensor(value: object) -> bool:
    """Whether a value is a DTensor; False where torch comes without them."""
    if not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)
