"""``python -m mlot.distill`` on a JSONL file of texts, prompts with completions, and conversations."""

import json
import random

import pytest

pytest.importorskip("transformers")

from distill_cases import SHORT, run_without_training, save_gpt2, save_llama
from mlot._hf.made import train_bpe, train_unigram
from mlot.distill.cli import main

WORDS = "the of and Größe to in is you that it he was for on are as with they ☃ be at one have this".split()
TEMPLATES = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}",
    "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}</s>{% endfor %}",
)


def make_records():
    """Thirty records of each form, a few of them too long."""
    rng = random.Random(0)

    def words(most):
        return " ".join(rng.choices(WORDS, k=rng.randint(2, most)))

    records = []
    for n in range(30):
        most = 40 if n % 10 == 9 else 5
        records.append({"text": words(60), "source": n})
        records.append({"prompt": words(2) + " ", "completion": words(most)})
        turns = [("user", words(2)), ("assistant", words(most))]
        records.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    return records


def write(path, records):
    path.write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8"
    )
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Options that name models whose tokenizers have chat templates."""
    folder = tmp_path_factory.mktemp("models")
    texts = [json.dumps(record, ensure_ascii=False) for record in make_records()]
    tokenizers = train_unigram(texts, 290, 32), train_bpe(texts, 310, 32)
    for tokenizer, template in zip(tokenizers, TEMPLATES, strict=True):
        tokenizer.chat_template = template
    teacher, student = save_gpt2(folder / "gpt2", tokenizers[1]), save_llama(folder / "llama", tokenizers[0])
    return ["--teacher", str(teacher), "--student", str(student)]


def error(capsys):
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error: " in line)
    return line.removeprefix("mlot.distill: error: ")


def test_records_of_all_forms(folders, tmp_path, capsys):
    text, output = write(tmp_path / "text.jsonl", make_records()), tmp_path / "out"
    arguments = ["--text", str(text), "--held-out", "0.3", "--seed", "1", "--output", str(output)]
    assert main([*SHORT, *folders, *arguments]) == 0
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    for part in ("train", "held-out"):
        (notice,) = (notice for notice in report["notices"] if f"of the {part} part" in notice)
        assert notice.startswith("--length: of the ")
        assert "examples were too long and were cut" in notice
        assert f"notice: {notice}" in capsys.readouterr().err or part == "held-out"
    sizes = report["text"]
    assert sizes["train"]["documents"] + sizes["held_out"]["documents"] == 90
    student = report["models"]["student-mlot"]
    assert student["bits_per_byte"] < student["curve"][0]["bits_per_byte"]
    assert len(student["samples"]) == 3
    completed, answered, continued = (sample["prompt"] for sample in student["samples"])
    assert any(completed == record.get("prompt") for record in make_records())
    asked = [record["messages"][0]["content"] for record in make_records() if "messages" in record]
    assert len(answered) > 10  # a prompt that is too long loses its beginning
    # the space before an answer is in its first token, and no part of the prompt
    assert any(f"user: {content}assistant:".endswith(answered) for content in asked)
    assert any(record.get("text", "").startswith(continued) for record in make_records())
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "examples were too long and were cut" in page


@pytest.fixture
def refused(folders, tmp_path, capsys, monkeypatch):
    """Runs the command on some records, and returns the message it ended with."""
    run_without_training(monkeypatch)

    def call(records, *arguments):
        text = write(tmp_path / "text.jsonl", records)
        assert (
            main([*SHORT, *folders, "--text", str(text), "--output", str(tmp_path / "out"), *arguments]) == 2
        )
        assert not (tmp_path / "out").exists()
        return error(capsys)

    return call


def test_records_that_are_refused(refused, tmp_path):
    path = tmp_path / "text.jsonl"
    fine = {"text": "one two three"}
    assert refused([fine, {"prompt": "x"}]) == (
        f"--text: line 2 of '{path}': expected an object with text, prompt and completion, or messages, "
        "got one with prompt"
    )
    assert refused([]) == f"--text: expected some text, but '{path}' is empty"
    assert refused([{"text": " "}]) == f"--text: expected some text to learn, but '{path}' has none"
    assert "expected at least two documents" in refused([fine, fine])
    long = [{"prompt": "the of and to " * 40 + str(n), "completion": "in"} for n in range(4)]
    assert refused(long) == (
        "--text: expected examples with something to learn, found none: 3 of 3 examples were too long and "
        "were cut, 6 of 6 bytes of text with them; of 3 nothing was left"
    )


def test_conversations_need_templates(refused, folders, tmp_path):
    bare = tmp_path / "bare"
    save_llama(bare, train_unigram(["the of and to " * 20], 290, 32))
    message = refused(make_records(), "--student", str(bare))
    assert message.startswith("--text: line ")
    assert "student_tokenizer: expected a chat template, since examples hold messages, found none" in message


def test_all_made_here_from_records(tmp_path):
    """Texts of conversations make tokenizers, which have no templates; prompts do without."""
    records = [record for record in make_records() if "messages" not in record]
    text = write(tmp_path / "text.jsonl", records)
    made = "--teacher-vocabulary 300 --student-vocabulary 280 --teacher-width 32 --student-width 32".split()
    made += (
        "--teacher-layers 1 --student-layers 1 --teacher-steps 2 --no-baseline --checkpoint-every 0".split()
    )
    output = tmp_path / "out"
    assert main([*made, *SHORT, "--text", str(text), "--output", str(output)]) == 0
    assert sorted(path.name for path in output.iterdir()) == [
        "report.html", "report.json", "student-mlot", "teacher"
    ]  # fmt: skip
