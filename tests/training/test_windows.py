"""Text made on the spot, documents and their split, and windows of text for two tokenizers."""

import copy
import json
import random
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")

from mlot._examples import Example
from mlot._hf.made import standard_library_documents, train_bpe, train_unigram
from mlot._hf.tokenizers import token_ids
from mlot.distill import DistillError, Examples, Piece, make_pieces
from mlot.distill.setup import read_documents
from mlot.training._corpus import split_corpus, split_text

TEXTS = [
    "Return the sum of a sequence.\n\n    >>> total([1, 2, 3])\n    6\n",
    "Räume — naïve café ☃\tdone 🤖\r\nnext line\n",
    "a" * 300,
    "one two three four five six seven eight nine ten " * 20,
]


@pytest.fixture(scope="module")
def tokenizers():
    """A student's and a teacher's tokenizer."""
    return train_unigram(TEXTS, 300, 64), train_bpe(TEXTS, 320, 64)


# -- text ------------------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path):
    """A little standard library."""
    files = {
        "b.py": '"""Module b."""\ndef f():\n    """Shared."""\nclass C:\n    """Class C."""\n    def m(self):\n        """Method."""\n',
        "a.py": '"""Module a."""\ndef g():\n    """Shared."""\n',
        "package/c.py": 'async def h():\n    """Coroutine\n    of two lines."""\n',
        "package/tests/d.py": '"""A test."""\n',
        "test/e.py": '"""A test."""\n',
        "idlelib/f.py": '"""An editor."""\n',
        "site-packages/g.py": '"""Foreign."""\n',
        "broken.py": '"""Broken."""\ndef (:\n',
        "escape.py": '"""Old escape \\d."""\n',
        "surrogate.py": 'def f():\n    """\\ud800"""\n',
        "silent.py": "x = 1\n",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return tmp_path


def test_documents_of_a_library(library):
    assert standard_library_documents(library) == [
        "Module a.\n\nShared.\n",
        "Module b.\n\nClass C.\n\nMethod.\n",
        "Old escape \\d.\n",
        "Coroutine\nof two lines.\n",
    ]


@pytest.mark.slow
def test_documents_of_the_standard_library_are_many_and_repeat():
    documents = standard_library_documents()
    assert len(documents) > 300
    assert len(set(documents)) == len(documents)
    assert any("heap" in text for text in documents)
    part = Path(sysconfig.get_path("stdlib")) / "email"
    assert standard_library_documents(part) == standard_library_documents(part)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_split_is_disjoint_complete_and_repeats(share):
    documents = [f"document {n} " * (n + 1) for n in range(30)]
    corpus = split_corpus(documents, share, 5)
    train, held_out = ([each.text for each in part] for part in (corpus.train, corpus.held_out))
    assert set(train).isdisjoint(held_out)
    assert sorted(train + held_out) == sorted(documents)
    again = split_corpus(documents, share, 5)
    assert (train, held_out) == ([e.text for e in again.train], [e.text for e in again.held_out])
    assert corpus.train
    assert corpus.held_out


def test_split_depends_on_the_seed_and_holds_out_the_share():
    documents = [f"{n:04d}" * 25 for n in range(100)]
    first, second = split_corpus(documents, 0.2, 0), split_corpus(documents, 0.2, 1)
    assert first.train_texts != second.train_texts
    assert len(first.held_out) == len(second.held_out) == 20


def test_split_keeps_equal_documents_on_one_side():
    corpus = split_corpus(["same", "same", "other", "same"], 0.5, 0)
    assert sorted(each.text for each in corpus.train + corpus.held_out) == ["other", "same"]


def test_split_needs_two_documents():
    with pytest.raises(ValueError, match=r"text: expected at least two documents.*got 1"):
        split_corpus(["same", "same"], 0.1, 0)


def test_text_is_cut_at_blank_lines_and_long_runs_at_line_ends():
    rng = random.Random(0)
    lines = ["word " * rng.randrange(1, 30) + "\n" if rng.random() < 0.8 else "\n" for _ in range(2000)]
    text = "".join(lines) + "last line without an end"
    documents = split_text(text)
    assert "".join(documents) == text
    assert len(documents) > 20
    for document in documents[:-1]:
        assert document.endswith("\n\n") or len(document) >= 4000
        assert len(document) >= 1000
    run = "".join(f"line {n} of a text without blank lines\n" for n in range(500))
    documents = split_text(run)
    assert "".join(documents) == run
    assert all(4000 <= len(document) < 4050 for document in documents[:-1])


def test_blank_rest_stays_with_the_last_document():
    text = "x" * 1000 + "\n\n" + "\n\n"
    assert split_text(text) == [text]


def test_file_is_read_as_utf8(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("Größe\r\nzwei\n".encode())
    assert [document.text for document in read_documents([path])] == ["Größe\nzwei\n"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "expected a file, found none at"), (b" \n\t\n", "is empty"), (b"\xff\xfe\x00", "expected UTF-8")],
)
def test_files_that_give_no_text(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DistillError, match=f"--text: .*{message}"):
        read_documents([path])


# -- tokenizers ------------------------------------------------------------------------------------------


def test_tokenizers_differ_and_write_any_text(tokenizers):
    student, teacher = tokenizers
    unseen = "Zürich \x00\x7f 漢字 e\u0301 <0x0A> ▁ \n\n\t end "
    for tokenizer in tokenizers:
        for text in [*TEXTS, unseen]:
            assert tokenizer.decode(token_ids(tokenizer, [text])[0]) == text
        assert [tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token] == ["<pad>", "<s>", "</s>"]
        assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [0, 1, 2]
    assert token_ids(student, [TEXTS[0]]) != token_ids(teacher, [TEXTS[0]])
    assert type(student.backend_tokenizer.model).__name__ == "Unigram"
    assert type(teacher.backend_tokenizer.model).__name__ == "BPE"


@pytest.mark.parametrize("train", [train_bpe, train_unigram])
def test_tokenizers_are_the_same_each_time(train):
    first, second = (train(TEXTS, 320, 64).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_tokenizers_keep_to_their_size(tokenizers):
    student, teacher = tokenizers
    assert 259 < len(student) <= 300
    assert 259 < len(teacher) <= 320


# -- pieces ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [8, 17, 64])
def test_pieces_fit_and_join_to_the_documents(tokenizers, length):
    student, teacher = tokenizers
    pieces = make_pieces(TEXTS, student, teacher, length)
    assert ["".join(p.text for p in pieces if p.document == n) for n in range(len(TEXTS))] == TEXTS
    assert [p.document for p in pieces] == sorted(p.document for p in pieces)
    examples = Examples(pieces, student, teacher, length)
    whole = examples.drop_empty()
    assert (whole.cut, whole.empty, examples.pieces) == (0, 0, pieces)
    for n, piece in enumerate(pieces):
        last = n + 1 == len(pieces) or pieces[n + 1].document != piece.document
        assert piece.ends == last
        for tokenizer, prefix in ((student, ""), (teacher, "teacher_")):
            ids = list(examples[n][prefix + "input_ids"])
            assert len(ids) <= length
            assert ids[0] == tokenizer.bos_token_id
            assert (ids[-1] == tokenizer.eos_token_id) == last
            assert (ids[1:-1] if last else ids[1:]) == token_ids(tokenizer, [piece.text])[0]
            assert list(examples[n][prefix + "labels"]) == [-100, *ids[1:]]
        assert examples[n]["target_bytes"] == len(piece.text.encode())
        assert sum(examples[n]["text_mask"]) == len(examples[n]["input_ids"]) - 1 - last


def test_pieces_are_well_filled(tokenizers):
    # words of at most 7 tokens: a piece that another word would fit into is an error
    pieces = make_pieces([TEXTS[3]], *tokenizers, 64)
    for piece in pieces[:-1]:
        assert max(len(token_ids(t, [piece.text])[0]) for t in tokenizers) + 2 > 64 - 2 - 7


def test_pieces_to_measure_with_end_nowhere(tokenizers):
    assert not any(piece.ends for piece in make_pieces(TEXTS, *tokenizers, 32, mark_end=False))


def test_piece_too_small_for_a_character():
    with pytest.raises(ValueError, match="length: expected room for the tokens of any one character, got 4"):
        make_pieces(["🤖"], train_bpe(["abc"], 259, 8), train_bpe(["abc"], 259, 8), 4)


def test_both_orders_of_the_tokenizers_have_the_same_tokens_and_text(tokenizers):
    student, teacher = tokenizers
    pieces = make_pieces(TEXTS, student, teacher, 24)
    one, other = Examples(pieces, student, teacher, 24), Examples(pieces, teacher, student, 24)
    for n in range(len(pieces)):
        np.testing.assert_array_equal(one[n]["input_ids"], other[n]["teacher_input_ids"])
        np.testing.assert_array_equal(one[n]["teacher_labels"], other[n]["labels"])
        np.testing.assert_array_equal(one[n]["pairs"][:, ::-1], other[n]["pairs"])
        assert one[n]["target_bytes"] == other[n]["target_bytes"]


def test_pairs_have_read_the_same_text(tokenizers):
    student, teacher = tokenizers
    pieces = make_pieces(TEXTS[:2], student, teacher, 40)
    examples = Examples(pieces, student, teacher, 40)
    for n in range(len(pieces)):
        row = examples[n]
        read = [
            (student.decode(row["input_ids"][1 : i + 1]), teacher.decode(row["teacher_input_ids"][1 : j + 1]))
            for i, j in row["pairs"]
        ]
        assert all(one == other for one, other in read)
        ends = []
        for tokenizer, name in ((student, "input_ids"), (teacher, "teacher_input_ids")):
            # positions whose prefix is whole characters and that predict a token
            texts = {tokenizer.decode(row[name][1 : m + 1]) for m in range(len(row[name]) - 1)}
            ends.append({text for text in texts if "\ufffd" not in text})
        # nothing that both have read is left out
        assert {one for one, _ in read if "\ufffd" not in one} == ends[0] & ends[1]


def test_keys_are_those_of_a_saved_teacher(tokenizers):
    from mlot.saved import example_key

    pieces = make_pieces(TEXTS, *tokenizers, 24)
    plain = Examples(pieces, *tokenizers, 24)
    keyed = plain.with_keys()
    for n, (ids, mask) in enumerate(plain.collator.teacher_examples(plain)):
        assert keyed[n]["teacher_key"] == example_key(ids, mask)
    assert "teacher_keys" in keyed.collator([keyed[0], keyed[1]])


# -- records ---------------------------------------------------------------------------------------------

RECORDS = [
    {"text": "one two three four five six " * 10, "id": 7},
    {"prompt": "What is five?", "completion": " A number."},
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]},
    {
        "prompt": [{"role": "user", "content": "Bye"}],
        "completion": [{"role": "assistant", "content": "Bye."}],
    },
    {"prompt": "Say nothing.", "completion": " "},
]


def write_records(path, records):
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records) + "\n\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["text.jsonl", "text.NDJSON"])
def test_records_of_a_file(tmp_path, name):
    records = read_documents([write_records(tmp_path / name, [*RECORDS, RECORDS[1]])])
    lines = [int(record.where.split()[2]) for record in records]
    assert lines == [1, 2, 3, 4, 6]  # in the fifth there is nothing to learn
    assert [record.text for record in records] == [
        RECORDS[0]["text"], " A number.", "Good day.", "Bye.", " A number."
    ]  # fmt: skip
    assert [record.plain for record in records] == [True, False, False, False, False]
    assert records[1].identity == records[4].identity != records[2].identity
    corpus = split_corpus(records, 0.3, 0)
    assert len(corpus.train) + len(corpus.held_out) == 4
    assert {r.identity for r in corpus.train}.isdisjoint(r.identity for r in corpus.held_out)
    assert set(corpus.train_texts) == {record.text for record in corpus.train}


def test_records_without_anything_to_learn(tmp_path):
    path = write_records(tmp_path / "text.jsonl", [RECORDS[4], {"text": ""}])
    with pytest.raises(DistillError, match="--text: expected some text to learn, but .* has none"):
        read_documents([path])


def test_records_become_examples(tokenizers, tmp_path):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    student, teacher = (copy.deepcopy(tokenizer) for tokenizer in tokenizers)
    student.chat_template = teacher.chat_template = template
    records = read_documents([write_records(tmp_path / "text.jsonl", RECORDS)])
    pieces = make_pieces(records, student, teacher, 48)
    texts = [piece for piece in pieces if piece.record is None]
    assert "".join(piece.text for piece in texts) == RECORDS[0]["text"]
    assert len(texts) > 1
    rest = pieces[len(texts) :]
    assert [piece.record for piece in rest] == records[1:]
    examples = Examples(pieces, student, teacher, 48)
    assert examples.drop_empty().cut == 0
    for n, piece in enumerate(rest, start=len(texts)):
        row = examples[n]
        learnt = [i for i, m in zip(row["input_ids"], row["text_mask"], strict=True) if m]
        # a space that the template puts before an answer is in its first token
        assert student.decode(learnt) in (piece.text, f" {piece.text}")
        assert row["labels"][1] == -100


def test_what_is_too_long_is_cut_and_what_is_left_empty_dropped(tokenizers):
    long = {"prompt": "one ", "completion": "two three four five " * 8}
    hopeless = {"prompt": "one two three four " * 30, "completion": "five"}
    made = [
        Piece(r["completion"], n, True, Example(r, str(n)))
        for n, r in enumerate([long, hopeless, {"prompt": "one ", "completion": "two"}])
    ]
    examples = Examples(made, *tokenizers, 24)
    cut = examples.drop_empty()
    assert (cut.examples, cut.cut, cut.empty) == (3, 2, 1)
    assert cut.cut_bytes > 100
    assert [piece.document for piece in examples.pieces] == [0, 2]
    assert max(len(examples[n]["input_ids"]) for n in range(2)) <= 24


def test_a_record_that_a_tokenizer_cannot_take_is_named(tokenizers):
    record = Example(RECORDS[2], "--text: line 12")
    examples = Examples([Piece(record.text, 0, True, record)], *tokenizers, 24)
    with pytest.raises(ValueError, match="--text: line 12: student_tokenizer: expected a chat template"):
        examples.drop_empty()


def test_without_transformers_the_error_says_what_to_install():
    code = "import sys; sys.modules['transformers'] = None; import mlot; import mlot.distill"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        'ImportError: mlot.distill needs transformers, not installed here; pip install "mlot[demo]"'
        in done.stderr
    )
