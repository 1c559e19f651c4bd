"""Bits per byte: how well a model predicts held-out text, comparable between tokenizers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mlot.distill.data import Side, Window, pad, tokens_of


@dataclass(frozen=True, eq=False)
class Score:
    """Bits that a model needs for each document, and the documents' sizes.

    Attributes:
        bits: negative log-likelihood of the document's tokens in bits, ``(D,)``.
        sizes: bytes of the document in UTF-8, ``(D,)``.
    """

    bits: NDArray[np.float64]
    sizes: NDArray[np.float64]

    @property
    def bits_per_byte(self) -> float:
        """Bits of all documents over bytes of all documents."""
        return float(self.bits.sum() / self.sizes.sum())


@torch.no_grad()
def evaluate_bits(
    model: nn.Module, windows: Sequence[Window], side: Side, pad_token_id: int, batch_size: int
) -> Score:
    r"""Measure the bits that a model needs for the text of some windows.

    .. math:: \mathrm{bits} = -\sum_i \log_2 p(x_i \mid x_{<i})

    over the tokens after the first, which only starts the text; together they stand for all of the window's
    text. Tokenizers cut the same text into different numbers of tokens, but its bytes are the same for all.

    Args:
        model: a causal language model; it is in evaluation mode meanwhile, and afterwards as it was.
        windows: made with ``mark_end=False``, so that every token stands for text.
        side: whose tokens the model reads.
        pad_token_id: what to pad with.
        batch_size: windows read at once; it changes nothing but speed and memory.

    Returns:
        `Score`, documents in the order of their index.

    Raises:
        ValueError: there are no windows.
    """
    if not windows:
        raise ValueError("windows: expected at least one, got none")
    documents = sorted({window.document for window in windows})
    place = {document: n for n, document in enumerate(documents)}
    bits, sizes = np.zeros(len(documents)), np.zeros(len(documents))
    device = next(model.parameters()).device
    # windows of like length together: less padding
    order = sorted(range(len(windows)), key=lambda n: len(tokens_of(windows[n], side)))
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            some = [windows[n] for n in order[start : start + batch_size]]
            batch = {
                name: tensor.to(device)
                for name, tensor in pad([tokens_of(w, side) for w in some], pad_token_id).items()
            }
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[
                :, :-1
            ]
            targets = batch["labels"][:, 1:]
            nll = nn.functional.cross_entropy(
                logits.to(torch.promote_types(logits.dtype, torch.float32)).transpose(1, 2),
                targets,
                reduction="none",
                ignore_index=-100,
            )
            for window, value in zip(some, nll.double().sum(dim=1).tolist(), strict=True):
                bits[place[window.document]] += value / math.log(2)
                sizes[place[window.document]] += len(window.text.encode("utf-8"))
    finally:
        model.train(training)
    return Score(bits, sizes)


def difference_interval(
    first: Score, second: Score, *, seed: int = 0, draws: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap interval, over documents, of first minus second in bits per byte.

    It says how much of a difference the choice of held-out documents can explain. It does not speak of other
    seeds or other training text.

    Args:
        first: score of one model.
        second: score of another on the same documents.
        seed: of the draws.
        draws: number of resamples.
        level: share of them inside the interval.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: the scores are of different documents.
    """
    if not np.array_equal(first.sizes, second.sizes):
        raise ValueError("second: expected a score on the documents of first, got one on others")
    rng = np.random.default_rng(seed)
    count = len(first.sizes)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    differences = weights @ (first.bits - second.bits) / (weights @ first.sizes)
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
