"""Cases of the plan from the text over a sharded vocabulary, for four processes."""

import numpy as np
import torch

import distributed_launch
import mlot
from mlot.align import TokenBytes, VocabularyMap, text_positions
from vocabulary_shards import STUDENT, TEACHER, close, gradients, head, leaves, mine, problem, shard

CONFIG = mlot.MultiLevelOTConfig(k=5, matching="text", had_weight=0.4, sl_weight=1.0, sd_weight=0.2, n_iter=3)


def _text() -> mlot.TextPositions:
    """Three texts of letters, cut at random for two vocabularies of the problem's sizes."""
    rng = np.random.default_rng(0)
    letters = [bytes([97 + n]) for n in range(4)]
    vocabularies = []
    for size in (sum(STUDENT), sum(TEACHER)):
        words = [None, *letters]
        while len(words) < size:
            words.append(b"".join(rng.choice(letters, size=rng.integers(2, 4)).tolist()))
        vocabularies.append(words)
    vocabulary = VocabularyMap.from_bytes(*vocabularies)
    rows, ids = [], np.zeros((3, 8), np.int64)
    for n, (lengths, size) in enumerate((((6, 8), 10), ((5, 7), 9), ((6, 6), 8))):
        text = b"".join(rng.choice(letters, size=size).tolist())
        sides = []
        for words, length in zip(vocabularies, lengths, strict=True):
            tokens, starts, at = [0], [0], 0
            while at < size and len(tokens) < length:
                fits = [w for w in range(1, len(words)) if text.startswith(words[w], at)]
                token = int(rng.choice(fits))
                tokens.append(token)
                starts.append(at)
                at += len(words[token])
            ends = [0, *starts[2:], at]
            special = [True] + [False] * (len(tokens) - 1)
            sides.append(TokenBytes(tokens, starts, ends, special, size))
        ids[n, : len(sides[1])] = sides[1].ids
        rows.append(text_positions(*sides, text, vocabulary))
    width = max(map(len, rows))
    table = np.stack([np.pad(each, [(0, width - len(each)), (0, 0)], constant_values=-1) for each in rows])
    return mlot.TextPositions(torch.from_numpy(table), torch.from_numpy(ids), vocabulary.plan("longest"))


def the_text_s_plan_is_that_of_the_whole(rank: int, world: int) -> None:
    whole, text = problem(), _text()
    kinds = (whole["student"], whole["teacher"]), (head(25, 6, 1), head(31, 8, 2))
    for pair in kinds:
        for shards in ("s", "t", "st"):
            _same(rank, pair, shards, text)


def _same(rank: int, pair: tuple, shards: str, text: mlot.TextPositions) -> None:
    whole = tuple(leaves(source) for source in pair)
    want = mlot.multi_level_ot(*whole, text=text, config=CONFIG, reduction="sum")
    assert want.had > 0
    want.loss.backward()
    parts = [
        shard(source, rank, widths) if which in shards else leaves(source)
        for which, source, widths in zip("st", pair, (STUDENT, TEACHER), strict=True)
    ]
    got = mlot.multi_level_ot(*parts, text=text, config=CONFIG, reduction="sum")
    got.loss.backward()
    for name in ("loss", "had", "sl", "sd"):
        close(getattr(got, name), getattr(want, name))
    expected = mine(whole[0], rank, STUDENT) if "s" in shards else gradients(whole[0])
    for ours, theirs in zip(gradients(parts[0]), expected, strict=True):
        close(ours, theirs)


if __name__ == "__main__":
    distributed_launch.main(__file__, globals())
