"""Files of examples: text, JSON lines, parquet, data sets on disk; one reader, so that all take the same."""

import json
from pathlib import Path

import pytest

from mlot._examples import check_example, read_examples, read_rows

ROWS = [
    {"text": "one", "id": 7},
    {"prompt": "What is five?", "completion": " A number."},
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]},
    {
        "prompt": [{"role": "user", "content": "Bye"}],
        "completion": [{"role": "assistant", "content": "Bye."}],
    },
]


def write_lines(path: Path, rows: list) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


def test_json_lines_and_what_is_learnt(tmp_path: Path) -> None:
    examples = read_examples([write_lines(tmp_path / "a.NDJSON", ROWS)], "--text")
    assert [example.content for example in examples] == ROWS
    assert [example.text for example in examples] == ["one", " A number.", "Good day.", "Bye."]
    assert [example.plain for example in examples] == [True, False, False, False]
    assert examples[2].where == f"--text: line 3 of '{tmp_path / 'a.NDJSON'}'"
    assert read_rows(tmp_path / "a.NDJSON") == ROWS


def test_texts_are_cut_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n", encoding="utf-8")
    assert [e.text for e in read_examples([path, path], "x", cut=str.splitlines)] == ["one", "two"] * 2
    assert read_rows(path) == [{"text": "one\ntwo\n"}]


def test_tables_and_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    # columns that a row does not have are None in a table
    rows = [{"text": "one", "prompt": None}, {"text": None, "prompt": "two"}]
    fine = [{"text": "one"}, {"prompt": "two", "completion": "three"}]
    made = datasets.Dataset.from_list(
        [{"text": None, "prompt": None, "completion": None} | row for row in fine]
    )
    made.save_to_disk(tmp_path / "saved")
    made.to_parquet(tmp_path / "a.parquet")
    for path in (tmp_path / "saved", tmp_path / "a.parquet"):
        assert read_rows(path) == fine
    datasets.DatasetDict(train=made, test=made).save_to_disk(tmp_path / "splits")
    with pytest.raises(
        ValueError, match="splits' has several splits; expected the folder of one of train, test"
    ):
        read_rows(tmp_path / "splits")
    assert read_rows(tmp_path / "splits" / "train") == fine
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(
        ValueError, match=r"row 1 of .*b.parquet': expected an object with text, .*, got one with p"
    ):
        read_rows(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(ValueError, match=r"paths: '.*c.parquet': expected parquet: "):
        read_rows(tmp_path / "c.parquet")


def test_folders_of_files(tmp_path: Path) -> None:
    for name in ("train-0.jsonl", "train-1.jsonl", "test.jsonl"):
        write_lines(tmp_path / name, [{"text": name}])
    (tmp_path / "notes.md").write_text("no data")
    assert read_rows(tmp_path) == [{"text": "train-0.jsonl"}, {"text": "train-1.jsonl"}]
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match="paths: expected a data set or files of text in .*empty', found none"
    ):
        read_rows(tmp_path / "empty")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected JSON: "),
        ("[" * 100_000, "expected JSON: "),
        ("[1]", "expected an object with text, prompt and completion, or messages, got list"),
        ("3", "or messages, got int"),
        ('{"txt": "x", "a": 1}', "or messages, got one with a, txt"),
        ("{}", "or messages, got one with nothing"),
        ('{"text": null}', "text: expected a string, got NoneType"),
        ('{"prompt": "x", "completion": true}', "prompt: expected a string like its counterpart, or a list"),
        ('{"messages": "x"}', "messages: expected a list of messages, got str"),
        ('{"messages": ["x"]}', "messages: expected a list of messages, got one of str"),
        ('{"text": "\\ud800"}', "expected valid Unicode, got a lone surrogate"),
        ('{"input_ids": [1]}', "or messages, got one with input_ids"),
        (b"\xff", "expected UTF-8: "),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str | bytes, message: str) -> None:
    path = tmp_path / "text.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(ValueError, match="^--text: line 3 of ") as caught:
        read_examples([path], "--text")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "expected a file, found none at"), (b" \n\t\n", "is empty"), (b"\xff\xfe\x00", "expected UTF-8")],
)
def test_files_that_give_no_text(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"--text: .*{message}"):
        read_examples([path], "--text")


@pytest.mark.parametrize("row", ROWS)
def test_trainer_saved_teachers_and_command_take_the_same(row: dict, tmp_path: Path) -> None:
    """What a teacher saved of an example with its defaults is what a Trainer asks it for, for all but texts."""
    pytest.importorskip("transformers")
    from mlot._hf.tokenizers import complete_special_tokens
    from mlot.saved._examples import read_examples as of_saved
    from mlot.training import DistillationCollator
    from saved_models import tokenizer

    made = tokenizer()
    complete_special_tokens(made, "tokenizer")
    made.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    (example,) = read_examples([write_lines(tmp_path / "a.jsonl", [row])], "--text")
    collator = DistillationCollator(made, made, keys=True)
    (key,) = collator.teacher_keys([example.content])
    (saved,) = of_saved([example.content], made)
    if not example.plain:
        assert saved.key == key
    assert check_example(row) is row
