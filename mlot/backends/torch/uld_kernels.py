"""Universal logit distillation by Triton kernels: counts in place of a sort, and one gradient, written once.

See `mlot.backends.torch.uld_counts` for how counts decide on signs. The probabilities that they leave open
are listed, in every row as many as in the fullest one, for which number the host waits once for each piece.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mlot.backends.torch import kernels as torch_kernels
from mlot.backends.torch import rows as torch_rows
from mlot.backends.torch.derivatives import once_differentiable
from mlot.backends.torch.uld_counts import Comparison, constants_of, fraction_bits, number_of_bins

_BYTES_OF_A_BIN = 40  # counts, sums of them and signs, of both sides
_BLOCK = 4096


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

    def of_pairs(self, piece: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets, largest logits and log-sum-exps of some pairs."""
        row = self.row[piece]
        return self.starts[piece], self.top[row], self.totals[row]


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
        step = max(1, torch_rows.DEVICE_SLICE_BYTES // (_BYTES_OF_A_BIN * number_of_bins(bits)))
        for start in range(0, len(valid), step):
            piece = slice(start, start + step)
            compared = [(side.logits, *side.of_pairs(piece)) for side in sides]
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
    compared: list[tuple[Tensor, Tensor, Tensor, Tensor]],
    valid: Tensor,
    bits: int,
    signs: list[Tensor],
    wanted: tuple[bool, ...],
) -> list[Tensor]:
    """Sum of the probabilities of each side with their signs, which are written where they are wanted."""
    module, rows = torch_kernels.module("triton_uld"), len(valid)
    fraction, lowest, highest = constants_of(compared[0][2].dtype, bits)
    constants = {"FRACTION": fraction, "LOWEST": lowest, "HIGHEST": highest}
    counts = []
    for logits, starts, top, totals in compared:
        vocabulary = logits.shape[2]
        count = torch.zeros((rows, highest + 1), dtype=torch.int32, device=valid.device)
        block = torch_kernels.block_size(vocabulary, _BLOCK)
        module.uld_counts[(rows, -(-vocabulary // block))](
            logits, starts, valid, top, totals, count, vocabulary, **constants, BLOCK=block, num_warps=8
        )
        count[:, 0] = torch.where(valid, vocabulary - count.sum(1, dtype=torch.int32), 0)
        counts.append(count)
    widths = [logits.shape[2] for logits, *_ in compared]
    comparison = Comparison.of((counts[0], counts[1]), (widths[0], widths[1]))
    capacities = torch.stack([ends[:, -1].amax() for ends in comparison.undecided]).tolist()
    results, listed, places = [], [], []
    for n, (logits, starts, top, totals) in enumerate(compared):
        values = top.new_full((rows, capacities[n]), torch.inf)
        place = torch.full(values.shape, widths[n], dtype=torch.int32, device=valid.device)
        distance = torch.empty(rows, dtype=torch.float64, device=valid.device)
        module.uld_signs[(rows,)](
            logits, starts, valid, top, totals, comparison.table, signs[n], values, place, distance,
            widths[n], signs[n].stride(0), capacities[n],
            SIDE=1 - 2 * n, KEEP=wanted[n], **constants,
            BLOCK=torch_kernels.block_size(widths[n], _BLOCK), num_warps=8,
        )  # fmt: skip
        results.append(distance)
        listed.append(values)
        places.append(place)
    if max(capacities):
        resolved = comparison.signs((listed[0], listed[1]), bits)
        for n, sign in enumerate(resolved):
            results[n] += (
                (sign * listed[n]).masked_fill_(places[n] == widths[n], 0).sum(1, dtype=torch.float64)
            )
            if wanted[n]:
                signs[n].scatter_(1, places[n].long(), sign)
    return results


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
