"""Pretrained models and tokenizers: from folders, and by their ids from the cache, never from the network."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("transformers")

from mlot._hf.loading import load_model, load_tokenizer, require_length
from saved_models import llama, tokenizer

#: Loads a model by its id and says what it is.
LOAD = """
from mlot._hf.loading import load_model, load_tokenizer
model, tokenizer, notices = load_model("somebody/tiny", "--model")
print(type(model).__name__, len(tokenizer), model.config._name_or_path[-40:])
for load in (load_model, load_tokenizer):
    try: load("somebody/other", "--model")
    except ValueError as error: print(error)
"""


def test_an_id_that_the_cache_has(tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--somebody--tiny"
    snapshot = repository / "snapshots" / commit
    llama().save_pretrained(snapshot)
    tokenizer().save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        env=os.environ | {"HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    first, *refused = done.stdout.splitlines()
    assert first == f"LlamaForCausalLM {len(tokenizer())} {commit}"
    assert refused == [
        f"--model: expected a folder with {what}, or the id of one in the cache of Hugging Face, "
        "found none at 'somebody/other'"
        for what in ("a model", "a tokenizer")
    ]


def test_a_folder_and_what_is_none(tmp_path):
    llama().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model: expected a tokenizer in "):
        load_model(tmp_path, "model")
    tokenizer().save_pretrained(tmp_path)
    model, loaded, _ = load_model(tmp_path, "model")
    assert loaded.get_vocab() == tokenizer().get_vocab() == load_tokenizer(tmp_path, "model")[0].get_vocab()
    longest = model.config.max_position_embeddings
    require_length(model, "model", longest, "length")
    with pytest.raises(ValueError, match=f"length: expected at most {longest}, all that the model of model"):
        require_length(model, "model", longest + 1, "length")
    with pytest.raises(ValueError, match="or the id of one in the cache of Hugging Face, found none at"):
        load_model("no such/id at/all", "model")
