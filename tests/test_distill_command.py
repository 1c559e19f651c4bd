"""``python -m mlot.distill`` from end to end, and everything that it refuses."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from mlot.distill import evaluate_bits, make_windows
from mlot.distill import run as run_module
from mlot.distill.cli import main
from mlot.distill.errors import DistillError
from mlot.distill.options import QUICK, Options
from mlot.distill.output import ENTRIES, check_output, staging
from mlot.distill.text import read_documents, split_corpus
from mlot.distill.vocabularies import train_bpe, train_unigram

MADE = [
    "--teacher-vocabulary",
    "320",
    "--teacher-width",
    "32",
    "--teacher-layers",
    "1",
    "--teacher-steps",
    "3",
]
MADE += ["--student-vocabulary", "280", "--student-width", "32", "--student-layers", "1"]
SHORT = [
    "--steps",
    "4",
    "--batch-size",
    "4",
    "--length",
    "32",
    "--k",
    "8",
    "--evaluations",
    "2",
    "--threads",
    "1",
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of thirty documents."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = (
        "the of and Größe to in is you that it he was for on are as with they ☃ be at one have this".split()
    )
    rng = random.Random(0)
    lines = [" ".join(rng.choices(words, k=12)) + ("\n\n" if n % 30 == 29 else "\n") for n in range(900)]
    path.write_text("".join(lines), encoding="utf-8")
    assert len(read_documents(path)) == 30
    return path


def held_out_windows(text, student, teacher, length=32, seed=0):
    corpus = split_corpus(read_documents(text), Options.held_out, seed)
    return make_windows(corpus.held_out, student, teacher, length, mark_end=False)


def run_without_training(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a training was started")

    monkeypatch.setattr(run_module, "DistillationTrainer", fail)


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
    with Image.open(made / "curves.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
    samples = (made / "samples.txt").read_text(encoding="utf-8")
    assert samples.count("=== teacher ===") == samples.count("=== student, MultiLevelOT ===") == 3


def test_report_holds_what_was_asked_for(made, text):
    report = json.loads((made / "report.json").read_text(encoding="utf-8"))
    assert report["format"] == "mlot.distill.1"
    assert report["settings"] | {"steps": 4, "k": 8, "held_out": 0.4, "text": str(text)} == report["settings"]
    models = report["models"]
    assert list(models) == ["teacher", "student-ce", "student-mlot"]
    assert [entry["step"] for entry in models["teacher"]["curve"]] == [0, 1, 2, 3]
    for name in ("student-ce", "student-mlot"):
        assert [entry["step"] for entry in models[name]["curve"]] == [0, 2, 4]
        assert models[name]["curve"][-1]["bits_per_byte"] == models[name]["bits_per_byte"]
    plain, distilled = models["student-ce"], models["student-mlot"]
    assert plain["curve"][0] == distilled["curve"][0]
    assert plain["bits_per_byte"] != distilled["bits_per_byte"]
    assert plain["bits_per_byte"] < plain["curve"][0]["bits_per_byte"]
    assert set(plain["terms"]) == {"loss", "ce"}
    assert set(distilled["terms"]) == {"loss", "ce", "had", "sl", "sd"}
    difference = distilled["bits_per_byte"] - plain["bits_per_byte"]
    assert report["difference"]["bits_per_byte"] == pytest.approx(difference, abs=1e-15)
    low, high = report["difference"]["interval_95"]
    assert low <= difference <= high
    sizes = report["text"]
    assert sizes["train"]["bytes"] + sizes["held_out"]["bytes"] == len(text.read_bytes())
    assert sizes["train"]["documents"] + sizes["held_out"]["documents"] == 30
    page = (made / "report.md").read_text(encoding="utf-8")
    for model in models.values():
        assert f"{model['bits_per_byte']:.4f}" in page
    assert f"{difference:+.4f}" in page


def test_saved_models_have_the_bits_per_byte_that_were_reported(made, text):
    report = json.loads((made / "report.json").read_text(encoding="utf-8"))
    teacher, student = (AutoTokenizer.from_pretrained(made / name) for name in ("teacher", "student-mlot"))
    corpus = split_corpus(read_documents(text), 0.4, 0)
    windows = make_windows(corpus.held_out, student, teacher, 32, mark_end=False)
    for name in ("teacher", "student-ce", "student-mlot"):
        model = AutoModelForCausalLM.from_pretrained(made / name)
        score = evaluate_bits(model, windows, "teacher" if name == "teacher" else "student", 0, 1)
        assert score.bits_per_byte == pytest.approx(report["models"][name]["bits_per_byte"], rel=1e-5)


def test_a_second_run_repeats_the_figures_and_replaces_the_first(made, text):
    before = json.loads((made / "report.json").read_text(encoding="utf-8"))
    weights = load_file(made / "student-mlot" / "model.safetensors")
    assert main([*MADE, *SHORT, "--text", str(text), "--output", str(made), "--held-out", "0.4"]) == 0
    after = json.loads((made / "report.json").read_text(encoding="utf-8"))
    for report in (before, after):
        del report["seconds"]
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

    monkeypatch.setattr(run_module, "train_bpe", watched(train_bpe))
    monkeypatch.setattr(run_module, "train_unigram", watched(train_unigram))
    monkeypatch.setattr(
        run_module._Run, "_windows", lambda *_: (_ for _ in ()).throw(DistillError("stop here"))
    )
    assert main([*MADE, *SHORT, "--text", str(text), "--output", str(tmp_path / "out")]) == 2
    corpus = split_corpus(read_documents(text), Options.held_out, 0)
    assert seen == [list(corpus.train)] * 2


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


def save_llama(folder, tokenizer, kind=LlamaForCausalLM, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    settings = {"vocab_size": len(tokenizer), "max_position_embeddings": 32} | settings
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, **settings
    )
    kind(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_gpt2(folder, tokenizer, dtype=torch.float32):
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=len(tokenizer) + 5, n_positions=48, n_embd=24, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizers(text):
    """A teacher's and a student's."""
    documents = read_documents(text)
    return train_bpe(documents, 300, 32), train_unigram(documents, 280, 32)


@pytest.fixture
def folders(tokenizers, tmp_path):
    """Folders of a GPT-2 that teaches and of a Llama that learns."""
    teacher, student = tokenizers
    return save_gpt2(tmp_path / "gpt2", teacher), save_llama(tmp_path / "llama", student)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_from_folders(text, tokenizers, tmp_path, capsys, dtype):
    teacher = train_bpe(read_documents(text), 300, 32)
    teacher.pad_token = None
    teacher.bos_token = None
    folders = save_gpt2(tmp_path / "gpt2", teacher, dtype), tmp_path / "llama"
    save_llama(folders[1], tokenizers[1], dtype=dtype)
    start = load_file(folders[1] / "model.safetensors")
    output = tmp_path / "out"
    sources = ["--teacher", str(folders[0]), "--student", str(folders[1]), "--text", str(text)]
    assert main([*SHORT, *sources, "--output", str(output)]) == 0
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
    windows = held_out_windows(text, tokenizers[1], teacher)
    model = AutoModelForCausalLM.from_pretrained(folders[0])
    assert model.dtype == dtype
    score = evaluate_bits(model, windows, "teacher", 2, 8)
    assert score.bits_per_byte == pytest.approx(report["models"]["teacher"]["bits_per_byte"], rel=1e-6)
    student = AutoModelForCausalLM.from_pretrained(folders[1], dtype=torch.float32)
    first = evaluate_bits(student, windows, "student", 0, 8)
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
    teacher = train_bpe(read_documents(text), 300, 32)
    teacher.backend_tokenizer.normalizer = normalizers.Lowercase()
    folders = save_gpt2(tmp_path / "gpt2", teacher), save_llama(tmp_path / "llama", tokenizers[1])
    sources = ["--teacher", str(folders[0]), "--student", str(folders[1]), "--text", str(text)]
    with pytest.raises(AssertionError, match="a training was started"):
        main([*SHORT, *sources, "--output", str(tmp_path / "out")])
    changed = sum("Größe" in w.text for w in held_out_windows(text, tokenizers[1], teacher))
    assert changed > 0
    assert f"the teacher's tokenizer does not give back {changed} of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# -- what is refused, before the first step --------------------------------------------------------------


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Runs the command, and returns the message it ended with."""
    run_without_training(monkeypatch)
    before = Path.cwd()
    output = tmp_path / "refused-output"

    def call(*arguments):
        if "--output" not in arguments:
            arguments = (*arguments, "--output", output)
        assert main([str(argument) for argument in (*SHORT, *arguments)]) == 2
        assert not output.exists()
        assert Path.cwd() == before
        lines = capsys.readouterr().err.strip().splitlines()
        (line,) = (line for line in lines if line.startswith("mlot.distill: error: "))
        return line.removeprefix("mlot.distill: error: ")

    return call


def test_only_one_folder(refused, folders):
    assert (
        refused("--teacher", folders[0]) == "--student: expected a folder, since --teacher is given, got none"
    )
    assert (
        refused("--student", folders[1]) == "--teacher: expected a folder, since --student is given, got none"
    )


def test_text_that_is_none(refused, tmp_path, folders):
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    assert refused("--text", empty) == f"--text: expected some text, but '{empty}' is empty"
    assert refused("--text", empty, "--teacher", folders[0], "--student", folders[1]).startswith("--text: ")
    missing = tmp_path / "missing.txt"
    assert refused("--text", missing) == f"--text: expected a file, found none at '{missing}'"
    short = tmp_path / "short.txt"
    short.write_text("one document")
    assert "expected at least two documents" in refused("--text", short)


def test_folder_that_is_none(refused, folders, text, tmp_path):
    nowhere, empty = tmp_path / "nowhere", tmp_path / "empty"
    empty.mkdir()
    message = refused("--text", text, "--teacher", nowhere, "--student", folders[1])
    assert message == f"--teacher: expected a folder with a model, found none at '{nowhere}'"
    message = refused("--text", text, "--teacher", folders[0], "--student", nowhere)
    assert message == f"--student: expected a folder with a model, found none at '{nowhere}'"
    message = refused("--text", text, "--teacher", empty, "--student", folders[1])
    assert message.startswith(f"--teacher: expected a model that transformers loads in '{empty}'")


def test_model_without_a_causal_head(refused, folders, tokenizers, text, tmp_path):
    headless = save_llama(tmp_path / "headless", tokenizers[0], LlamaModel)
    message = refused("--text", text, "--teacher", headless, "--student", folders[1])
    assert (
        message == "--teacher: expected a model with a causal head, such as LlamaForCausalLM, got LlamaModel"
    )
    bert, t5 = tmp_path / "bert", tmp_path / "t5"
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=300, **small)).save_pretrained(bert)
    T5ForConditionalGeneration(
        T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(t5)
    for folder, name in ((bert, "BertForMaskedLM"), (t5, "T5ForConditionalGeneration")):
        tokenizers[1].save_pretrained(folder)
        assert refused("--text", text, "--teacher", folders[0], "--student", folder).endswith(f"got {name}")


def test_weights_that_are_missing(refused, folders, text):
    path = folders[1] / "model.safetensors"
    weights = load_file(path)
    del weights["lm_head.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    message = refused("--text", text, "--teacher", folders[0], "--student", folders[1])
    assert message == (
        f"--student: expected all weights of a LlamaForCausalLM in '{folders[1]}', missing lm_head.weight"
    )


def test_damaged_weights(refused, folders, text):
    (folders[0] / "model.safetensors").write_bytes(b"no weights")
    message = refused("--text", text, "--teacher", folders[0], "--student", folders[1])
    assert message.startswith(f"--teacher: expected a causal language model in '{folders[0]}'")


def test_tokenizers_that_do_not_serve(refused, folders, tokenizers, text, tmp_path):
    bare = tmp_path / "bare"
    LlamaForCausalLM.from_pretrained(folders[1]).save_pretrained(bare)
    message = refused("--text", text, "--teacher", folders[0], "--student", bare)
    assert message.startswith(f"--student: expected a tokenizer in '{bare}'")
    tokenizers[0].save_pretrained(bare)
    message = refused("--text", text, "--teacher", folders[0], "--student", bare)
    own = len(tokenizers[1])
    assert message == f"--student: expected a tokenizer of at most {own} tokens, as the model, got 300"
    without = train_bpe(read_documents(text), own, 32)
    without.eos_token = None
    without.pad_token = None
    without.save_pretrained(bare)
    message = refused("--text", text, "--teacher", folders[0], "--student", bare)
    assert message.startswith("--student: expected a tokenizer with an eos token, or with bos and pad tokens")


def test_windows_longer_than_a_model_reads(refused, folders, text):
    message = refused("--text", text, "--teacher", folders[0], "--student", folders[1], "--length", "40")
    assert message == "--length: expected at most 32, all that the model of --student reads, got 40"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--steps 0", "--steps: expected an integer >= 1, got 0"),
        ("--teacher-steps 0", "--teacher-steps: expected an integer >= 1, got 0"),
        ("--batch-size -1", "--batch-size: expected an integer >= 1, got -1"),
        ("--accumulation 0", "--accumulation: expected an integer >= 1, got 0"),
        ("--evaluations 0", "--evaluations: expected an integer >= 1, got 0"),
        ("--seed -1", "--seed: expected an integer >= 0, got -1"),
        ("--threads 0", "--threads: expected an integer >= 1 or None, got 0"),
        ("--length 7", "--length: expected an integer >= 8, got 7"),
        ("--teacher-width 40", "--teacher-width: expected a multiple of 32, got 40"),
        ("--student-width 0", "--student-width: expected an integer >= 32, got 0"),
        ("--student-layers 0", "--student-layers: expected an integer >= 1, got 0"),
        ("--student-vocabulary 258", "--student-vocabulary: expected an integer >= 259, got 258"),
        ("--learning-rate 0", "--learning-rate: expected a finite number > 0, got 0.0"),
        ("--teacher-learning-rate nan", "--teacher-learning-rate: expected a finite number > 0, got nan"),
        ("--alpha 0", "--alpha: expected a finite number > 0, got 0.0"),
        ("--k 0", "--k: expected an integer >= 1 or None, got 0"),
        ("--temperature 0", "--temperature: expected a finite number > 0, got 0.0"),
        ("--sequence-temperature -1", "--sequence-temperature: expected a finite number > 0, got -1.0"),
        ("--held-out 1", "--held-out: expected a number between 0 and 1, got 1.0"),
    ],
)
def test_settings_out_of_range(refused, arguments, message):
    assert refused(*arguments.split()) == message


def test_options_of_the_parser(capsys):
    for arguments in (["--matching", "best"], ["--steps", "many"], ["--unknown"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "invalid choice: 'best'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for name in Options.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in shown


def test_quick_gives_way_to_what_is_typed(monkeypatch):
    found = []
    monkeypatch.setattr("mlot.distill.cli.run", lambda options, *_: found.append(options))
    assert main(["--quick"]) == 0
    assert main(["--quick", "--steps", "7"]) == 0
    assert main([]) == 0
    assert found == [Options(**QUICK), Options(**(QUICK | {"steps": 7})), Options()]


def test_interruption(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mlot.distill.cli.run", interrupted)
    assert main([]) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err


def test_the_module_is_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "mlot.distill", "--steps", "0"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mlot.distill: error: --steps: expected an integer >= 1, got 0\n"


# -- the output folder -----------------------------------------------------------------------------------


def test_foreign_files_are_refused(refused, text, tmp_path):
    output = tmp_path / "mine"
    output.mkdir()
    (output / "thesis.txt").write_text("years of work")
    message = refused("--text", text, "--output", output)
    assert message.startswith("--output: expected a folder that is new, empty or from an earlier run, but")
    assert (
        f"'{output}' holds thesis.txt; --overwrite leaves other files alone and replaces teacher, " in message
    )
    assert [path.name for path in output.iterdir()] == ["thesis.txt"]


def test_entries_of_the_right_name_but_no_run_are_refused(tmp_path):
    (tmp_path / "teacher").mkdir()
    for report in (None, "{}", "not json", '["mlot.distill.1"]'):
        if report is not None:
            (tmp_path / "report.json").write_text(report)
        with pytest.raises(DistillError, match="holds (report.json, )?teacher; --overwrite"):
            check_output(tmp_path, overwrite=False, sources=[])
    (tmp_path / "report.json").write_text(json.dumps({"format": "mlot.distill.1"}))
    check_output(tmp_path, overwrite=False, sources=[])
    for n in range(5):
        (tmp_path / f"{n}.txt").touch()
    with pytest.raises(DistillError, match="holds 0.txt, 1.txt, 2.txt and 2 more; --overwrite"):
        check_output(tmp_path, overwrite=False, sources=[])
    check_output(tmp_path, overwrite=True, sources=[])


def test_new_and_empty_folders_are_fine(tmp_path):
    check_output(tmp_path, overwrite=False, sources=[])
    check_output(tmp_path / "new", overwrite=False, sources=[])
    (tmp_path / ".partial-of-a-killed-run").mkdir()
    check_output(tmp_path, overwrite=False, sources=[])


def test_a_file_is_no_folder(refused, text, tmp_path):
    path = tmp_path / "file"
    path.touch()
    assert refused("--text", text, "--output", path) == f"--output: expected a folder, but '{path}' is a file"
    assert refused("--text", text, "--output", path / "below").startswith(
        "--output: expected a folder to write to"
    )


def test_sources_are_not_replaced(refused, folders, text, tmp_path):
    output = folders[0].parent
    inside = folders[0].rename(output / "teacher")
    arguments = [
        "--text",
        text,
        "--teacher",
        inside,
        "--student",
        folders[1],
        "--output",
        output,
        "--overwrite",
    ]
    assert (
        refused(*arguments)
        == f"--output: '{inside}' is read by this run and would be replaced by its results"
    )
    assert (inside / "model.safetensors").exists()


def test_results_replace_an_earlier_run_and_leave_other_files(tmp_path):
    (tmp_path / "student-ce").mkdir()
    (tmp_path / "student-ce" / "old").touch()
    (tmp_path / "teacher").mkdir()
    (tmp_path / "report.json").write_text(json.dumps({"format": "mlot.distill.1"}))
    (tmp_path / "other.txt").write_text("other")
    with staging(tmp_path) as folder:
        (folder / "student-ce").mkdir()
        (folder / "student-ce" / "new").touch()
        (folder / "report.json").write_text("new")
        assert (tmp_path / "student-ce" / "old").exists()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "other.txt",
        "report.json",
        "student-ce",
        "student-ce/new",
    ]
    assert (tmp_path / "report.json").read_text() == "new"


def test_a_foreign_entry_without_a_successor_stays(tmp_path):
    (tmp_path / "teacher").mkdir()
    with staging(tmp_path) as folder:
        (folder / "report.json").touch()
    assert (tmp_path / "teacher").exists()


def test_a_failure_leaves_nothing_of_the_new_and_all_of_the_old(tmp_path, monkeypatch):
    output = tmp_path / "a" / "b"

    def write_and_fail():
        with staging(output) as folder:
            (folder / "report.json").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert not (tmp_path / "a").exists()

    old = ("student-ce", "student-mlot", "report.json")
    output.mkdir(parents=True)
    for name in old:
        (output / name).write_text("old")
    (output / "report.json").write_text(json.dumps({"format": "mlot.distill.1"}))
    replace = Path.replace

    def fail_at_the_report(self, target):
        if self.name == "report.json" and self.parent.name == "new":
            raise OSError("disk full")
        return replace(self, target)

    def write_all():
        with staging(output) as folder:
            for name in old:
                (folder / name).write_text("new")

    monkeypatch.setattr(Path, "replace", fail_at_the_report)
    with pytest.raises(OSError, match="disk full"):
        write_all()
    assert sorted(path.name for path in output.iterdir()) == sorted(old)
    assert (output / "student-ce").read_text() == (output / "student-mlot").read_text() == "old"
    assert "format" in (output / "report.json").read_text()
