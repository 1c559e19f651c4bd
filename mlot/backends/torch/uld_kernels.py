"""Universal logit distillation by Triton kernels: counts in place of a sort, and one gradient, written once.

See `mlot.backends.torch.uld_counts` for how counts decide on signs. The probabilities that they leave open
are listed bin by bin and compared with each other; the host waits once for each piece to learn how many.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mlot.backends.torch import kernels as torch_kernels
from mlot.backends.torch import rows as torch_rows
from mlot.backends.torch.derivatives import once_differentiable
from mlot.backends.torch.uld import sorted_signs
from mlot.backends.torch.uld_counts import constants_of, fraction_bits, number_of_bins

_BYTES = 1 << 29  # of counts and what is made of them, at a time
_BYTES_OF_A_BIN = 25
_BLOCK = 4096
_FULLEST_BIN = 2048  # whose probabilities are compared each with each
_SCALE = 2.0**52  # of probabilities as whole numbers


def serve(student: Any, teacher: Any) -> bool:
    """Whether kernels compare these two sources."""
    return all(
        isinstance(x, Tensor) and x.stride(2) == 1 and torch_kernels.usable(x) for x in (student, teacher)
    )


class _Side(NamedTuple):
    """Logits, and of each position that stands in a pair its largest logit and the log-sum-exp below it."""

    logits: Tensor
    mask: Tensor
    top: Tensor
    totals: Tensor
    row: Tensor  #: of each pair, ``(n,)``
    starts: Tensor  #: offset of each pair's logits

    @classmethod
    def of(cls, logits: Tensor, b: Tensor, i: Tensor, valid: Tensor, dtype: torch.dtype) -> _Side:
        batch, length, _ = logits.shape
        row = b * length + i
        mask = torch.zeros(batch * length, dtype=torch.int32, device=logits.device)
        mask = (mask.index_add_(0, row, valid.to(torch.int32)) > 0).view(batch, length)
        top, totals = torch_kernels.row_totals(logits, mask, (1.0,), dtype)
        starts = b * logits.stride(0) + i * logits.stride(1)
        return cls(logits, mask, top.flatten(), totals.flatten(), row, starts)

    def of_pairs(self, piece: slice) -> _Rows:
        row = self.row[piece]
        return _Rows(self.logits, row, self.starts[piece], self.top[row], self.totals[row])


class _Rows(NamedTuple):
    """The rows of some pairs in one side's logits."""

    logits: Tensor
    row: Tensor
    starts: Tensor
    top: Tensor
    totals: Tensor

    @property
    def width(self) -> int:
        return int(self.logits.shape[2])

    def probabilities(self, piece: slice, valid: Tensor) -> Tensor:
        """Those of some of the pairs, 0 where a pair is none."""
        length = self.logits.shape[1]
        logits = self.logits[self.row[piece] // length, self.row[piece] % length].to(self.top.dtype)
        probs = (logits - self.top[piece, None]).sub_(self.totals[piece, None]).exp_()
        return probs.masked_fill_(~valid[:, None], 0)


class UldByKernels(torch.autograd.Function):
    """Distance ``(n,)`` of each of n pairs of positions, given as indices into batch and positions."""

    @staticmethod
    def forward(
        ctx: Any, valid: Tensor, index: tuple[Tensor, Tensor, Tensor], student: Tensor, teacher: Tensor
    ) -> Tensor:
        b, i, j = index
        dtype = torch.promote_types(*(torch_rows.compute_dtype(x.dtype) for x in (student, teacher)))
        sides = _Side.of(student, b, i, valid, dtype), _Side.of(teacher, b, j, valid, dtype)
        widths = student.shape[2], teacher.shape[2]
        bits = fraction_bits(max(widths))
        wanted = ctx.needs_input_grad[2:]
        means = torch.zeros((2, len(valid)), dtype=dtype, device=valid.device)
        # One column more, for what a shorter list of another row lacks.
        signs = [
            torch.empty((len(valid), width + 1 if want else 0), dtype=torch.int8, device=valid.device)
            for width, want in zip(widths, wanted, strict=True)
        ]
        step = max(1, _BYTES // (_BYTES_OF_A_BIN * number_of_bins(bits)))
        for start in range(0, len(valid), step):
            piece = slice(start, start + step)
            compared = [side.of_pairs(piece) for side in sides]
            totals = compare_rows(compared, valid[piece], bits, [each[piece] for each in signs], wanted)
            for mean, total in zip(means, totals, strict=True):
                mean[piece] = total
        ctx.save_for_backward(means, *signs, *(x for side in sides for x in side[:5]), valid)
        return means.sum(0).masked_fill_(~valid, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        means, *signs = ctx.saved_tensors[:3]
        valid = ctx.saved_tensors[-1]
        results: list[Tensor | None] = [None, None]
        for n, want in enumerate(ctx.needs_input_grad[2:]):
            if want:
                logits, mask, top, totals, row = ctx.saved_tensors[3 + 5 * n : 8 + 5 * n]
                last = mask.numel()
                row, order = torch.where(valid, row, last).sort(stable=True)
                edges = torch.searchsorted(row, torch.arange(last + 1, device=row.device))
                results[n] = gradient_of(
                    logits, mask, top, totals, edges, order, signs[n], means[n], bar.contiguous()
                )
        return (None, None, *results)


def compare_rows(
    compared: list[_Rows],
    valid: Tensor,
    bits: int,
    signs: list[Tensor],
    wanted: tuple[bool, ...],
) -> list[Tensor]:
    """Sum of the probabilities of each side with their signs, which are written where they are wanted."""
    kernels, rows = torch_kernels.module("triton_uld"), len(valid)
    dtype, device = compared[0].top.dtype, valid.device
    fraction, lowest, highest = constants_of(dtype, bits)
    bins = highest + 1
    constants = {"FRACTION": fraction, "LOWEST": lowest, "HIGHEST": highest}
    widths = [side.width for side in compared]
    counts = []
    for logits, _, starts, top, totals in compared:
        count = torch.zeros((rows, bins), dtype=torch.int32, device=device)
        block, blocks = _blocks(logits)
        kernels.uld_counts[(rows, blocks)](
            logits, starts, valid, top, totals, count, logits.shape[2], **constants, BLOCK=block, num_warps=8
        )
        count[:, 0] = torch.where(valid, logits.shape[2] - count.sum(1, dtype=torch.int32), 0)
        counts.append(count)
    table = torch.empty((rows, bins), dtype=torch.int8, device=device)
    above, places = ([torch.empty_like(count) for count in counts] for _ in range(2))
    listed = torch.empty((rows, 3), dtype=torch.int32, device=device)
    kernels.uld_bins[(rows,)](
        *counts, table, *above, *places, listed, *widths,
        BINS=bins, BLOCK=torch_kernels.block_size(bins, 1024), num_warps=4,
    )  # fmt: skip
    *capacities, fullest = listed.amax(0).tolist()
    if fullest > _FULLEST_BIN:
        return _compare_by_sorting(compared, valid, signs, wanted)
    values = [torch.empty((rows, room), dtype=dtype, device=device) for room in capacities]
    tokens = [torch.empty((rows, room), dtype=torch.int32, device=device) for room in capacities]
    results = []
    for n, (logits, _, starts, top, totals) in enumerate(compared):
        block, blocks = _blocks(logits)
        sums = torch.empty((rows, blocks), dtype=dtype, device=device)
        kernels.uld_signs[(rows, blocks)](
            logits, starts, valid, top, totals, table, places[n], signs[n], values[n], tokens[n], sums,
            widths[n], signs[n].stride(0), capacities[n],
            SIDE=1 - 2 * n, KEEP=wanted[n], **constants, BLOCK=block, num_warps=8,
        )  # fmt: skip
        results.append(sums.sum(1, dtype=torch.float64))
    for own, other in ((0, 1), (1, 0)):
        room = capacities[own]
        if not room:
            continue
        sign = torch.empty((rows, room), dtype=torch.int8, device=device)
        kernels.uld_undecided[(rows, -(-room // 128))](
            values[own], tokens[own], values[other], counts[own], places[own], above[own],
            counts[other], places[other], above[other], listed, sign, room, capacities[other],
            SIDE=own, **constants, BLOCK=128,
        )  # fmt: skip
        used = torch.arange(room, device=device) < listed[:, own, None]
        # A sum of whole numbers does not depend on the order in which the list was written.
        parts = (values[own].double() * _SCALE).long() * sign
        results[own] += parts.masked_fill_(~used, 0).sum(1).double() / _SCALE
        if wanted[own]:
            signs[own].scatter_(1, torch.where(used, tokens[own], widths[own]).long(), sign)
    return results


def _compare_by_sorting(
    compared: list[_Rows],
    valid: Tensor,
    signs: list[Tensor],
    wanted: tuple[bool, ...],
) -> list[Tensor]:
    """The same, of rows with so many alike that to compare each with each is slower than a sort."""
    results = [torch.empty(len(valid), dtype=torch.float64, device=valid.device) for _ in compared]
    dtype = compared[0].top.dtype
    width = max(side.logits.shape[2] for side in compared)
    step = torch_rows.rows_in_slice(valid.device, width, 4 * dtype.itemsize)
    for start in range(0, len(valid), step):
        piece = slice(start, start + step)
        probs = [side.probabilities(piece, valid[piece]) for side in compared]
        for n, (p, sign) in enumerate(zip(probs, sorted_signs(*probs)[1], strict=True)):
            results[n][piece] = (p * sign).sum(1, dtype=torch.float64)
            if wanted[n]:
                signs[n][piece, :-1] = sign
    return results


def _blocks(logits: Tensor) -> tuple[int, int]:
    """Size and number of the blocks of a row."""
    size = torch_kernels.block_size(logits.shape[2], _BLOCK)
    return size, -(-logits.shape[2] // size)


def gradient_of(
    logits: Tensor,
    mask: Tensor,
    top: Tensor,
    totals: Tensor,
    edges: Tensor,
    order: Tensor,
    signs: Tensor,
    means: Tensor,
    bar: Tensor,
) -> Tensor:
    """Gradient of one side's logits, given the pairs of each position."""
    batch, length, vocabulary = logits.shape
    gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if gradient.numel():
        block = torch_kernels.block_size(vocabulary, _BLOCK)
        torch_kernels.module("triton_uld").uld_gradient[(batch * length, -(-vocabulary // block))](
            logits, mask, top, totals, edges, order, signs, means, bar, gradient,
            *logits.stride()[:2], length, vocabulary, signs.stride(0), BLOCK=block, num_warps=8,
        )  # fmt: skip
    return gradient
