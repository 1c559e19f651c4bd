"""Windows that a loader asks for are tokenised together, and are the same as one by one."""

import numpy as np
import pytest

pytest.importorskip("transformers")

from torch.utils.data import DataLoader

from mlot._examples import Example
from mlot.distill import Examples, Piece
from training_cases import TEXTS, chat_tokenizers

PIECES = [Piece(text, n, ends=bool(n % 2)) for n, text in enumerate(TEXTS)]


def make_examples(pieces):
    return Examples(pieces, *chat_tokenizers(), 64)


def test_windows_tokenised_together_are_those_tokenised_alone(monkeypatch):
    one, other = make_examples(PIECES), make_examples(PIECES)
    calls = []
    for ends, collator in one._collators.items():
        prepare = collator.prepare_batch
        monkeypatch.setattr(
            collator,
            "prepare_batch",
            lambda rows, ends=ends, prepare=prepare: calls.append((ends, len(rows))) or prepare(rows),
        )
    together = one.__getitems__([3, 0, 3, *range(len(PIECES))])
    assert sorted(calls) == [(False, len(PIECES) // 2), (True, len(PIECES) // 2)]
    for n, row in zip([3, 0, 3, *range(len(PIECES))], together, strict=True):
        assert row.keys() == other[n].keys()
        for name, value in other[n].items():
            assert np.array_equal(row[name], value), name


def test_a_loader_asks_for_a_batch_at_once(monkeypatch):
    examples = make_examples(PIECES)
    asked = []
    whole = Examples.__getitems__
    monkeypatch.setattr(
        Examples, "__getitems__", lambda self, indices: asked.append(list(indices)) or whole(self, indices)
    )
    batches = list(DataLoader(examples, batch_size=3, collate_fn=examples.collator))
    assert asked == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert sum(len(batch["input_ids"]) for batch in batches) == len(PIECES)


def test_the_record_that_cannot_be_read_is_named():
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "the cat"}]}
    bad = {"messages": [{"role": "user"}]}
    records = [Example(content, f"line {n}") for n, content in enumerate([good, bad, good])]
    pieces = [Piece("the cat", n, ends=True, record=record) for n, record in enumerate(records)]
    examples = make_examples(pieces)
    with pytest.raises(ValueError, match="^line 1: messages: expected messages with a role"):
        examples.__getitems__([0, 1, 2])
    assert len(examples.__getitems__([0, 2])) == 2
