"""What ``python -m mlot.distill`` refuses, each before the first step and with a message that says why."""

from pathlib import Path

import pytest

pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaForCausalLM,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from distill_cases import SHORT, run_without_training, save_gpt2, save_llama, texts_of, write_text
from mlot._hf.made import train_bpe, train_unigram
from mlot.distill.cli import main


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of thirty documents."""
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def tokenizers(text):
    """A teacher's and a student's."""
    documents = texts_of(text)
    return train_bpe(documents, 300, 32), train_unigram(documents, 280, 32)


@pytest.fixture
def folders(tokenizers, tmp_path):
    """Folders of a GPT-2 that teaches and of a Llama that learns."""
    teacher, student = tokenizers
    return save_gpt2(tmp_path / "gpt2", teacher), save_llama(tmp_path / "llama", student)


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
    assert (
        message
        == f"--teacher: expected a folder with a model, or the id of one in the cache of Hugging Face, found none at '{nowhere}'"
    )
    message = refused("--text", text, "--teacher", folders[0], "--student", nowhere)
    assert (
        message
        == f"--student: expected a folder with a model, or the id of one in the cache of Hugging Face, found none at '{nowhere}'"
    )
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
    without = train_bpe(texts_of(text), own, 32)
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
        ("--checkpoint-every -1", "--checkpoint-every: expected an integer >= 0 or None, got -1"),
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


def test_foreign_files_are_refused(refused, text, tmp_path):
    output = tmp_path / "mine"
    output.mkdir()
    (output / "thesis.txt").write_text("years of work")
    message = refused("--text", text, "--output", output)
    assert message.startswith("--output: expected a folder that is new or empty, but")
    assert (
        f"'{output}' holds thesis.txt; --overwrite leaves other files alone and replaces teacher, " in message
    )
    assert [path.name for path in output.iterdir()] == ["thesis.txt"]


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
