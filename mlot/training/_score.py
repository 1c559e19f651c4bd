"""Bits per byte: how well a model predicts held-out text, comparable between tokenizers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from mlot._hf.heads import evaluating
from mlot.training._batch import Batch
from mlot.training._bits import example_sums
from mlot.training._windows import Examples


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
def evaluate_bits(model: nn.Module, examples: Examples, batch_size: int) -> Score:
    r"""Measure the bits that a model needs for the text of some examples.

    .. math:: \mathrm{bits} = -\sum_i \log_2 p(x_i \mid x_{<i})

    over the tokens that stand for text that there is to learn: those of prompts, and those that start and end
    a text, are left out. Tokenizers cut the same text into different numbers of tokens, but its bytes are the
    same for all.

    Args:
        model: a causal language model; it is in evaluation mode meanwhile, and afterwards as it was.
        examples: in the tokens of the model.
        batch_size: examples read at once; it changes nothing but speed and memory.

    Returns:
        `Score`, documents in the order of their index.

    Raises:
        ValueError: there are no examples.
    """
    if not len(examples):
        raise ValueError("examples: expected at least one, got none")
    documents = sorted({piece.document for piece in examples.pieces})
    row = {document: n for n, document in enumerate(documents)}
    bits, sizes = np.zeros(len(documents)), np.zeros(len(documents))
    device = next(model.parameters()).device
    # those of like length together: less padding
    order = sorted(range(len(examples)), key=lambda n: len(examples[n]["input_ids"]))
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            some = order[start : start + batch_size]
            made = examples.collator([examples[n] for n in some])
            batch = Batch.of({name: tensor.to(device) for name, tensor in made.items()})
            sums = example_sums(model(**batch.student).logits, batch).double().tolist()
            for n, (_, _, nats, size) in zip(some, sums, strict=True):
                bits[row[examples.pieces[n].document]] += nats / math.log(2)
                sizes[row[examples.pieces[n].document]] += size
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
    drawn = stats.bootstrap(
        (first.bits - second.bits, first.sizes),
        lambda bits, sizes, axis: bits.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        n_resamples=draws,
        batch=max(1, 10**7 // len(first.sizes)),
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)
