"""What is measured on held-out text: bits per byte, which no tokenizer changes."""

from __future__ import annotations

import math

import torch
from torch import nn

from benchmarks.efficacy.windows import Tokens

_READ_AT_ONCE = 64


@torch.no_grad()
def bits_per_byte(model: nn.Module, tokens: Tokens, bytes: int) -> float:
    r"""Negative log-likelihood of windows in bits, over the bytes of their text.

    .. math:: -\frac{1}{\text{bytes}} \sum_i \log_2 p(x_{i+1} \mid x_{\le i})

    Args:
        model: a causal language model.
        tokens: of the windows.
        bytes: of their text in UTF-8.
    """
    model.eval()
    nll = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(tokens), _READ_AT_ONCE):
        some = tokens[start : start + _READ_AT_ONCE]
        logits = model(input_ids=some.ids).logits[:, :-1].float()
        nll += (
            nn.functional.cross_entropy(logits.transpose(1, 2), some.labels[:, 1:], reduction="none")
            .double()
            .sum()
            .cpu()
        )
    return float(nll) / math.log(2) / bytes
