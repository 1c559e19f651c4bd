"""Maps of published tokenizers, where they are: ``make tokenizers`` fetches them."""

from __future__ import annotations

import time
from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from mlot._hf.made import standard_library_documents
from mlot.align import VocabularyMap, byte_ranges, pairs, text_positions, text_report
from tokenizer_cases import SENTENCES

FOLDER = Path(__file__).parents[2] / ".tokenizers"
#: Each is a student once and a teacher once.
PAIRS = [
    ("llama2", "llama3"),
    ("llama3", "gemma3"),
    ("gemma3", "qwen3"),
    ("qwen3", "gpt4o"),
    ("gpt4o", "llama2"),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="published tokenizers: make tokenizers"),
]


@cache
def published(name):
    return AutoTokenizer.from_pretrained(FOLDER / name)


@cache
def mapped(student, teacher):
    return VocabularyMap.from_tokenizers(published(student), published(teacher))


def _ranges(name, text):
    own = published(name)
    start = own.eos_token_id if own.bos_token_id is None else own.bos_token_id
    ids = own(text, add_special_tokens=False, verbose=False)["input_ids"]
    return byte_ranges(own, text, ids=[start, *ids, own.eos_token_id])


@pytest.mark.parametrize(("student", "teacher"), list(permutations([one for one, _ in PAIRS], 2)))
def test_nearly_every_position_is_served(student, teacher):
    texts = [*standard_library_documents()[:20], "\n".join(SENTENCES)]
    sides = [[_ranges(name, text) for text in texts] for name in (student, teacher)]
    made = text_report(*sides, texts, mapped(student, teacher))
    assert made.served_share >= 0.999, str(made)
    assert made.warnings == ()
    assert made.nothing == 0.0
    # Pieces of characters are not tokenized by vocabularies with byte fallback, and some normalise.
    assert made.canonical > 0.98
    # Ends that are paired, and do not correspond, are counted.
    paired = sum(len(pairs(*both)) for both in zip(*sides, strict=True))
    assert paired - made.reasons.get("end", 0) < made.served


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_rows_spell_the_text(student, teacher):
    vocabulary = mapped(student, teacher)
    text = "\n".join(SENTENCES)
    data = text.encode()
    mine, others = (_ranges(name, text) for name in (student, teacher))
    rows = text_positions(mine, others, text, vocabulary)
    for i, j, depth, start, low, high, _, following, chain in rows[:-1].tolist():
        word = vocabulary.teacher_bytes[int(others.ids[j + 1])]
        at = int(mine.starts[i + 1])
        assert data[at - depth : at] == word[:depth] or (word[:1] == b" " and depth > at)
        assert vocabulary.student_bytes[following] in (
            data[at:][: len(vocabulary.student_bytes[following])],
            b" " + data[at : int(mine.ends[i + 1])],
        )
        assert start <= low < high
        assert low <= vocabulary.rank[others.ids[j + 1]] < high
        assert (
            int(others.ends[j + chain]) >= int(mine.ends[i + 1]) > int(others.ends[j + chain - 1])
            or chain == 1
        )


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_canonical_tokens_are_those_of_the_students_tokenizer(student, teacher):
    vocabulary, own = mapped(student, teacher), published(student).backend_tokenizer
    lead = own.encode("\n", add_special_tokens=False).ids
    tried = 0
    for n in np.random.default_rng(0).integers(0, len(vocabulary), 500).tolist():
        word = vocabulary.teacher_bytes[int(vocabulary.order[n])]
        try:
            string = word.decode()
        except UnicodeDecodeError:
            continue
        ids = own.encode("\n" + string, add_special_tokens=False).ids
        if (string[:1].isspace() and string[:2] != " " + string.strip()[:1]) or ids[: len(lead)] != lead:
            continue
        spelled = [vocabulary.student_bytes[i] for i in ids[len(lead) :]]
        if b"".join(spelled) != word:
            continue
        low, high = vocabulary.offsets[n : n + 2]
        found = {d: i for d, i in enumerate(vocabulary.canonical[low:high].tolist()) if i >= 0}
        borders = np.cumsum([0, *map(len, spelled)])[:-1].tolist()
        assert found == dict(zip(borders, ids[len(lead) :], strict=True))
        tried += 1
    assert tried > 300


def test_a_vocabulary_is_mapped_to_itself():
    vocabulary = mapped("llama3", "llama3")
    assert np.array_equal(vocabulary.longest[vocabulary.offsets[:-1]], vocabulary.order)


def test_a_map_is_made_in_seconds_and_read_in_less(tmp_path):
    own, other = published("llama3"), published("qwen3")
    begin = time.perf_counter()
    made = VocabularyMap.from_tokenizers(own, other)
    took = time.perf_counter() - begin
    assert took < 60  # some five seconds on one free core
    made.save(tmp_path / "map")
    begin = time.perf_counter()
    read = VocabularyMap.load(tmp_path / "map")
    assert time.perf_counter() - begin < max(took, 1.0)
    assert np.array_equal(read.canonical, made.canonical)


@pytest.mark.parametrize("before", [0, 1, 3])
def test_gpt_4os_start_token_is_not_unknown_text(before):
    own = published("gpt4o")
    assert own.bos_token_id == own.unk_token_id
    text = "eeks e"
    inside = own(text, add_special_tokens=False)["input_ids"]
    made = byte_ranges(own, text, ids=[*[own.bos_token_id] * before, *inside])
    assert made.exact
    assert made.ends.tolist() == [*[0] * before, 1, 4, 6][: before + len(inside)]
