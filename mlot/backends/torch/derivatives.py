"""First derivatives only: a second one is refused, whatever the incoming gradient is."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def once_differentiable(backward: F) -> F:
    """Compute a backward pass without a graph, and let differentiating what it returns be an error.

    torch's own decorator of that name refuses this only where the incoming gradient needs one itself; else
    it returns constants, and the second derivative is dropped without a word.
    """

    @wraps(backward)
    def wrapper(ctx: Any, *gradients: Any) -> Any:
        with torch.no_grad():
            outputs = backward(ctx, *gradients)
        if not torch.is_grad_enabled():  # which it is where a graph of the gradient is asked for
            return outputs
        listed = outputs if isinstance(outputs, tuple) else (outputs,)
        refuse = torch._C._functions.DelayedError(
            b"second derivatives are not computed: this gradient is once_differentiable", len(listed)
        )
        return refuse(*[x.detach().requires_grad_() if isinstance(x, Tensor) else x for x in listed])

    return wrapper  # type: ignore[return-value]
