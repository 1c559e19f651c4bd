"""Record what a model predicts, for ``tests/core/test_fitted_tail.py``: ``record_predictions.py MODEL FILE``.

The file holds, for a few positions of three texts, the likeliest 100 tokens and the traces of the whole
predictions. The one committed was made with SmolLM2-135M-Instruct (Apache 2.0, four-bit weights).
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import mlot

TEXTS = (
    "The committee met on Tuesday to discuss the proposal, which had been delayed twice because nobody",
    'def quicksort(items):\n    """Sort a list."""\n    if len(items) < 2:\n        return items\n    pivot',
    "Le chat est assis sur le tapis et regarde la pluie. 東京は日本の首都であり、世界最大級の都市",
)
POSITIONS, LISTED = 16, 100


def main(model: str, file: str, **settings: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model, **settings)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, **settings).eval()
    with torch.no_grad():
        encoded = [tokenizer(text, return_tensors="pt").input_ids[:, :POSITIONS] for text in TEXTS]
        log_probs = torch.cat([network(ids).logits for ids in encoded]).log_softmax(-1)
    top = log_probs.topk(LISTED)
    traces = mlot.select(log_probs, k=50, extra_temperatures=(2.0,))
    np.savez_compressed(
        file,
        ids=top.indices.numpy().astype(np.int32),
        logprobs=top.values.numpy(),
        columns=traces.columns.numpy(),
        traces=traces.log_probs.numpy(),
        normalizers=traces.log_normalizers.numpy(),
        mass=traces.column_mass.numpy(),
        vocab_size=log_probs.shape[-1],
    )


if __name__ == "__main__":
    main(*sys.argv[1:3], **dict(each.split("=", 1) for each in sys.argv[3:]))
