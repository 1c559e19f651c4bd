"""Reading logits a few rows at a time, from a dense tensor or from a linear head.

Selection and ULD are the only operations that see a full vocabulary. Both go over blocks of rows small
enough to stay in cache, so that no array of the size of the logits is made besides their gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor

from mlot.sources import LinearHead

#: Bytes of one slice of logits, on the host (for each thread, in its cache) and on accelerators.
HOST_SLICE_BYTES = 1 << 20
DEVICE_SLICE_BYTES = 1 << 28
#: Bytes of the logits of a head that are formed at a time, unless it says otherwise.
HOST_CHUNK_BYTES = 48 << 20
DEVICE_CHUNK_BYTES = 1 << 28

#: Which positions: a block of sequences by positions, or a list of both.
Where: TypeAlias = tuple[slice, slice] | tuple[Tensor, Tensor]
RowSource: TypeAlias = "DenseRows | HeadRows"


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type to compute in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def can_look(device: torch.device) -> bool:
    """Whether looking at values costs nothing; on an accelerator it would mean to wait for them.

    Where one can look, masked positions are stepped over; elsewhere they are computed with the others,
    whatever they hold, and blanked.
    """
    return device.type == "cpu"


def rows_in_slice(device: torch.device, vocabulary: int, itemsize: int) -> int:
    """Number of rows whose logits fit into one slice, at least one."""
    on_host = device.type == "cpu"
    budget = HOST_SLICE_BYTES * torch.get_num_threads() if on_host else DEVICE_SLICE_BYTES
    return max(1, budget // max(1, vocabulary * itemsize))


def slices(mask: Tensor, rows: int) -> Iterator[tuple[slice, slice]]:
    """Cover the valid positions of a mask by blocks of at most so many rows.

    On the host, positions that are masked out are stepped over. On a device nobody waits for the mask: the
    blocks cover everything, and what reads them has to blank what is masked out.
    """
    batch, length = mask.shape
    if batch == 0 or length == 0:
        return
    on_host = can_look(mask.device)
    if length <= rows and (not on_host or bool(mask.all())):
        step = max(1, rows // length)
        for b in range(0, batch, step):
            yield slice(b, min(b + step, batch)), slice(0, length)
        return
    for b in range(batch):
        for start, stop in _runs(mask[b]) if on_host else [(0, length)]:
            pieces = -(-(stop - start) // rows)  # cut evenly, so that none is a single row for no reason
            for piece in range(pieces):
                t0 = start + (stop - start) * piece // pieces
                t1 = start + (stop - start) * (piece + 1) // pieces
                yield slice(b, b + 1), slice(t0, t1)


def _runs(mask: Tensor) -> list[tuple[int, int]]:
    """Contiguous runs of valid positions, as (start, stop)."""
    edges = torch.nn.functional.pad(mask.to(torch.int8), (1, 1)).diff()
    starts, stops = (edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten()
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def _pieces(
    chunk: tuple[slice, slice], rows: int
) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Cut a chunk into slices: where each is among all positions, and where in the chunk."""
    (b0, b1), (t0, t1) = ((s.start, s.stop) for s in chunk)
    if (b1 - b0) * (t1 - t0) <= rows:
        yield chunk, (slice(0, b1 - b0), slice(0, t1 - t0))
        return
    for b in range(b0, b1):
        for t in range(t0, t1, rows):
            end = min(t + rows, t1)
            yield (slice(b, b + 1), slice(t, end)), (slice(b - b0, b - b0 + 1), slice(t - t0, end - t0))


def row_blocks(rows: RowSource, mask: Tensor) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """Slices of the valid positions, and their logits; none of a vocabulary without columns."""
    if not rows.shape[2]:
        return
    for chunk in slices(mask, rows.chunk_rows()):
        logits = rows.read(chunk)
        for where, inside in _pieces(chunk, rows.slice_rows()):
            yield where, logits[inside]


def source_gradients(
    rows: RowSource,
    mask: Tensor,
    wanted: tuple[bool, ...],
    slope: Callable[[tuple[slice, slice], Tensor, Tensor | None], Tensor],
    *,
    in_place: bool = True,
    overwrite: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of a source, from the slope by the logits of each slice.

    ``slope`` writes into its last argument if it is given one (never unless ``in_place``), else into a new
    tensor, and returns what it wrote. ``overwrite``: the gradient of dense logits takes their memory.
    """
    on_host = can_look(mask.device)
    gradient: DenseGradient | HeadGradient
    if isinstance(rows, HeadRows):
        gradient = HeadGradient(rows, wanted)
    else:
        gradient = DenseGradient(rows, rows.logits.detach() if overwrite else torch.empty_like(rows.logits))
    for chunk in slices(mask, rows.chunk_rows()):
        logits = rows.read(chunk)
        for where, inside in _pieces(chunk, rows.slice_rows()):
            own = logits[inside]
            piece = slope(where, own, gradient.writable(where, own) if in_place else None)
            piece = rows.through_activation(own, piece)
            if not on_host:
                piece.masked_fill_(~mask[where][..., None], 0)  # excluded rows may hold anything
            gradient.put(where, own, piece)
            del piece  # before the next one is made
        gradient.finish(chunk, logits, None if on_host else mask[chunk])
    if on_host and isinstance(gradient, DenseGradient):
        gradient.logits[(~mask).nonzero(as_tuple=True)] = 0  # which the walk stepped over
    return gradient.result()


class Scratch:
    """One buffer for the exponentials of a slice, made when it is first needed."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._buffer = torch.empty(0, dtype=dtype, device=device)

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        size = math.prod(shape)
        if self._buffer.numel() < size:
            self._buffer = self._buffer.new_empty(size)
        return self._buffer[:size].view(shape)


class DenseRows:
    """Rows of dense logits; a block that is read is a view.

    Listed rows are copied, over those that were listed before.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.shape = logits.shape
        self.device = logits.device
        self.dtype = compute_dtype(logits.dtype)
        self.scratch, self._listed = Scratch(self.dtype, self.device), Scratch(logits.dtype, self.device)

    def slice_rows(self) -> int:
        return rows_in_slice(self.device, self.shape[2], self.dtype.itemsize)

    chunk_rows = slice_rows

    def read(self, where: Where) -> Tensor:
        b, t = where
        if isinstance(b, slice) or isinstance(t, slice) or not self.logits.is_contiguous():
            return self.logits[where]
        flat, listed = self.logits.flatten(0, 1), b * self.shape[1] + t
        return torch.index_select(flat, 0, listed, out=self._listed((len(listed), self.shape[2])))

    def through_activation(self, logits: Tensor, gradient: Tensor) -> Tensor:
        """Nothing stands between these logits and their tensor."""
        return gradient

    def columns(self, columns: Tensor) -> Tensor:
        """Logits ``(B, T, k)`` of some columns ``(B, k)``."""
        index = columns[:, None, :].expand(-1, self.shape[1], -1)
        return self.logits.gather(2, index).to(self.dtype)


class HeadRows:
    """Rows of the logits of a linear head, computed as they are read, in the compute dtype.

    What was read before is overwritten: there is one chunk at a time.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        softcap: float | None,
        scale: float | None,
        chunk_bytes: int,
    ) -> None:
        self.hidden, self.weight, self.bias = hidden, weight, bias
        self.softcap, self.scale = softcap, scale
        self.shape = torch.Size((*hidden.shape[:2], weight.shape[0]))
        self.device = hidden.device
        self.dtype = compute_dtype(torch.promote_types(hidden.dtype, weight.dtype))
        self.scratch, self._chunk = Scratch(self.dtype, self.device), Scratch(self.dtype, self.device)
        self.chunk_bytes = chunk_bytes or (HOST_CHUNK_BYTES if can_look(self.device) else DEVICE_CHUNK_BYTES)
        both = hidden.dtype == weight.dtype == torch.bfloat16
        #: Whether products of bfloat16 are summed in float32 as they are, which tensor cores do.
        self.mixed = both and self.device.type == "cuda" and hasattr(torch.ops.aten.mm, "dtype_out")

    def slice_rows(self) -> int:
        return rows_in_slice(self.device, self.shape[2], self.dtype.itemsize)

    def chunk_rows(self) -> int:
        return max(1, self.chunk_bytes // max(1, self.shape[2] * self.dtype.itemsize))

    def read(self, where: Where) -> Tensor:
        hidden = self.hidden[where]
        logits = self._chunk((*hidden.shape[:-1], self.shape[2]))
        flat, out = hidden.flatten(0, -2), logits.flatten(0, -2)
        if self.mixed:
            torch.ops.aten.mm.dtype_out(flat, self.weight.T, self.dtype, out=out)
        else:
            flat = flat.to(self.dtype)
            for v in self.blocks():
                torch.mm(flat, self.weight[v].to(self.dtype).T, out=out[:, v])
        return self._finish(logits, self.bias)

    def columns(self, columns: Tensor) -> Tensor:
        """Logits ``(B, T, k)`` of some columns ``(B, k)``."""
        weight = self.weight[columns].to(self.dtype)
        logits = self.hidden.to(self.dtype) @ weight.mT
        return self._finish(logits, None if self.bias is None else self.bias[columns][:, None, :])

    def blocks(self) -> Iterator[slice]:
        """Ranges of the vocabulary whose weights are cast together; one range if no cast is needed."""
        vocabulary, width = self.weight.shape
        step = vocabulary
        if self.weight.dtype != self.dtype:
            step = rows_in_slice(self.device, width, self.dtype.itemsize)
        for v in range(0, vocabulary, max(step, 1)):
            yield slice(v, min(v + step, vocabulary))

    def _finish(self, logits: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None:
            logits += bias.to(self.dtype)
        if self.scale is not None:
            logits *= self.scale
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def through_activation(self, logits: Tensor, gradient: Tensor) -> Tensor:
        """Turn the gradient of the logits into that of ``h W^T + b``, in place."""
        if self.softcap is not None:
            gradient *= 1 - (logits / self.softcap).square_()
        if self.scale is not None:
            gradient *= self.scale
        return gradient


class DenseGradient:
    """The gradient of dense logits, written block by block into given memory."""

    def __init__(self, rows: DenseRows, memory: Tensor) -> None:
        self.logits, self.dtype = memory, rows.dtype

    def writable(self, where: tuple[slice, slice], logits: Tensor) -> Tensor | None:
        """Where the gradient of some logits can be written at once, if its type allows."""
        return self.logits[where] if self.logits.dtype == self.dtype else None

    def put(self, where: tuple[slice, slice], logits: Tensor, gradient: Tensor) -> None:
        """Write the gradient of some logits, if that was not done at once."""
        own = self.logits[where]
        if gradient.data_ptr() != own.data_ptr():
            own.copy_(gradient)

    def finish(self, where: Where, gradient: Tensor, valid: Tensor | None) -> None:
        """Nothing is left to do."""

    def add(self, where: tuple[Tensor, Tensor], gradient: Tensor, valid: Tensor | None) -> None:
        """Add to the gradient of listed positions, which may repeat."""
        self.logits.index_put_(where, gradient.to(self.logits.dtype), accumulate=True)

    def result(self) -> tuple[Tensor | None, ...]:
        return (self.logits,)


class HeadGradient:
    """The gradients of a linear head, summed up over the blocks of its rows."""

    def __init__(self, rows: HeadRows, wanted: tuple[bool, ...]) -> None:
        self.rows = rows
        hidden, weight, bias = wanted
        self.hidden = torch.zeros_like(rows.hidden, dtype=rows.dtype) if hidden else None
        self.weight = torch.zeros_like(rows.weight, dtype=rows.dtype) if weight else None
        self.bias = torch.zeros_like(rows.bias, dtype=rows.dtype) if bias and rows.bias is not None else None

    def writable(self, where: tuple[slice, slice], logits: Tensor) -> Tensor | None:
        """The memory of the logits, unless these are needed for the way through a soft cap."""
        return logits if self.rows.softcap is None else None

    def put(self, where: tuple[slice, slice], logits: Tensor, gradient: Tensor) -> None:
        """Write the gradient of some logits into their place, if that was not done at once."""
        if gradient.data_ptr() != logits.data_ptr():
            logits.copy_(gradient)

    def add(self, where: tuple[Tensor, Tensor], gradient: Tensor, valid: Tensor | None) -> None:
        """Add to the gradient of listed positions, which may repeat."""
        self.finish(where, gradient, valid)

    def finish(self, where: Where, gradient: Tensor, valid: Tensor | None) -> None:
        """Add the gradient of a chunk of ``h W^T + b``; what is not valid has a gradient of 0."""
        flat = gradient.flatten(0, -2)
        if self.bias is not None:
            self.bias += flat.sum(0)
        hidden = self.rows.hidden[where]
        if valid is not None:
            hidden = hidden.masked_fill(~valid[..., None], 0)  # 0 times what it holds may be no number
        if self.rows.mixed:  # rounded as the gradient of logits is that were formed in this type
            flat = flat.to(hidden.dtype)
        if self.weight is not None and self.rows.mixed:
            self.weight = torch.ops.aten.addmm.dtype(
                self.weight, flat.T, hidden.flatten(0, -2), self.rows.dtype
            )
        elif self.weight is not None:
            self.weight.addmm_(flat.T, hidden.flatten(0, -2).to(self.rows.dtype))
        if self.hidden is None:
            return
        total = torch.zeros_like(hidden, dtype=self.rows.dtype)
        if self.rows.mixed:
            torch.ops.aten.mm.dtype_out(flat, self.rows.weight, total.dtype, out=total.flatten(0, -2))
        for v in () if self.rows.mixed else self.rows.blocks():
            total.flatten(0, -2).addmm_(flat[:, v], self.rows.weight[v].to(self.rows.dtype))
        if isinstance(where[0], Tensor):
            self.hidden.index_put_(where, total, accumulate=True)
        else:
            self.hidden[where] = total

    def result(self) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states, weight and bias, each in the type of what it is the gradient of."""
        of = (self.rows.hidden, self.rows.weight, self.rows.bias)
        sums = (self.hidden, self.weight, self.bias)
        return tuple(
            None if total is None or like is None else total.to(like.dtype)
            for total, like in zip(sums, of, strict=True)
        )


class SourceLayout:
    """How to make rows of the tensors that an autograd function was given, and gradients for them."""

    def __init__(self, source: Tensor | LinearHead) -> None:
        head = source if isinstance(source, LinearHead) else None
        self.softcap = None if head is None else head.softcap
        self.scale = None if head is None else head.scale
        self.chunk_bytes = 0 if head is None else head.chunk_bytes or 0
        self.tensors: tuple[Tensor | None, ...] = (
            (source,) if isinstance(source, Tensor) else (source.hidden, source.weight, source.bias)
        )
        self.count = len(self.tensors)
        names = ("logits",) if head is None else ("hidden", "weight", "bias")
        for name, tensor in zip(names, self.tensors, strict=True):
            if hasattr(tensor, "placements"):  # a DTensor: its operations take no plain tensors
                raise TypeError(
                    f"{name}: expected a plain tensor, got a {type(tensor).__name__}; for a weight under "
                    "FSDP2 see mlot.distributed.unsharded, for logits sharded by vocabulary "
                    "mlot.distributed.VocabShard.from_dtensor"
                )

    def without_tensors(self) -> SourceLayout:
        """The same without the tensors, for an autograd function to keep."""
        copy = object.__new__(SourceLayout)
        copy.__dict__.update(self.__dict__, tensors=())
        return copy

    def rows(self, tensors: tuple[Tensor | None, ...]) -> RowSource:
        first, *others = tensors
        assert first is not None
        if not others:
            return DenseRows(first)
        weight, bias = others
        assert weight is not None
        return HeadRows(first, weight, bias, self.softcap, self.scale, self.chunk_bytes)


def zero_gradient(rows: RowSource, wanted: tuple[bool, ...]) -> DenseGradient | HeadGradient:
    """Somewhere to add up the gradient of rows that may repeat."""
    if isinstance(rows, HeadRows):
        return HeadGradient(rows, wanted)
    return DenseGradient(rows, torch.zeros_like(rows.logits))
