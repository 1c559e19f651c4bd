"""The example trainer's text, tokenizers, windows and batches."""

import random
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlot.distill import Collator, DistillError, PairCollator, PrefixPairs, Window, make_windows
from mlot.distill.text import read_documents, split_corpus, split_text, standard_library_documents
from mlot.distill.vocabularies import complete, start_token, token_ids, train_bpe, train_unigram

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
    assert set(corpus.train).isdisjoint(corpus.held_out)
    assert sorted(corpus.train + corpus.held_out) == sorted(documents)
    assert corpus.train
    assert corpus.held_out
    assert corpus == split_corpus(documents, share, 5)


def test_split_depends_on_the_seed_and_holds_out_the_share():
    documents = [f"{n:04d}" * 25 for n in range(100)]
    first, second = split_corpus(documents, 0.2, 0), split_corpus(documents, 0.2, 1)
    assert first != second
    assert len(first.held_out) == len(second.held_out) == 20


def test_split_keeps_equal_documents_on_one_side():
    corpus = split_corpus(["same", "same", "other", "same"], 0.5, 0)
    assert sorted(corpus.train + corpus.held_out) == ["other", "same"]


def test_split_needs_two_documents():
    with pytest.raises(DistillError, match=r"--text: expected at least two documents.*got 1"):
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
    assert read_documents(path) == ["Größe\nzwei\n"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "expected a file, found none at"), (b" \n\t\n", "is empty"), (b"\xff\xfe\x00", "expected UTF-8")],
)
def test_files_that_give_no_text(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DistillError, match=f"--text: .*{message}"):
        read_documents(path)


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


def _bare(**special):
    tokenizer = Tokenizer(
        models.WordLevel({"a": 0, "b": 1, "<e>": 2, "<p>": 3, "[UNK]": 4}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def test_missing_pad_and_bos_are_made_up_for_with_a_notice():
    tokenizer = _bare(eos_token="<e>")
    notices = complete(tokenizer, "--student")
    assert tokenizer.pad_token_id == 2
    assert start_token(tokenizer) == 2
    assert notices == [
        "--student: the tokenizer has no pad token; its eos token '<e>' pads",
        "--student: the tokenizer has no bos token; texts start with its eos token",
    ]
    whole = _bare(eos_token="<e>", pad_token="<p>", bos_token="a")
    assert complete(whole, "--student") == []
    assert (whole.pad_token_id, start_token(whole)) == (3, 0)


def test_tokenizer_without_special_tokens_is_refused():
    with pytest.raises(DistillError, match="--teacher: expected a tokenizer with an eos token"):
        complete(_bare(), "--teacher")
    with pytest.raises(DistillError, match="--teacher: expected a tokenizer with an eos token"):
        complete(_bare(bos_token="<e>"), "--teacher")
    assert complete(_bare(bos_token="<e>", pad_token="<p>"), "--teacher") == []


# -- windows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [8, 17, 64])
def test_windows_fit_and_join_to_the_documents(tokenizers, length):
    student, teacher = tokenizers
    windows = make_windows(TEXTS, student, teacher, length)
    joined = ["".join(w.text for w in windows if w.document == n) for n in range(len(TEXTS))]
    assert joined == TEXTS
    assert [w.document for w in windows] == sorted(w.document for w in windows)
    for n, window in enumerate(windows):
        last = n + 1 == len(windows) or windows[n + 1].document != window.document
        for tokenizer, ids in ((student, window.student), (teacher, window.teacher)):
            assert len(ids) <= length
            text = ids[1:-1] if last else ids[1:]
            assert ids[0] == tokenizer.bos_token_id
            assert (ids[-1] == tokenizer.eos_token_id) == last
            assert list(text) == token_ids(tokenizer, [window.text])[0]


def test_windows_are_well_filled(tokenizers):
    # words of at most 7 tokens: a window that another word would fit into is an error
    windows = make_windows([TEXTS[3]], *tokenizers, 64)
    assert all(max(len(w.student), len(w.teacher)) > 64 - 2 - 7 for w in windows[:-1])


def test_windows_to_measure_with_end_nowhere(tokenizers):
    student, teacher = tokenizers
    windows = make_windows(TEXTS, student, teacher, 32, mark_end=False)
    assert all(
        student.eos_token_id not in w.student and teacher.eos_token_id not in w.teacher for w in windows
    )


def test_window_too_small_for_a_character(tokenizers):
    with pytest.raises(
        DistillError, match="--length: expected room for the tokens of any one character, got 4"
    ):
        make_windows(["🤖"], train_bpe(["abc"], 259, 8), train_bpe(["abc"], 259, 8), 4)


# -- batches ---------------------------------------------------------------------------------------------

WINDOWS = [
    Window("first", 0, (1, 7, 0, 2), (1, 5)),  # the student's text holds token 0, which also pads
    Window("second", 1, (1, 9), (1, 5, 6, 9, 2)),
]


def test_pair_collator_pads_and_masks_each_side_by_itself():
    batch = PairCollator(0, 2)(WINDOWS)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[1, 7, 0, 2], [1, 9, 0, 0]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]],
        "labels": [[-100, 7, 0, 2], [-100, 9, -100, -100]],
        "teacher_input_ids": [[1, 5, 2, 2, 2], [1, 5, 6, 9, 2]],
        "teacher_attention_mask": [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]],
        "teacher_labels": [[-100, 5, -100, -100, -100], [-100, 5, 6, 9, 2]],
    }
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_collator_of_one_side():
    both = PairCollator(0, 2)(WINDOWS)
    student, teacher = Collator("student", 0)(WINDOWS), Collator("teacher", 2)(WINDOWS)
    for name in ("input_ids", "attention_mask", "labels"):
        assert student[name].tolist() == both[name].tolist()
        assert teacher[name].tolist() == both[f"teacher_{name}"].tolist()


def test_prefix_pairs_have_read_the_same_text(tokenizers):
    student, teacher = tokenizers
    windows = make_windows(TEXTS[:2], student, teacher, 40)
    batch = PairCollator(0, 0, PrefixPairs(student, teacher))(windows)
    assert batch["pairs"].shape[0] == len(windows)
    for window, rows in zip(windows, batch["pairs"].tolist(), strict=True):
        rows = [row for row in rows if row != [-1, -1]]
        read = [
            (student.decode(window.student[: i + 1][1:]), teacher.decode(window.teacher[: j + 1][1:]))
            for i, j in rows
        ]
        assert all(one == other for one, other in read)
        ends = {"student": set(), "teacher": set()}
        for side, tokenizer in (("student", student), ("teacher", teacher)):
            ids = getattr(window, side)
            # positions whose prefix is whole characters and that predict a token
            for n in range(len(ids) - 1):
                text = tokenizer.decode(ids[1 : n + 1])
                if "\ufffd" not in text:
                    ends[side].add(text)
        # nothing that both have read is left out
        assert {one for one, _ in read if "\ufffd" not in one} == ends["student"] & ends["teacher"]


def test_without_transformers_the_error_says_what_to_install():
    code = "import sys; sys.modules['transformers'] = None; import mlot; import mlot.distill"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        'ImportError: mlot.distill needs transformers, not installed here; pip install "mlot[distill]"'
        in done.stderr
    )
