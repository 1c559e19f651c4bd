"""``python -m mlot.distill`` from end to end, and its options."""

import html
import json
import subprocess
import sys
from dataclasses import fields

import pytest

pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from distill_cases import MADE, SHORT, run_without_training, save_gpt2, save_llama, texts_of, write_text
from mlot import Diagnostics, MultiLevelOTConfig
from mlot._hf.made import train_bpe, train_unigram
from mlot.distill import Examples, evaluate_bits, make_pieces
from mlot.distill import setup as preparing
from mlot.distill.cli import main
from mlot.distill.errors import DistillError
from mlot.distill.options import QUICK, Options, TrainingOptions, typed
from mlot.distill.output import ENTRIES, FORMAT
from mlot.distill.setup import read_documents
from mlot.training._corpus import split_corpus

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of thirty documents."""
    return write_text(tmp_path_factory.mktemp("text"))


def held_out_examples(text, reader, other, share=Options.held_out, length=32, seed=0):
    """Held-out text in the tokens of a reader; pieces do not depend on the order of the two."""
    corpus = split_corpus(read_documents([text]), share, seed)
    pieces = make_pieces(corpus.held_out, reader, other, length, mark_end=False)
    return Examples(pieces, reader, other, length)


# -- whole runs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(text, tmp_path_factory):
    """Output of a run that makes everything itself."""
    output = tmp_path_factory.mktemp("made") / "deeper" / "output"
    assert main([*MADE, *SHORT, "--text", str(text), "--output", str(output), "--held-out", "0.4"]) == 0
    return output


def test_every_file_is_there(made):
    assert sorted(path.name for path in made.iterdir()) == sorted(ENTRIES)
    for name in ("teacher", "student-ce", "student-mlot"):
        present = {path.name for path in (made / name).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= present


def test_report_holds_what_was_asked_for(made, text):
    report = json.loads((made / "report.json").read_text(encoding="utf-8"))
    assert report["format"] == FORMAT
    assert (
        report["settings"] | {"steps": 4, "k": 8, "held_out": 0.4, "text": [str(text)]} == report["settings"]
    )
    models = report["models"]
    assert list(models) == ["teacher", "student-ce", "student-mlot"]
    assert [entry["step"] for entry in models["teacher"]["curve"]] == [0, 1, 2, 3]
    for name in ("student-ce", "student-mlot"):
        assert [entry["step"] for entry in models[name]["curve"]] == [0, 2, 4]
        assert models[name]["curve"][-1]["bits_per_byte"] == models[name]["bits_per_byte"]
        assert [entry["step"] for entry in models[name]["logged"]["loss"]] == [2, 4]
        low, high = models[name]["interval_95"]
        assert low < models[name]["bits_per_byte"] < high
        assert len(models[name]["samples"]) == 3
    plain, distilled = models["student-ce"], models["student-mlot"]
    assert plain["curve"][0] == distilled["curve"][0]
    assert plain["bits_per_byte"] != distilled["bits_per_byte"]
    assert plain["bits_per_byte"] < plain["curve"][0]["bits_per_byte"]
    terms = {"had", "sl", "sd", "teacher_kept_mass", "student_kept_mass", "matching_gap", "marginal_error"}
    assert {"loss", "ce"} <= set(plain["logged"])
    assert terms.isdisjoint(plain["logged"])
    assert terms | {"loss", "ce", "paired_share"} <= set(distilled["logged"])
    difference = distilled["bits_per_byte"] - plain["bits_per_byte"]
    assert report["difference"]["bits_per_byte"] == pytest.approx(difference, abs=1e-15)
    low, high = report["difference"]["interval_95"]
    assert low <= difference <= high
    sizes = report["text"]
    assert sizes["train"]["bytes"] + sizes["held_out"]["bytes"] == len(text.read_bytes())
    assert sizes["train"]["documents"] + sizes["held_out"]["documents"] == 30
    assert f"{difference:+.4f}" in report["verdict"]
    page = (made / "report.html").read_text(encoding="utf-8")
    for model in models.values():
        assert f"{model['bits_per_byte']:.4f}" in page
    assert html.escape(report["verdict"], quote=True).replace("&#x27;", "&#39;") in page
    alignment = report["alignment"]
    assert 0 < alignment["pairs"] <= min(alignment["student_positions"], alignment["teacher_positions"])
    windows = min(sizes["held_out"]["windows"], 32)
    names = [each.name for each in fields(Diagnostics)]
    assert {name: len(values) for name, values in report["diagnostics"].items()} == dict.fromkeys(
        names, windows
    )
    assert len(report["matches"]) == 8


def test_saved_models_have_the_bits_per_byte_that_were_reported(made, text):
    report = json.loads((made / "report.json").read_text(encoding="utf-8"))
    teacher, student = (AutoTokenizer.from_pretrained(made / name) for name in ("teacher", "student-mlot"))
    for name in ("teacher", "student-ce", "student-mlot"):
        model = AutoModelForCausalLM.from_pretrained(made / name)
        both = (teacher, student) if name == "teacher" else (student, teacher)
        score = evaluate_bits(model, held_out_examples(text, *both, share=0.4), 8)
        assert score.bits_per_byte == pytest.approx(report["models"][name]["bits_per_byte"], rel=1e-5)


def test_a_second_run_repeats_the_figures_and_replaces_the_first(made, text):
    before = json.loads((made / "report.json").read_text(encoding="utf-8"))
    weights = load_file(made / "student-mlot" / "model.safetensors")
    command = [*MADE, *SHORT, "--text", str(text), "--output", str(made), "--held-out", "0.4"]
    assert main(command) == 2
    assert json.loads((made / "report.json").read_text(encoding="utf-8")) == before
    assert main([*command, "--overwrite"]) == 0
    after = json.loads((made / "report.json").read_text(encoding="utf-8"))
    for report in (before, after):
        del report["seconds"], report["settings"]["overwrite"]
        for model in report["models"].values():
            del model["seconds"]
    assert after == before
    for name, weight in load_file(made / "student-mlot" / "model.safetensors").items():
        assert torch.equal(weight, weights[name])
    assert sorted(path.name for path in made.iterdir()) == sorted(ENTRIES)


def test_no_tokenizer_sees_held_out_text(text, tmp_path, monkeypatch):
    seen = []

    def watched(train):
        def wrapper(documents, size, length):
            seen.append(list(documents))
            return train(documents, size, length)

        return wrapper

    monkeypatch.setattr(preparing, "train_bpe", watched(train_bpe))
    monkeypatch.setattr(preparing, "train_unigram", watched(train_unigram))
    monkeypatch.setattr(preparing, "_together", lambda *_: (_ for _ in ()).throw(DistillError("stop here")))
    assert main([*MADE, *SHORT, "--text", str(text), "--output", str(tmp_path / "out")]) == 2
    corpus = split_corpus(read_documents([text]), Options.held_out, 0)
    assert seen == [corpus.train_texts] * 2


def test_terminal_shows_the_table_and_what_was_measured(text, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["--text", str(text), "--output", str(output), "--pairs", "index", "--accumulation", "2"]
    assert main([*MADE, *SHORT, *arguments, "--matching", "rank", "--alpha", "2", "--seed", "3"]) == 0
    out, err = capsys.readouterr()
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert report["difference"]["interval_95"] is None  # one or two documents held out
    for model in report["models"].values():
        assert f"{model['bits_per_byte']:.4f}" in out
    assert "Too few held-out documents" in " ".join(out.split())
    assert (
        f"student-mlot: step 4 of 4, {report['models']['student-mlot']['bits_per_byte']:.3f} bits per byte"
        in err
    )


# -- models from folders ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizers(text):
    """A teacher's and a student's."""
    documents = texts_of(text)
    return train_bpe(documents, 300, 32), train_unigram(documents, 280, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_from_folders(text, tokenizers, tmp_path, capsys, dtype):
    teacher = train_bpe(texts_of(text), 300, 32)
    teacher.pad_token = None
    teacher.bos_token = None
    folders = save_gpt2(tmp_path / "gpt2", teacher, dtype), tmp_path / "llama"
    save_llama(folders[1], tokenizers[1], dtype=dtype)
    start = load_file(folders[1] / "model.safetensors")
    output = tmp_path / "out"
    sources = ["--teacher", str(folders[0]), "--student", str(folders[1]), "--text", str(text)]
    assert main([*SHORT, *sources, "--output", str(output), "--baseline"]) == 0
    assert sorted(path.name for path in output.iterdir()) == sorted(set(ENTRIES) - {"teacher"})
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert report["models"]["teacher"]["steps"] == 0
    assert report["models"]["teacher"]["curve"] == []
    notices = [
        "--teacher: the tokenizer has no pad token; its eos token '</s>' pads",
        "--teacher: the tokenizer has no bos token; texts start with its eos token",
    ]
    assert report["notices"] == notices
    err = capsys.readouterr().err
    assert all(f"notice: {notice}" in err for notice in notices)
    # the teacher's figure is that of its folder, and the students started from theirs
    model = AutoModelForCausalLM.from_pretrained(folders[0])
    assert model.dtype == dtype
    teacher.pad_token = teacher.eos_token
    score = evaluate_bits(model, held_out_examples(text, teacher, tokenizers[1]), 8)
    assert score.bits_per_byte == pytest.approx(report["models"]["teacher"]["bits_per_byte"], rel=1e-6)
    student = AutoModelForCausalLM.from_pretrained(folders[1], dtype=torch.float32)
    first = evaluate_bits(student, held_out_examples(text, tokenizers[1], teacher), 8)
    for name in ("student-ce", "student-mlot"):
        found = report["models"][name]["curve"][0]["bits_per_byte"]
        assert found == pytest.approx(first.bits_per_byte, rel=1e-6)
        assert AutoModelForCausalLM.from_pretrained(output / name).dtype == torch.float32
        assert AutoTokenizer.from_pretrained(output / name).get_vocab() == tokenizers[1].get_vocab()
    for name, weight in load_file(folders[1] / "model.safetensors").items():
        assert torch.equal(weight, start[name])


def test_tokenizer_that_changes_text_is_noticed(text, tokenizers, tmp_path, capsys, monkeypatch):
    from tokenizers import normalizers

    run_without_training(monkeypatch)
    teacher = train_bpe(texts_of(text), 300, 32)
    teacher.backend_tokenizer.normalizer = normalizers.Lowercase()
    folders = save_gpt2(tmp_path / "gpt2", teacher), save_llama(tmp_path / "llama", tokenizers[1])
    sources = ["--teacher", str(folders[0]), "--student", str(folders[1]), "--text", str(text)]
    with pytest.raises(AssertionError, match="a training was started"):
        main([*SHORT, *sources, "--output", str(tmp_path / "out")])
    changed = sum("Größe" in p.text for p in held_out_examples(text, tokenizers[1], teacher).pieces)
    assert changed > 0
    assert f"the teacher's tokenizer does not give back {changed} of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# -- the command line ----------------------------------------------------------------------------------


def test_options_of_the_parser(capsys):
    for arguments in (["--matching", "best"], ["--steps", "many"], ["--unknown"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "invalid choice: 'best'" in capsys.readouterr().err
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    names = [each.name for kind in (Options, TrainingOptions, MultiLevelOTConfig) for each in fields(kind)]
    for name in names:
        assert f"  {typed(name)} " in shown or f"  {typed(name)}\n" in shown
    assert main(["--help-training"]) == 0
    shown = capsys.readouterr().out
    for name in (*names, "bf16", "num_train_epochs", "gradient_checkpointing", "use_linear_head"):
        assert f"--{name}" in shown


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from mlot.distill.cli import main; main(['--help'])\n"
        "print(sorted({'torch', 'transformers', 'matplotlib', 'jinja2', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_quick_gives_way_to_what_is_typed(monkeypatch):
    found = []
    monkeypatch.setattr("mlot.distill.run.run", lambda settings, *_: found.append(settings))
    assert main(["--quick"]) == 0
    assert main(["--quick", "--steps", "7"]) == 0
    assert main([]) == 0
    quick, typed_over, plain = ({**vars(s.options), **vars(s.arguments)} for s in found)
    assert {name: quick[name] for name in QUICK} == QUICK
    assert {name: typed_over[name] for name in QUICK} == QUICK | {"max_steps": 7}
    assert (plain["max_steps"], plain["student_width"], plain["alpha"]) == (400, 96, 0.15)


def test_students_from_folders_have_a_twin_on_request():
    folders = {"teacher": "t", "student": "s"}
    assert Options().compares
    assert not Options(baseline=False).compares
    assert not Options(**folders).compares
    assert Options(**folders, baseline=True).compares


def test_interruption(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mlot.distill.run.run", interrupted)
    assert main([]) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err


def test_the_module_is_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "mlot.distill", "--steps", "0"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mlot.distill: error: --steps: expected an integer >= 1, got 0\n"
