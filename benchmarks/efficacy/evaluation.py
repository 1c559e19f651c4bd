"""What is measured on held-out text: bits per byte, and words completed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from benchmarks.efficacy.windows import Tokens, Words

_READ_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out windows in one side's tokens.

    Attributes:
        tokens: the windows.
        words: their words.
        cloze: rows of the cloze test, see `benchmarks.efficacy.windows.cloze`.
        bytes: of their text in UTF-8.
    """

    tokens: Tokens
    words: Words
    cloze: Tokens
    bytes: int


@torch.no_grad()
def measure(model: nn.Module, held_out: HeldOut) -> dict[str, float]:
    r"""Measure a model on held-out windows.

    ``bits_per_byte``: negative log-likelihood in bits of all tokens, over the bytes of their text.

    ``word_accuracy``: share of the words that greedy decoding completes exactly. A word is a space and at
    least two letters. Given the window's true text before the space, the model writes its most probable token
    until the word is over; it is right if it wrote the word in its tokenizer's own tokens and then went on
    with something that is no letter. Bytes are compared, so tokenizers can be.

    ``cloze_accuracy``: share of drawn words to which the model, given the window's text before, gives a
    higher probability than to each of three other words of the held-out text; the probability of a word is
    that of its tokens. By chance it would be 0.25.

    Args:
        model: a causal language model.
        held_out: the windows.
    """
    device = next(model.parameters()).device
    model.eval()
    nll, predicted = _read(model, held_out.tokens.to(device))
    candidates, _ = _read(model, held_out.cloze.to(device))
    first, *others = candidates.reshape(-1, 4).T
    return {
        "bits_per_byte": float(nll.sum()) / math.log(2) / held_out.bytes,
        "word_accuracy": _word_accuracy(predicted, held_out),
        "cloze_accuracy": float(np.mean([first < np.min(others, axis=0)])) if len(first) else 0.0,
    }


def _read(model: nn.Module, tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood of each row's labels, and the most probable token after each but the last."""
    found, best = [], []
    for ids, labels in zip(tokens.ids.split(_READ_AT_ONCE), tokens.labels.split(_READ_AT_ONCE), strict=True):
        logits = model(input_ids=ids).logits[:, :-1].float()
        nll = nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
        found.append(nll.double().sum(1).cpu())
        best.append(logits.argmax(-1).cpu())
    return torch.cat(found).numpy(), torch.cat(best).numpy()


def _word_accuracy(predicted: np.ndarray, held_out: HeldOut) -> float:
    """Share of words whose every token is the most probable one, and after which no letter is.

    ``predicted[n, i]`` is the token most probable after the first ``i + 1`` of window ``n``.
    """
    right = predicted == held_out.tokens.ids[:, 1:].cpu().numpy()
    wrong_before = np.concatenate([np.zeros((len(right), 1), int), np.cumsum(~right, axis=1)], axis=1)
    window, first, after = held_out.words.spans.T
    written = wrong_before[window, after - 1] == wrong_before[window, first - 1]
    ended = ~held_out.words.continues.numpy()[predicted[window, after - 1]]
    return float((written & ended).mean()) if len(window) else 0.0
