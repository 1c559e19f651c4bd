"""The likeliest tokens of each position of a model's predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlot.sources import Predictions
from mlot.topk import TopKLogprobs

if TYPE_CHECKING:
    import torch

#: Logits that are formed at once, in numbers.
_BLOCK = 1 << 24


def likeliest(source: Predictions, mask: torch.Tensor, *, k: int, temperature: float) -> TopKLogprobs:
    """The k likeliest tokens at the positions in ``mask``, likeliest first, some positions at a time."""
    import torch

    from mlot.backends.torch.rows import SourceLayout, compute_dtype

    layout = SourceLayout(source)
    rows = layout.rows(tuple(None if x is None else x.detach() for x in layout.tensors))
    dtype, vocabulary = compute_dtype(rows.dtype), int(source.shape[2])
    ids = torch.full((*mask.shape, k), -1, device=mask.device)
    log_probs = torch.full(ids.shape, -torch.inf, dtype=dtype, device=mask.device)
    b, t = mask.nonzero(as_tuple=True)
    room = max(1, _BLOCK // vocabulary)
    for start in range(0, len(b), room):
        where = b[start : start + room], t[start : start + room]
        top = (rows.read(where).to(dtype) / temperature).log_softmax(-1).topk(k)
        ids[where], log_probs[where] = top.indices, top.values
    return TopKLogprobs.trusted(ids, log_probs, vocab_size=vocabulary, temperature=temperature)
