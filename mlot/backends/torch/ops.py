"""Reading a source and solving an assignment, as autograd functions and as what torch.compile sees instead.

A pass loops over slices whose number depends on sizes and masks, which a compiler should neither unroll nor
guard on. While compiling, each is one opaque operation with its shapes and its gradient declared, so that a
loss compiles into one graph. The annotations below are the schemas, hence no postponed evaluation of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mlot._composite import Composite
from mlot.backends.torch import read as torch_read
from mlot.backends.torch.read import Reading, ReadRows, Request
from mlot.backends.torch.rows import RowSource, SourceLayout, compute_dtype
from mlot.backends.torch.statistics import Settings
from mlot.sources import LinearHead


def read(source: Tensor | Composite, mask: Tensor, settings: Settings, request: Request) -> Reading:
    """Read whatever a loss needs of a source in one pass, with gradients; see `mlot.backends.torch.read`."""
    if isinstance(source, Composite) and source._reads:
        own: Reading = source._read(mask, settings, request)
        return own
    layout = SourceLayout(source)  # type: ignore[arg-type]
    columns, ids = request.listed(mask)
    with torch.autocast(device_type=mask.device.type, enabled=False):
        if torch.compiler.is_compiling():
            kept, listed, log_totals, mass, chosen, _, _ = _read(
                *_flat(layout), mask, *settings, request.k, columns, ids, request.without
            )
        else:
            if request.overwrite is not None:
                request.overwrite.passes += 1
            chosen, mass, kept, listed, log_totals = ReadRows.apply(  # type: ignore[no-untyped-call]
                layout.without_tensors(),
                mask,
                settings,
                request.k,
                columns,
                ids,
                request.without,
                request.overwrite,
                *layout.tensors,
            )
    return request.answered(columns, chosen, mass, kept, listed, log_totals)


def log_probs_at(source: Tensor | Composite, ids: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Log-probabilities ``(B, T, K)`` of listed tokens, a negative one standing for none, with gradients.

    Minus infinity where no token is listed, or the mask is false.
    """
    reading = read(source, mask, Settings(temperature, (), False), Request(None, None, ids))
    return torch_read.listed_log_probs(reading, ids, mask, temperature, 0)


def cross_entropy(source: Tensor | Composite, targets: Tensor, mask: Tensor) -> Tensor:
    """Negative log-probability ``(B, T)`` of the targets where the mask is true, 0 elsewhere."""
    log_probs = log_probs_at(source, targets.masked_fill(~mask, 0)[..., None], mask, 1.0)
    return -log_probs.squeeze(-1).masked_fill(~mask, 0)


# -- sources as flat arguments ---------------------------------------------------------------------------

_Flat = tuple[Tensor, Tensor | None, Tensor | None, float | None, float | None, int]


def _flat(layout: SourceLayout) -> _Flat:
    first, weight, bias = (*layout.tensors, None, None)[:3]
    assert first is not None
    return first, weight, bias, layout.softcap, layout.scale, layout.chunk_bytes


def _rows(
    first: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    scale: float | None,
    chunk_bytes: int,
) -> RowSource:
    if weight is None:
        return SourceLayout(first).rows((first,))
    head = LinearHead(first, weight, bias, softcap, scale, chunk_bytes or None)
    return SourceLayout(head).rows((first, weight, bias))


def _vocabulary(first: Tensor, weight: Tensor | None) -> tuple[int, torch.dtype]:
    if weight is None:
        return first.shape[2], compute_dtype(first.dtype)
    return weight.shape[0], compute_dtype(torch.promote_types(first.dtype, weight.dtype))


# -- reading ---------------------------------------------------------------------------------------------


@torch.library.custom_op("mlot::read", mutates_args=())
def _read(
    first: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    head_scale: float | None,
    chunk_bytes: int,
    mask: Tensor,
    temperature: float,
    extra: Sequence[float],
    standardize: bool,
    k: int | None,
    columns: Tensor,
    ids: Tensor,
    without: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows = _rows(first, weight, bias, softcap, head_scale, chunk_bytes)
    result = torch_read.read_rows(
        rows, mask, Settings(temperature, tuple(extra), standardize), k, columns, ids, without
    )
    chosen = columns.new_empty((len(columns), 0)) if k is None else result.columns
    deviation = result.top.new_empty(0) if result.deviation is None else result.deviation
    return (result.kept, result.listed, result.log_totals, result.mass, chosen, result.top, deviation)


@_read.register_fake
def _(  # type: ignore[no-untyped-def]
    first,
    weight,
    bias,
    softcap,
    head_scale,
    chunk_bytes,
    mask,
    temperature,
    extra,
    standardize,
    k,
    columns,
    ids,
    without,
):
    batch, length = mask.shape
    top = first.new_empty((batch, length), dtype=_vocabulary(first, weight)[1])
    return (
        top.new_empty((batch, length, columns.shape[1] if k is None else k)),
        top.new_empty(ids.shape),
        top.new_empty((1 + len(extra) + (1 if without else 0), batch, length)),
        top.new_empty((batch, 0 if k is None else k)),
        columns.new_empty((batch, 0 if k is None else k)),
        top,
        top.new_empty((batch, length) if standardize else 0),
    )


@torch.library.custom_op("mlot::read_backward", mutates_args=())
def _read_backward(
    first: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    head_scale: float | None,
    chunk_bytes: int,
    mask: Tensor,
    columns: Tensor,
    ids: Tensor,
    top: Tensor,
    log_totals: Tensor,
    deviation: Tensor,
    temperature: float,
    extra: Sequence[float],
    standardize: bool,
    without: int,
    g_kept: Tensor,
    g_listed: Tensor,
    nu: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor]:
    gradients = torch_read.read_rows_backward(
        _rows(first, weight, bias, softcap, head_scale, chunk_bytes),
        tuple(wanted)[:1] if weight is None else tuple(wanted),
        mask,
        columns,
        ids,
        top,
        log_totals,
        deviation if standardize else None,
        Settings(temperature, tuple(extra), standardize),
        without,
        g_kept,
        g_listed,
        nu,
    )
    return [first.new_empty(0) if g is None else g for g in (*gradients, None, None)[:3]]


@_read_backward.register_fake
def _(first, weight, bias, *rest):  # type: ignore[no-untyped-def]
    return [
        torch.empty_like(x) if x is not None and want else first.new_empty(0)
        for x, want in zip((first, weight, bias), rest[-1], strict=True)
    ]


def _read_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    first, weight, bias, *head, mask, temperature, extra, standardize, k, columns, ids, without = inputs
    _, _, log_totals, mass, chosen, top, deviation = output
    ctx.mark_non_differentiable(chosen, mass, top, deviation)
    columns = columns if k is None else chosen
    ctx.save_for_backward(first, weight, bias, mask, columns, ids, top, log_totals, deviation)
    ctx.head, ctx.settings = head, (temperature, extra, standardize, without)


def _read_gradients(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    first, weight, bias, *rest = ctx.saved_tensors
    wanted = [bool(want) for want in ctx.needs_input_grad[:3]]
    results = _read_backward(first, weight, bias, *ctx.head, *rest, *ctx.settings, *gradients[:3], wanted)
    given = [g if want else None for g, want in zip(results, wanted, strict=True)]
    return (*given, *(None,) * 11)


_read.register_autograd(_read_gradients, setup_context=_read_context)

# -- the assignment --------------------------------------------------------------------------------------


def assign(cost: Tensor) -> Tensor:
    """Optimal assignment on the host, ``(B, R)``."""
    if not torch.compiler.is_compiling():
        return _solve(cost)
    columns: Tensor = _assign(cost)
    return columns


def _solve(cost: Tensor) -> Tensor:
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    columns = np.array([linear_sum_assignment(matrix)[1] for matrix in cost.cpu().numpy()], dtype=np.int64)
    return torch.from_numpy(columns.reshape(cost.shape[:2])).to(cost.device)


@torch.library.custom_op("mlot::assign", mutates_args=())
def _assign(cost: Tensor) -> Tensor:
    return _solve(cost)


@_assign.register_fake
def _(cost):  # type: ignore[no-untyped-def]
    return cost.new_empty(cost.shape[:2], dtype=torch.long)
