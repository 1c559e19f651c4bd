"""``python -m mlot.distill`` with teachers that are saved, or were saved earlier."""

import json
import shutil

import pytest

pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from distill_cases import MADE, SHORT, run_without_training, save_gpt2, save_llama, texts_of, write_text
from mlot._hf.made import train_bpe, train_unigram
from mlot.distill import Examples, make_pieces
from mlot.distill import run as running
from mlot.distill.cli import main
from mlot.distill.options import Options
from mlot.distill.setup import read_documents
from mlot.saved import SavedTeacher
from mlot.training._corpus import split_corpus

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of seven documents."""
    return write_text(tmp_path_factory.mktemp("text"), documents=7)


@pytest.fixture(scope="module")
def run(text, tmp_path_factory):
    """Folders of models, of a run that saved its teacher, and of what it saved."""
    folder, documents = tmp_path_factory.mktemp("models"), texts_of(text)
    teacher = save_gpt2(folder / "gpt2", train_bpe(documents, 300, 32))
    student = save_llama(folder / "llama", train_unigram(documents, 280, 32))
    made = {"teacher": teacher, "student": student, "output": folder / "out", "saved": folder / "saved"}
    assert main(command(made, text, "--save-teacher", made["saved"])) == 0
    return made


def command(run, text, *arguments):
    folders = ["--teacher", run["teacher"], "--student", run["student"], "--output", run["output"]]
    return [str(argument) for argument in (*SHORT, "--text", text, *folders, *arguments)]


def report_of(output):
    return json.loads((output / "report.json").read_text(encoding="utf-8"))


def test_what_was_saved_trains_the_same_student_without_the_teachers_model(run, text, tmp_path):
    without = tmp_path / "gpt2"
    shutil.copytree(run["teacher"], without)
    (without / "model.safetensors").unlink()
    (without / "config.json").unlink()
    again = run | {"teacher": without, "output": tmp_path / "again"}
    assert main(command(again, text, "--saved-teacher", run["saved"])) == 0
    first, second = report_of(run["output"]), report_of(again["output"])
    for name in ("curve", "logged", "bits_per_byte", "samples"):
        assert first["models"]["student-mlot"][name] == second["models"]["student-mlot"][name]
    for name in ("diagnostics", "matches", "alignment", "text"):
        assert first[name] == second[name]
    teacher = second["models"]["teacher"]
    assert (teacher["bits_per_byte"], teacher["parameters"], teacher["samples"]) == (None, None, [])
    assert first["models"]["teacher"]["bits_per_byte"] > 0
    weights, others = (load_file(r["output"] / "student-mlot" / "model.safetensors") for r in (run, again))
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
    page = (again["output"] / "report.html").read_text(encoding="utf-8")
    assert "no student was trained by cross-entropy alone" in page


def test_by_text_the_likeliest_tokens_are_saved(run, text, tmp_path):
    first = run | {"output": tmp_path / "first"}
    by_text = ("--matching", "text", "--no-baseline")
    folder = tmp_path / "likeliest"
    assert main(command(first, text, "--save-teacher", folder, *by_text)) == 0
    assert SavedTeacher(folder).manifest.keep == "likeliest"
    again = run | {"output": tmp_path / "again"}
    assert main(command(again, text, "--saved-teacher", folder, *by_text)) == 0
    weights, others = (load_file(r["output"] / "student-mlot" / "model.safetensors") for r in (first, again))
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
    reports = [report_of(each["output"]) for each in (first, again)]
    for name in ("diagnostics", "matches", "alignment"):
        assert reports[0][name] == reports[1][name]


def test_it_holds_every_window_of_both_parts_once(run, text):
    saved = SavedTeacher(run["saved"])
    tokenizers = [AutoTokenizer.from_pretrained(run[side]) for side in ("student", "teacher")]
    corpus = split_corpus(read_documents([text]), Options.held_out, 0)
    keys = []
    for documents, mark_end in ((corpus.train, True), (corpus.held_out, False)):
        pieces = make_pieces(documents, *tokenizers, 32, mark_end=mark_end)
        examples = Examples(pieces, *tokenizers, 32, keys=True)
        keys += [examples[n]["teacher_key"] for n in range(len(examples))]
    assert saved.keys == list(dict.fromkeys(keys))
    assert (saved.manifest.k, saved.manifest.model) == (8, "gpt2")


def test_a_teacher_that_is_made_can_be_saved(text, tmp_path):
    arguments = [*MADE, *SHORT, "--text", str(text), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--save-teacher", str(tmp_path / "saved"), "--no-baseline"]) == 0
    again = [
        "--teacher",
        str(tmp_path / "out" / "teacher"),
        "--student",
        str(tmp_path / "out" / "student-mlot"),
    ]
    again += ["--saved-teacher", str(tmp_path / "saved"), "--text", str(text)]
    assert main([*SHORT, *again, "--output", str(tmp_path / "again")]) == 0
    first, second = report_of(tmp_path / "out"), report_of(tmp_path / "again")
    end, start = first["models"]["student-mlot"]["curve"][-1], second["models"]["student-mlot"]["curve"][0]
    assert start["bits_per_byte"] == pytest.approx(end["bits_per_byte"], rel=1e-6)


def test_pictures_without_held_out_windows_are_of_training(run, text, tmp_path, monkeypatch):
    known = running.known_to
    calls = []

    def none_at_first(teacher, examples):
        calls.append(examples)
        return [] if len(calls) == 1 else known(teacher, examples)

    monkeypatch.setattr(running, "known_to", none_at_first)
    output = tmp_path / "again"
    assert main(command(run | {"output": output}, text, "--saved-teacher", run["saved"])) == 0
    assert "window of training" in " ".join((output / "report.html").read_text(encoding="utf-8").split())


@pytest.fixture
def refused(run, text, tmp_path, capsys, monkeypatch):
    """Runs the command, and returns the message it ended with."""
    run_without_training(monkeypatch)

    def call(*arguments, saved=run["saved"]):
        output = tmp_path / "refused-output"
        made = command(run | {"output": output}, text, "--saved-teacher", saved)
        assert main([*made, *map(str, arguments)]) == 2
        assert not output.exists()
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "error: " in line)
        return line.removeprefix("mlot.distill: error: ")

    return call


def test_saved_teachers_that_do_not_fit(refused, run, text, tmp_path):
    message = refused("--length", "24")
    assert message.startswith("--saved-teacher: expected all ")
    assert f"windows to train on in '{run['saved']}', " in message
    assert (
        "are missing; it was saved from other text, or with another --length, --seed or --held-out" in message
    )
    for option, value in (("k", "9"), ("temperature", "2"), ("sequence_temperature", "3")):
        message = refused(f"--{option.replace('_', '-')}", value)
        assert message.startswith(f"--saved-teacher: {option}: expected "), message
    message = refused("--matching", "text")
    assert message.startswith("--saved-teacher: keep: expected a teacher saved with 'targets' or 'likeliest'")
    other = tmp_path / "other"
    train_bpe(texts_of(text), 290, 32).save_pretrained(other)
    message = refused("--teacher", other)
    assert message.startswith(f"--saved-teacher: the teacher saved in '{run['saved']}' is another one: ")
    assert "tokenizer_fingerprint: expected " in message


def test_saved_teachers_that_are_none(refused, tmp_path):
    nowhere = tmp_path / "nowhere"
    message = refused(saved=nowhere)
    assert message == f"--saved-teacher: expected a saved teacher, found no manifest.json in '{nowhere}'"
    (tmp_path / "manifest.json").write_text("{")
    assert "is damaged or no manifest" in refused(saved=tmp_path)


def test_folders_where_a_teacher_cannot_be_saved(run, text, tmp_path, capsys, monkeypatch):
    run_without_training(monkeypatch)

    def refused(*arguments, made=False):
        sources = [*MADE, *SHORT, "--text", str(text), "--output", str(tmp_path / "out")]
        given = sources if made else command(run | {"output": tmp_path / "out"}, text)
        assert main([*given, *map(str, arguments)]) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "error: " in line)
        return line.removeprefix("mlot.distill: error: ")

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    for made in (False, True):  # before the teacher is made
        assert refused("--save-teacher", tmp_path / "mine", made=made).startswith("--save-teacher: ")
    assert "is another one: k: expected 7, it has 8" in refused("--save-teacher", run["saved"], "--k", "7")
    inside = tmp_path / "out" / "teacher" / "saved"
    assert "would be replaced by its results" in refused("--save-teacher", inside)
    both = ("--save-teacher", tmp_path / "new", "--saved-teacher", run["saved"])
    assert refused(*both) == "--save-teacher: expected none beside --saved-teacher, got both"
    message = refused("--saved-teacher", run["saved"], made=True)
    assert message == "--teacher: expected the folder that has the tokenizer of the saved teacher, got none"
    assert not (tmp_path / "out").exists()
