"""The passes over a vocabulary as operations: autograd functions, and what torch.compile sees in their place.

A pass loops over slices whose number depends on sizes and masks, which a compiler should neither unroll nor
guard on. While compiling, each is one opaque operation with its shapes and its gradient declared, so that a
loss compiles into one graph. The annotations below are the schemas, hence no postponed evaluation of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mlot._composite import Composite
from mlot.backends.torch import gather as torch_gather
from mlot.backends.torch import select as torch_select
from mlot.backends.torch.rows import RowSource, SourceLayout, compute_dtype
from mlot.backends.torch.select import RowStatistics, Settings
from mlot.sources import LinearHead


def row_statistics(layout: SourceLayout, mask: Tensor, settings: Settings, *, sums: bool) -> RowStatistics:
    """Normalisers and, if wanted, column sums of a source; no gradient."""
    if not torch.compiler.is_compiling():
        with torch.no_grad():
            return torch_select.reduce_rows(layout.rows(layout.tensors), mask, settings, sums=sums)
    top, log_totals, deviation, mass = _row_statistics(*_detached(layout), mask, *settings, sums)
    return RowStatistics(top, log_totals, deviation if settings.standardize else None, mass if sums else None)


def kept_log_probs(
    layout: SourceLayout, columns: Tensor, mask: Tensor, statistics: RowStatistics, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of given columns, and normalisers, with gradients for the source."""
    if not torch.compiler.is_compiling():
        result: tuple[Tensor, Tensor] = torch_select.GatherColumns.apply(  # type: ignore[no-untyped-call]
            layout.without_tensors(), columns, mask, statistics, settings, *layout.tensors
        )
        return result
    deviation = statistics.top.new_empty(0) if statistics.deviation is None else statistics.deviation
    taken: tuple[Tensor, Tensor] = _kept_log_probs(
        *_flat(layout), columns, mask, statistics.top, statistics.log_totals, deviation, *settings
    )
    return taken


def log_probs_at(source: Tensor | Composite, ids: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Log-probabilities ``(B, T, K)`` of listed tokens, -1 standing for none, with gradients for the source.

    Minus infinity where no token is listed, or the mask is false.
    """
    if isinstance(source, Composite) and source._scores:
        own: Tensor = source._log_probs_at(ids, mask, temperature)
        return own
    layout = SourceLayout(source)  # type: ignore[arg-type]
    with torch.autocast(device_type=mask.device.type, enabled=False):
        if not torch.compiler.is_compiling():
            result: Tensor = torch_gather.LogProbsAt.apply(  # type: ignore[no-untyped-call]
                layout.without_tensors(), ids, mask, temperature, *layout.tensors
            )
            return result
        log_probs: Tensor = _log_probs_at(*_flat(layout), ids, mask, temperature)
        return log_probs


def cross_entropy(source: Tensor | Composite, targets: Tensor, mask: Tensor) -> Tensor:
    """Negative log-probability ``(B, T)`` of the targets where the mask is true, 0 elsewhere."""
    log_probs = log_probs_at(source, targets.masked_fill(~mask, 0)[..., None], mask, 1.0)
    return -log_probs.squeeze(-1).masked_fill(~mask, 0)


# -- sources as flat arguments ---------------------------------------------------------------------------

_Flat = tuple[Tensor, Tensor | None, Tensor | None, float | None, float | None]


def _flat(layout: SourceLayout) -> _Flat:
    first, weight, bias = (*layout.tensors, None, None)[:3]
    assert first is not None
    return first, weight, bias, layout.softcap, layout.scale


def _detached(layout: SourceLayout) -> _Flat:
    first, weight, bias, softcap, scale = _flat(layout)
    return (
        first.detach(),
        None if weight is None else weight.detach(),
        None if bias is None else bias.detach(),
        softcap,
        scale,
    )


def _rows(
    first: Tensor, weight: Tensor | None, bias: Tensor | None, softcap: float | None, scale: float | None
) -> RowSource:
    return SourceLayout(first if weight is None else LinearHead(first, weight, bias, softcap, scale)).rows(
        (first,) if weight is None else (first, weight, bias)
    )


def _vocabulary(first: Tensor, weight: Tensor | None) -> tuple[int, torch.dtype]:
    if weight is None:
        return first.shape[2], compute_dtype(first.dtype)
    return weight.shape[0], compute_dtype(torch.promote_types(first.dtype, weight.dtype))


def _three(gradients: tuple[Tensor | None, ...], like: Tensor) -> list[Tensor]:
    """Gradients of the three tensors of a flat source; empty where there is none."""
    return [like.new_empty(0) if g is None else g for g in (*gradients, None, None)[:3]]


def _wanted(weight: Tensor | None, wanted: Sequence[bool]) -> tuple[bool, ...]:
    return tuple(wanted)[:1] if weight is None else tuple(wanted)


def _given(gradients: list[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    return [g if want else None for g, want in zip(gradients, wanted, strict=True)]


def _fake_gradients(
    first: Tensor, weight: Tensor | None, bias: Tensor | None, wanted: Sequence[bool]
) -> list[Tensor]:
    return [
        torch.empty_like(x) if x is not None and want else first.new_empty(0)
        for x, want in zip((first, weight, bias), wanted, strict=True)
    ]


# -- statistics of rows ----------------------------------------------------------------------------------


@torch.library.custom_op("mlot::row_statistics", mutates_args=())
def _row_statistics(
    first: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    head_scale: float | None,
    mask: Tensor,
    temperature: float,
    extra: Sequence[float],
    standardize: bool,
    sums: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = _rows(first, weight, bias, softcap, head_scale)
    statistics = torch_select.reduce_rows(
        rows, mask, Settings(temperature, tuple(extra), standardize), sums=sums
    )
    nothing = statistics.top.new_empty(0)
    return (
        statistics.top,
        statistics.log_totals,
        nothing if statistics.deviation is None else statistics.deviation,
        nothing.clone() if statistics.mass is None else statistics.mass,
    )


@_row_statistics.register_fake
def _(first, weight, bias, softcap, head_scale, mask, temperature, extra, standardize, sums):  # type: ignore[no-untyped-def]
    batch, length = mask.shape
    vocabulary, dtype = _vocabulary(first, weight)
    top = first.new_empty((batch, length), dtype=dtype)
    return (
        top,
        top.new_empty((1 + len(extra), batch, length)),
        top.new_empty((batch, length) if standardize else 0),
        top.new_empty((batch, vocabulary) if sums else 0),
    )


# -- kept columns ----------------------------------------------------------------------------------------


@torch.library.custom_op("mlot::kept_log_probs", mutates_args=())
def _kept_log_probs(
    first: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    head_scale: float | None,
    columns: Tensor,
    mask: Tensor,
    top: Tensor,
    log_totals: Tensor,
    deviation: Tensor,
    temperature: float,
    extra: Sequence[float],
    standardize: bool,
) -> tuple[Tensor, Tensor]:
    statistics = RowStatistics(top, log_totals, deviation if standardize else None, None)
    rows = _rows(first, weight, bias, softcap, head_scale)
    return torch_select.gather_columns(
        rows, columns, mask, statistics, Settings(temperature, tuple(extra), standardize)
    )


@_kept_log_probs.register_fake
def _(  # type: ignore[no-untyped-def]
    first,
    weight,
    bias,
    softcap,
    head_scale,
    columns,
    mask,
    top,
    log_totals,
    deviation,
    temperature,
    extra,
    standardize,
):
    dtype = _vocabulary(first, weight)[1]
    return (
        first.new_empty((*mask.shape, columns.shape[1]), dtype=dtype),
        first.new_empty((*mask.shape, len(extra)), dtype=dtype),
    )


@torch.library.custom_op("mlot::kept_log_probs_backward", mutates_args=())
def _kept_log_probs_backward(
    first: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    head_scale: float | None,
    columns: Tensor,
    mask: Tensor,
    top: Tensor,
    log_totals: Tensor,
    deviation: Tensor,
    temperature: float,
    extra: Sequence[float],
    standardize: bool,
    g: Tensor,
    nu: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor]:
    gradients = torch_select.gather_columns_backward(
        _rows(first, weight, bias, softcap, head_scale),
        _wanted(weight, wanted),
        columns,
        mask,
        top,
        log_totals,
        deviation if standardize else None,
        Settings(temperature, tuple(extra), standardize),
        g,
        nu,
    )
    return _three(gradients, first)


@_kept_log_probs_backward.register_fake
def _(first, weight, bias, *rest):  # type: ignore[no-untyped-def]
    return _fake_gradients(first, weight, bias, rest[-1])


def _kept_log_probs_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    first, weight, bias, softcap, head_scale, columns, mask, top, log_totals, deviation, *settings = inputs
    ctx.save_for_backward(first, weight, bias, columns, mask, top, log_totals, deviation)
    ctx.head, ctx.settings = (softcap, head_scale), settings


def _kept_log_probs_gradients(ctx: Any, g: Tensor, nu: Tensor) -> tuple[Tensor | None, ...]:
    first, weight, bias, *rest = ctx.saved_tensors
    wanted = [bool(want) for want in ctx.needs_input_grad[:3]]
    gradients = _kept_log_probs_backward(first, weight, bias, *ctx.head, *rest, *ctx.settings, g, nu, wanted)
    return (*_given(gradients, wanted), *(None,) * 10)


_kept_log_probs.register_autograd(_kept_log_probs_gradients, setup_context=_kept_log_probs_context)

# -- listed tokens ---------------------------------------------------------------------------------------


@torch.library.custom_op("mlot::log_probs_at", mutates_args=())
def _log_probs_at(
    first: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    head_scale: float | None,
    ids: Tensor,
    mask: Tensor,
    temperature: float,
) -> Tensor:
    rows = _rows(first, weight, bias, softcap, head_scale)
    return torch_gather.log_probs_at(rows, ids, mask, temperature)


@_log_probs_at.register_fake
def _(first, weight, bias, softcap, head_scale, ids, mask, temperature):  # type: ignore[no-untyped-def]
    return first.new_empty(ids.shape, dtype=_vocabulary(first, weight)[1])


@torch.library.custom_op("mlot::log_probs_at_backward", mutates_args=())
def _log_probs_at_backward(
    first: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    head_scale: float | None,
    ids: Tensor,
    mask: Tensor,
    temperature: float,
    bar: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor]:
    rows, needed = _rows(first, weight, bias, softcap, head_scale), _wanted(weight, wanted)
    return _three(torch_gather.log_probs_at_back(rows, needed, ids, mask, temperature, bar), first)


@_log_probs_at_backward.register_fake
def _(first, weight, bias, *rest):  # type: ignore[no-untyped-def]
    return _fake_gradients(first, weight, bias, rest[-1])


def _log_probs_at_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    first, weight, bias, *head, ids, mask, temperature = inputs
    ctx.save_for_backward(first, weight, bias, ids, mask)
    ctx.head, ctx.temperature = head, temperature


def _log_probs_at_gradients(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
    first, weight, bias, ids, mask = ctx.saved_tensors
    wanted = [bool(want) for want in ctx.needs_input_grad[:3]]
    gradients = _log_probs_at_backward(
        first, weight, bias, *ctx.head, ids, mask, ctx.temperature, bar, wanted
    )
    return (*_given(gradients, wanted), *(None,) * 5)


_log_probs_at.register_autograd(_log_probs_at_gradients, setup_context=_log_probs_at_context)

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
