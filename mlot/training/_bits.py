"""Bits per byte of held-out text, summed over the batches of an evaluation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mlot import LinearHead, mask_from_labels
from mlot.backends.torch.ops import cross_entropy
from mlot.training._batch import Batch


def example_sums(source: Tensor | LinearHead, batch: Batch) -> Tensor:
    r"""Sums for each example of a batch: what evaluation needs, whatever the batches are.

    Args:
        source: the student's predictions ``(B, T, V)``.
        batch: the batch, labels unshifted.

    Returns:
        ``(B, 4)``: nats of all labels, their number, nats of the labels that stand for text, bytes of the
        text; -1 bytes where the batch does not say.
    """
    labels = batch.labels
    targets = torch.cat([labels[:, 1:], labels[:, :1]], dim=1)
    nats = cross_entropy(source, targets, mask_from_labels(labels))
    counted = nats[:, :-1]
    if batch.text_mask is not None:
        counted = counted * batch.text_mask[:, 1:]
    size = batch.target_bytes
    columns = (
        nats.sum(dim=1),
        labels[:, 1:].ne(-100).sum(dim=1),
        counted.sum(dim=1),
        torch.full_like(labels[:, 0], -1) if size is None else size,
    )
    return torch.stack([column.to(nats.dtype) for column in columns], dim=1)


def metrics_of(sums: list[Tensor], prefix: str) -> dict[str, float]:
    r"""Metrics of an evaluation from the sums of its examples.

    .. math:: \mathrm{bits\ per\ byte} = \frac{-\sum_i \log_2 p(x_i \mid x_{<i})}{\text{bytes of the text}}

    over the labels that stand for text. Tokens that are masked by -100, and those that end a turn, are in
    neither the bits nor the bytes.

    Args:
        sums: of all batches, as `example_sums` gives them.
        prefix: of the names.

    Returns:
        ``loss`` and ``ce``, both the mean cross-entropy of the labels in nats, and ``bits_per_byte``.
    """
    table = torch.cat(sums).double().cpu() if sums else torch.zeros(0, 4, dtype=torch.float64)
    nats, labels, text_nats, size = table.sum(dim=0).tolist()
    if not labels:
        return {}
    metrics = {f"{prefix}_loss": nats / labels, f"{prefix}_ce": nats / labels}
    if size > 0 and bool((table[:, 3] >= 0).all()):
        metrics[f"{prefix}_bits_per_byte"] = text_nats / math.log(2) / size
    return metrics
