r"""Selection from the most likely tokens alone: everything is scattered into sums over the vocabulary.

With :math:`u(i)` the probability of each absent column at position :math:`i`, a column's mass is
:math:`\sum_i u(i) + \sum_{i\ \text{where kept}} (p(i) - u(i))`, so that nothing of size ``(B, T, V)`` is
made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlot._intervals import SUPPOSED_VOCABULARY, rounding
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
    elif source.tail != "renormalize":
        here = source.ids >= 0
        kept = here.sum(-1).double()
        least = logs.masked_fill(~here, 0).amin(-1).exp() if logs.shape[-1] else torch.ones_like(missing)
        if source.tail == "fitted" and source.vocab_size is None:
            needed = missing / least.clamp(min=1e-30)
            absent = (SUPPOSED_VOCABULARY - kept).to(missing.dtype).maximum(needed)
        cap = torch.maximum(least, missing / absent.clamp(min=1))
        tail = missing.log() + (ratio - 1) * cap.minimum(missing).clamp(min=1e-30).log()
        if source.tail == "fitted":
            spread = absent.log() + ratio * (missing / absent.clamp(min=1)).log()
            none = missing == 0
            log_mass, log_cap = (x.double().masked_fill(none, 1).log() for x in (missing, cap))
            fitted = _power_law(log_mass, log_cap, kept.clamp(min=1), absent.clamp(min=1).double(), ratio)
            fitted = fitted.to(tail.dtype).maximum(tail.minimum(spread)).minimum(tail.maximum(spread))
            tail = fitted.masked_fill(none, -torch.inf)
        normalizer = torch.logaddexp(normalizer, tail)
    return normalizer.masked_fill(torch.isneginf(normalizer), 0)


def _power_law(log_mass: Tensor, log_cap: Tensor, kept: Tensor, absent: Tensor, ratio: float) -> Tensor:
    """Logarithm of the sum of the absent columns' powers, which fall off as a power of their rank.

    As in `mlot.backends.numpy.topk`: Newton's method from the left on a convex function.
    """
    low = ((kept + 0.5) / kept).log()
    width = ((kept + absent + 0.5) / (kept + 0.5)).log()

    def log_sum(s: Tensor) -> tuple[Tensor, Tensor]:
        e = 1 - s
        near = (e * width).abs() < 1e-4
        some = e.masked_fill(near, 1)
        value = torch.where(near, width.log() + e * width / 2, (torch.expm1(some * width) / some).log())
        slope = torch.where(
            near, width / 2 + e * width**2 / 12, -width / torch.expm1(-some * width) - 1 / some
        )
        return kept.log() + e * low + value, -low - slope

    s = torch.zeros_like(log_mass)
    for _ in range(12):
        value, slope = log_sum(s)
        s = (s - (log_cap + value - log_mass) / slope).clamp(min=0)
    return ratio * log_cap + log_sum(ratio * s)[0]


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
