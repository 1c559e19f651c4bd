"""One pass over a student for a whole criterion: cross-entropy joins what the distillation term reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from mlot import _arguments
from mlot._arrays import ArrayOperations
from mlot._composite import Composite, arrays_of
from mlot.backends.base import Backend
from mlot.backends.torch import ops as torch_ops
from mlot.backends.torch.read import Overwrite, Reading, Request, listed_log_probs
from mlot.backends.torch.statistics import Settings


class StudentPass(Composite):
    """A student whose labels are read in the first pass over its vocabulary that anything else makes.

    Args:
        source: logits, a `LinearHead` or a `mlot.distributed.VocabShard`.
        labels: the token to score at each position, ``(B, T)``; anything where ``mask`` is false.
        mask: positions that count, ``(B, T)``.
        overwrite: write the gradient into the memory of the logits, if one pass serves everything.
    """

    _reads: ClassVar[bool] = True

    def __init__(self, source: Any, labels: Tensor, mask: Tensor, *, overwrite: bool = False) -> None:
        self.source, self.mask = source, mask
        self.labels = labels.masked_fill(~mask, -1)[..., None]
        self.overwrite = Overwrite() if overwrite else None
        self.log_probs: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(B, T, V)`` of the predictions."""
        batch, length, vocabulary = self.source.shape
        return int(batch), int(length), int(vocabulary)

    def negative_log_likelihood(self) -> Tensor:
        """That of the labels, ``(B, T)``; 0 where the mask is false."""
        if self.log_probs is None:
            self._read(self.mask, Settings(1.0, (), False), Request(None, None, None))
        assert self.log_probs is not None
        return -self.log_probs.squeeze(-1).masked_fill(~self.mask, 0)

    def map(self, function: Callable[[Any], Any]) -> StudentPass:
        raise NotImplementedError("a pass belongs to one criterion, which finds the backend by itself")

    def _arrays(self) -> list[Any]:
        return arrays_of(self.source)

    def _check(self, xp: ArrayOperations, name: str) -> None:
        assert isinstance(xp, Backend)
        _arguments.source_and_mask(xp, name, self.source, f"{name}_mask", None)

    def _read(self, mask: Tensor, settings: Settings, request: Request) -> Reading:
        request = request._replace(overwrite=self.overwrite)
        if self.log_probs is not None or settings.standardize:
            return torch_ops.read(self.source, mask, settings, request)
        extra = settings.extra
        if 1.0 not in settings.temperatures:
            extra = (*extra, 1.0)
        asked = 0 if request.ids is None else request.ids.shape[2]
        ids = self.labels if request.ids is None else torch.cat([request.ids.long(), self.labels], 2)
        joint = settings._replace(extra=extra)
        # Whatever counts for the request counts here: its mask is this one, or leaves more out.
        reading = torch_ops.read(self.source, self.mask, joint, request._replace(ids=ids))
        place = joint.temperatures.index(1.0)
        own = reading._replace(listed=reading.listed[..., asked:])
        self.log_probs = listed_log_probs(own, self.labels, self.mask, 1.0, place)
        log_totals = reading.log_totals[: len(settings.temperatures)]
        if request.without:
            log_totals = torch.cat([log_totals, reading.log_totals[-1:]])
        return reading._replace(listed=reading.listed[..., :asked], log_totals=log_totals)

    def _logits_at(self, b: Tensor, t: Tensor) -> Tensor:
        raise NotImplementedError("a student is not read position by position")
