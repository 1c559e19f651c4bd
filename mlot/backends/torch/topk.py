r"""Selection from the most likely tokens alone: everything is scattered into sums over the vocabulary.

With :math:`u(i)` the probability of each absent column at position :math:`i`, a column's mass is
:math:`\sum_i u(i) + \sum_{i\ \text{where kept}} (p(i) - u(i))`, so that nothing of size ``(B, T, V)`` is
made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlot._intervals import rounding
from mlot.backends.torch.rows import compute_dtype
from mlot.backends.torch.statistics import heaviest_columns
from mlot.topk import TopKLogprobs
from mlot.traces import Traces


@torch.no_grad()
def sparse_traces(
    source: TopKLogprobs, mask: Tensor, k: int, temperature: float, extra_temperatures: tuple[float, ...]
) -> Traces:
    """Traces of the k heaviest columns."""
    dtype = compute_dtype(source.logprobs.dtype)
    here = source.ids >= 0
    ids = source.ids.long().clamp(min=0).flatten(1)
    logs = source.logprobs.to(dtype).masked_fill(~here, -torch.inf)
    missing, absent = _missing(source, logs, here)
    ratio = source.temperature / temperature
    base = _normalizer(source, logs, missing, absent, temperature)
    log_probs = ratio * logs - base[..., None]
    log_absent = torch.full_like(base, -torch.inf)
    if source.tail == "uniform":
        log_absent = ratio * (missing / absent.clamp(min=1)).log() - base
    columns, mass = _heaviest(log_probs, log_absent, ids, here & mask[..., None], mask, source.shape[2], k)
    kept = _gathered(log_probs, log_absent, ids, here, columns, source.shape[2])
    normalizers = logs.new_zeros((*mask.shape, len(extra_temperatures)))
    for n, extra in enumerate(extra_temperatures):
        there = _normalizer(source, logs, missing, absent, extra)
        normalizers[..., n] = there - temperature / extra * base
    return Traces(
        columns,
        kept.masked_fill_(~mask[..., None], -torch.inf),
        normalizers.masked_fill_(~mask[..., None], 0),
        mass,
        mask,
        source.shape[2],
        temperature,
        extra_temperatures,
    )


def tempered(source: TopKLogprobs, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and log-probabilities at a temperature, ``(B, T, K)``, and what all others have, ``(B, T)``."""
    here = source.ids >= 0
    logs = source.logprobs.to(compute_dtype(source.logprobs.dtype)).masked_fill(~here, -torch.inf)
    missing, absent = _missing(source, logs, here)
    log_probs = source.temperature / temperature * logs
    log_probs -= _normalizer(source, logs, missing, absent, temperature)[..., None]
    rest = (1 - log_probs.double().exp().sum(-1)).to(logs.dtype).clamp_(min=0)
    return source.ids.long(), log_probs, rest.masked_fill(missing == 0, 0)


def _missing(source: TopKLogprobs, logs: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
    """Mass that is missing at each position, and the number of absent columns, infinite if not known."""
    missing = (1 - logs.double().exp().sum(-1)).to(logs.dtype)  # a small difference of large numbers
    absent = torch.full_like(missing, torch.inf)
    if source.vocab_size is not None:
        absent = source.vocab_size - here.sum(-1).to(missing.dtype)
    # What is below the rounding of the log-probabilities tells nothing.
    nothing = (missing <= rounding(torch.finfo(source.logprobs.dtype).eps)) | (absent == 0)
    return missing.masked_fill(nothing, 0), absent


def _normalizer(
    source: TopKLogprobs, logs: Tensor, missing: Tensor, absent: Tensor, temperature: float
) -> Tensor:
    """Logarithm of the sum of all p^r, r being the ratio of the temperatures, with the tail as supposed."""
    ratio = source.temperature / temperature
    if ratio == 1 and source.tail != "renormalize":
        return torch.zeros_like(missing)
    normalizer = (ratio * logs).logsumexp(-1) if logs.shape[-1] else torch.full_like(missing, -torch.inf)
    if source.tail == "uniform":
        each = missing / absent.clamp(min=1)
        normalizer = torch.logaddexp(normalizer, absent.log() + ratio * each.log())
    elif source.tail == "zero":
        least = logs.masked_fill(torch.isneginf(logs) & (source.ids < 0), 0)
        cap = least.amin(-1).exp() if logs.shape[-1] else torch.ones_like(missing)
        cap = torch.maximum(cap, missing / absent.clamp(min=1)).minimum(missing).clamp(min=1e-30)
        normalizer = torch.logaddexp(normalizer, missing.log() + (ratio - 1) * cap.log())
    return normalizer.masked_fill(torch.isneginf(normalizer), 0)


def _heaviest(
    log_probs: Tensor, log_absent: Tensor, ids: Tensor, here: Tensor, mask: Tensor, vocabulary: int, k: int
) -> tuple[Tensor, Tensor]:
    """Columns with the largest mass, and that mass."""
    everywhere = log_absent.exp().masked_fill(~mask, 0)
    above = (log_probs.exp() - everywhere[..., None]).masked_fill(~here, 0).flatten(1).double()
    sums = everywhere.double().sum(1, keepdim=True).repeat(1, vocabulary).scatter_add_(1, ids, above)
    sums = sums.clamp_(min=0).to(log_probs.dtype)  # rounding must not leave less than nothing
    columns = heaviest_columns(sums, k)
    return columns, sums.gather(1, columns)


def _gathered(
    log_probs: Tensor, log_absent: Tensor, ids: Tensor, here: Tensor, columns: Tensor, vocabulary: int
) -> Tensor:
    """Log-probabilities ``(B, T, k)``: each entry goes to its column's place, or past the last."""
    k = columns.shape[1]
    slots = torch.full((len(ids), vocabulary), k, device=ids.device)
    slots.scatter_(1, columns, torch.arange(k, device=ids.device).expand_as(columns))
    slot = slots.gather(1, ids).view(here.shape).masked_fill(~here, k)
    kept = log_absent[..., None].repeat(1, 1, k + 1)
    return kept.scatter_(2, slot, log_probs)[..., :k]
