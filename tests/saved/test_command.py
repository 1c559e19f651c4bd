"""``python -m mlot.saved``: save, verify, info."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")

import mlot.saved
from full_disk import files_at_most
from mlot.saved import SavedTeacher, example_key, save_teacher
from mlot.saved.cli import main
from saved_cases import files_of
from saved_models import TEXTS, llama, tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    llama().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(TEXTS) + "\n\n  \n", encoding="utf-8")
    return path


def save(model: Path, text: Path, output: Path, *more: object) -> int:
    options = ["save", "--model", model, "--text", text, "--output", output, "--k", 20, *more]
    return main([str(each) for each in options])


def test_save_verify_info(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert save(model, text, out, "--examples-per-shard", 4) == 0
    printed = capsys.readouterr().out
    want = save_teacher(
        llama(), tokenizer(), TEXTS, tmp_path / "direct", k=20, examples_per_shard=4, name="tiny-llama"
    )
    assert files_of(out) == files_of(want.folder)
    saved = SavedTeacher(out)
    assert saved.manifest.model == "tiny-llama"
    assert "11 of 11 examples" in printed
    assert f"{saved.bytes_per_token:.1f} for each position that counts (44 a position and 184 an" in printed
    assert main(["verify", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        *(f"0000{n}.safetensors  as written" for n in range(3)),
        "3 files, 0 damaged",
    ]
    assert main(["info", str(out)]) == 0
    assert capsys.readouterr().out == printed[printed.index(str(out)) :]
    assert main(["info", "--json", str(out)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["examples"] == 11
    assert facts["positions"] == saved.positions
    assert facts["bytes_per_token"] == saved.bytes_per_token
    assert facts["storage_error"] == saved.storage_error.as_dict()
    assert facts["manifest"]["tokenizer_fingerprint"] == mlot.saved.fingerprint(tokenizer())


def test_resuming_and_refusing(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert save(model, text, out, "--examples-per-shard", 4) == 0
    whole = files_of(out)
    (out / "00001.safetensors").unlink()
    assert save(model, text, out, "--examples-per-shard", 4) == 0
    assert files_of(out) == whole
    capsys.readouterr()
    assert save(model, text, out, "--dtype", "float32") == 2
    captured = capsys.readouterr()
    assert captured.err == (
        f"mlot.saved: error: --output: the teacher saved in {str(out)!r} is another one: "
        "dtype: expected 'float32', it has 'float16'\n"
    )
    assert files_of(out) == whole


def test_json_lines(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    lines = [
        {"text": TEXTS[0], "source": "ignored"},
        {"input_ids": [5, 6, 7], "labels": [-100, 6, -100], "attention_mask": [1, 1, 1]},
        {"input_ids": [5, 6, 7], "mask": [True, False, True]},
        {"input_ids": [5, 6, 7]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert save(model, path, tmp_path / "out") == 0
    ids = tokenizer()(TEXTS[0])["input_ids"]
    assert SavedTeacher(tmp_path / "out").keys == [
        example_key(ids, np.arange(len(ids)) < len(ids) - 1),
        example_key([5, 6, 7], [True, False, False]),
        example_key([5, 6, 7], [True, False, True]),
        example_key([5, 6, 7], [True, True, False]),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1 of .*: expected JSON: "),
        (
            '{"text": "a"}\n\n[1]',
            "line 3 of .*: expected an object with text, prompt and completion, .*, got list",
        ),
        ('{"text": 3}', "line 1 of .*: text: expected a string, got int"),
        (
            '{"input_ids": [1, 2.5]}',
            "line 1 of .*: input_ids: expected a list of integers, got",
        ),
        (
            '{"input_ids": [1, 2], "labels": [1]}',
            "expected as many integers in labels as there are input_ids, 2",
        ),
        (
            '{"input_ids": [1, 2], "mask": [1, 0]}',
            "expected as many booleans in mask as there are input_ids, 2",
        ),
        ("\n \n", "expected some text, but .* is empty"),
        (b'{"text": "a"}\n\xff\xfe', "line 2 of .*: expected UTF-8: "),
    ],
)
def test_files_that_are_refused(
    content: str | bytes,
    message: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert save(model, path, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("mlot.saved: error: --text: ")
    assert len(error.splitlines()) == 1
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_done(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, long = tmp_path / "out", tmp_path / "long.txt"
    long.write_text("a long text " * 40)
    for arguments, message in (
        (
            (tmp_path / "none", text, out),
            "--model: expected a folder with a model, or the id of one in the cache",
        ),
        ((tmp_path, text, out), "--model: expected a model that transformers loads"),
        ((model, tmp_path / "none", out), "--text: expected a file, found none"),
        ((model, long, out), "--text: expected at most 48 tokens, all that the model reads, got an example"),
        ((model, text, text), "--output: expected a folder, but"),
        ((model, text, out, "--k", 0), "--k: expected an integer >= 1 or None, got 0"),
        ((model, text, out, "--batch-size", 0), "--batch-size: expected an integer >= 1, got 0"),
        ((model, text, out, "--max-length", 0), "--max-length: expected an integer >= 1"),
        ((model, text, out, "--temperature", -1), "--temperature: expected a finite number > 0"),
        ((model, text, out, "--extra-temperatures", 0), "--extra-temperatures: expected a finite number > 0"),
        ((model, text, out, "--threads", 0), "--threads: expected an integer >= 1"),
    ):
        assert save(*arguments) == 2
        assert capsys.readouterr().err.startswith(f"mlot.saved: error: {message}")
        assert not out.exists()
    for command in ("info", "verify"):
        assert main([command, str(out)]) == 2
        assert "error: folder: expected a saved teacher, found no manifest.json" in capsys.readouterr().err
    assert save(model, long, out, "--max-length", 48) == 0
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2


def test_damage_is_reported_file_by_file(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert save(model, text, out, "--examples-per-shard", 4) == 0
    path = out / "00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    assert main(["verify", str(out)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "00000.safetensors  as written"
    assert lines[1].startswith("00001.safetensors  folder: ")
    assert "its checksum is not that of its content" in lines[1]
    assert lines[3] == "3 files, 1 damaged"
    path.write_bytes(content[:-9])
    assert main(["info", str(out)]) == 2
    assert "00001.safetensors' is damaged" in capsys.readouterr().err


def test_interrupted(
    model: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlot.saved.cli.save_teacher", stop)
    assert save(model, text, tmp_path / "out") == 130
    assert capsys.readouterr().err == (
        "mlot.saved: interrupted; files that are complete stay, the same command resumes\n"
    )


def test_as_a_process(model: Path, text: Path, tmp_path: Path) -> None:
    """As it is typed, with warnings as errors; what needs no model does not load torch."""
    saved = save_teacher(llama(), tokenizer(), TEXTS, tmp_path / "out", k=20)
    code = (
        "import sys\n"
        "from mlot.saved.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(status)\n"
    )
    for command in (["-m", "mlot.saved"], ["-c", code]):
        done = subprocess.run(
            [sys.executable, "-W", "error", *command, "verify", str(saved.folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "00000.safetensors  as written\n1 file, 0 damaged\n"
        assert not done.stderr


@pytest.mark.parametrize("keep", ["likeliest", "targets"])
def test_what_the_plan_from_the_text_needs(
    keep: str, model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    student = ("--student", model) if keep == "targets" else ()
    options = ["save", "--model", model, "--text", text, "--output", out, "--keep", keep, *student]
    assert main([str(each) for each in options]) == 0
    printed = capsys.readouterr().out
    saved = SavedTeacher(out)
    assert (saved.manifest.keep, saved.manifest.k) == (keep, 256)
    want = 256 * 4 + 8 * (keep == "targets")
    assert saved.manifest.bytes_per_position == want
    assert (
        f"{saved.bytes_per_token:.1f} for each position that counts ({want} a position and 24 an" in printed
    )
    assert f"  keep                   {keep}\n" in printed
    assert ("student_tokenizer_fingerprint" in printed) == (keep == "targets")
    assert f"of {'the targets' if keep == 'targets' else 'the teacher'}'s mass" in printed
    assert "SD, an entry" not in printed
    assert main(["verify", str(out)]) == 0
    assert main(["info", "--json", str(out)]) == 0
    capsys.readouterr()
    wrong = ("--keep", "likeliest", "--student", model) if keep == "likeliest" else ("--keep", "targets")
    assert save(model, text, tmp_path / "other", *wrong) == 2
    assert capsys.readouterr().err.startswith("mlot.saved: error: --student: expected ")


@pytest.mark.parametrize("size", [10, 2000])
def test_a_full_disk(
    size: int, model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file that cannot be written is named, those before it are whole, the same command goes on."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert save(model, text, whole, "--examples-per-shard", 4) == 0
    capsys.readouterr()
    with files_at_most(size):
        assert save(model, text, out, "--examples-per-shard", 4) == 2
    (line,) = capsys.readouterr().err.splitlines()
    name = "manifest.json" if size == 10 else "00000.safetensors"
    assert line == f"mlot.saved: error: [Errno 27] File too large: '{out / name}'"
    assert files_of(out).items() <= files_of(whole).items()
    assert save(model, text, out, "--examples-per-shard", 4) == 0
    assert files_of(out) == files_of(whole)
