"""From a running server to a saved teacher: every kind of server, trouble of every kind, and the command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import mlot.serving._server as server_module
from fake_server import FakeServer
from mlot.saved import SavedTeacher, example_key, save_from_server, save_teacher
from mlot.saved.cli import main
from mlot.serving import Server, ServerError
from saved_models import TEXTS, llama, tokenizer

K = 12
KINDS = ["vllm", "sglang", "llama.cpp", "openai"]


@pytest.fixture(scope="module")
def model() -> Any:
    return llama()


@pytest.fixture(scope="module")
def words() -> Any:
    return tokenizer()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module.time, "sleep", lambda seconds: None)


def keys_of(words: Any) -> list[str]:
    keys = []
    for text in TEXTS:
        ids = words(text)["input_ids"]
        keys.append(example_key(ids, [*[True] * (len(ids) - 1), False]))
    return keys


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_saves_what_its_model_does(kind: str, model: Any, words: Any, tmp_path: Path) -> None:
    """The same examples, positions, tokens and log-probabilities as from the weights."""
    seen = []
    with FakeServer(kind, model, words) as server:
        saved = save_from_server(
            f"{server.url}/v1", words, TEXTS, tmp_path / "served", k=K, dtype="float32",
            progress=lambda done, of: seen.append((done, of)),
        )  # fmt: skip
    own = save_teacher(model, words, TEXTS, tmp_path / "own", keep="likeliest", k=K, dtype="float32")
    assert len(saved) == len(own) == len(set(keys_of(words)))
    assert saved.manifest.settings == {"server": kind}
    assert seen[0] == (0, len(own))
    assert seen[-1] == (len(own), len(own))
    for key in keys_of(words):
        got, want = saved.batch([key]), own.batch([key])
        np.testing.assert_array_equal(got.ids, want.ids)
        np.testing.assert_allclose(got.logprobs, want.logprobs, atol=2e-6)


@pytest.mark.parametrize("trouble", [429, 503, "hang up"])
def test_what_passes_is_tried_again(trouble: Any, model: Any, words: Any, tmp_path: Path) -> None:
    with FakeServer("vllm", model, words, lambda n: trouble if n % 3 == 2 else None) as server:
        saved = save_from_server(server.url, words, TEXTS, tmp_path / "served", k=K)
    assert len(saved) == len(set(keys_of(words)))


@pytest.mark.parametrize("trouble", [500, "hang up", b"{", b"[" * 100_000, b'{"choices": 3}', 400])
def test_a_server_that_dies_loses_nothing(trouble: Any, model: Any, words: Any, tmp_path: Path) -> None:
    """What was answered is saved and not asked for again."""
    folder = tmp_path / "served"
    arguments = {"k": K, "concurrency": 1, "retries": 1, "examples_per_shard": 3}
    with (
        FakeServer("vllm", model, words, lambda n: trouble if n > 6 else None) as server,
        pytest.raises(ServerError, match=r"\d+ of \d+ examples are saved, and the same call resumes"),
    ):
        save_from_server(server.url, words, TEXTS, folder, **arguments)
    assert len(SavedTeacher(folder)) == 5  # the first request is a trial
    with FakeServer("vllm", model, words) as server:
        saved = save_from_server(server.url, words, TEXTS, folder, **arguments)
        assert len(server.requests) == 1 + len(saved) - 5
        save_from_server(server.url, words, TEXTS, folder, **arguments)
        assert len(server.requests) == 1 + len(saved) - 5
    assert not saved.missing(keys_of(words))


def test_what_a_server_cannot_do_is_told_first(model: Any, words: Any, tmp_path: Path) -> None:
    with FakeServer("deaf", model, words) as server:
        with pytest.raises(ServerError, match="echo"):
            save_from_server(server.url, words, TEXTS, tmp_path / "served", k=K)
        assert len(server.requests) == 1
        with pytest.raises(ServerError, match="status 404"):
            save_from_server(server.url, words, TEXTS, tmp_path / "other", k=K, kind="sglang")


def test_a_server_writes_answers(model: Any, words: Any) -> None:
    with FakeServer("vllm", model, words, lambda n: {"choices": []} if n == 3 else None) as server:
        asked = Server(server.url)
        assert asked.answer("Once", max_tokens=7) == " 7 more"
        assert asked.answer([{"role": "user", "content": "hello"}], seed=1) == "to 1 messages"
        with pytest.raises(ServerError, match="expected an answer with text"):
            asked.answer("Once")
        with pytest.raises(ValueError, match="^max_tokens: expected"):
            asked.answer("Once", max_tokens=0)


def test_what_cannot_be_told_is_counted(model: Any, words: Any, tmp_path: Path) -> None:
    """A server that names tokens by text, some by pieces of characters."""

    class Spelling(FakeServer):
        def answer(self, path: str, content: dict[str, Any]) -> Any:
            answer = super().answer(path, content)
            tops = answer["choices"][0]["logprobs"]["top_logprobs"]
            for n, top in enumerate(tops):
                if top is not None and n % 3 == 1:
                    third = sorted(top, key=top.__getitem__)[-3]
                    tops[n] = {"\ufffd" if name == third else name: x for name, x in top.items()}
            return answer

    with (
        Spelling("openai", model, words) as server,
        pytest.warns(
            UserWarning, match=r"of \d+ positions, \d+ have no token that can be told, and the lists of"
        ),
    ):
        save_from_server(server.url, words, TEXTS, tmp_path / "served", k=K)


def test_nobody_there(words: Any, tmp_path: Path) -> None:
    with FakeServer("vllm", None, words) as server:
        url = server.url
    with pytest.raises(ServerError, match="after 2 tries"):
        save_from_server(url, words, TEXTS, tmp_path / "served", retries=1)
    assert not (tmp_path / "served").exists()


def test_an_answer_without_end_is_not_read(model: Any, words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_MOST_BYTES", 100)
    with FakeServer("vllm", model, words, lambda n: b"1" * 200) as server:
        asked = Server(server.url)
        with pytest.raises(ServerError, match="an answer of over 100 bytes"):
            asked.likeliest([1, 2, 3], [0, 1], k=3, vocab_size=270)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "localhost:8000"}, "url: expected http:// or https://, got 'localhost:8000'"),
        ({"kind": "tgi"}, "kind: expected"),
        ({"k": 0}, "k: expected"),
        ({"concurrency": 0}, "concurrency: expected"),
        ({"retries": -1}, "retries: expected"),
        ({"timeout": 0.0}, "timeout: expected"),
        ({"dtype": "int8"}, "dtype: expected"),
        ({"examples": []}, "examples: expected at least one"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str, words: Any, tmp_path: Path) -> None:
    given = {"url": "http://127.0.0.1:9", "examples": TEXTS, "kind": "vllm", "model": "m"} | arguments
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        save_from_server(given.pop("url"), words, given.pop("examples"), tmp_path / "served", **given)
    assert not (tmp_path / "served").exists()


def test_several_are_asked_at_a_time(model: Any, words: Any, tmp_path: Path) -> None:
    waited = []

    class Slow(FakeServer):
        def answer(self, path: str, content: dict[str, Any]) -> Any:
            waited.append(time.perf_counter())
            return super().answer(path, content)

    with Slow("vllm", model, words) as server:
        save_from_server(server.url, words, TEXTS, tmp_path / "served", k=K, concurrency=3)
    assert len(waited) == 1 + len(set(keys_of(words)))


def test_command(model: Any, words: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words.save_pretrained(tmp_path / "words")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(TEXTS), encoding="utf-8")
    output = tmp_path / "served"
    common = ["save", "--tokenizer", str(tmp_path / "words"), "--text", str(text), "--output", str(output)]
    with FakeServer("vllm", model, words) as server:
        assert main([*common, "--server", server.url, "--k", str(K)]) == 0
        assert main([*common, "--server", server.url, "--k", str(K), "--student", "x"]) == 2
        assert main([*common, "--server", server.url, "--keep", "traces"]) == 2
    assert main(common) == 2
    assert main([*common, "--model", "x"]) == 2
    assert "11 examples" in (printed := capsys.readouterr()).out
    for line in (
        "--student: has no effect with --server",
        "--keep: expected likeliest",
        "--model: expected a folder or an id, or --server",
        "--tokenizer: expected --server beside it",
    ):
        assert line in printed.err
    assert len(SavedTeacher(output)) == len(set(keys_of(words)))


@pytest.mark.parametrize("rows", [slice(None, -1), slice(2, None)])
def test_other_tokens_than_were_given(
    rows: slice, model: Any, words: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that is cut off, or has tokens put before it, would be kept at the wrong positions for good."""
    honest = Server.post

    def post(self: Server, path: str, content: dict[str, Any]) -> Any:
        answer = honest(self, path, content)
        choice = answer["choices"][0]
        described = choice["prompt_logprobs"]
        choice["prompt_logprobs"] = described[rows] if rows.stop else [None, *described]
        return answer

    monkeypatch.setattr(Server, "post", post)
    with (
        FakeServer("vllm", model, words) as server,
        pytest.raises(ServerError, match="to describe the [0-9]+ tokens given"),
    ):
        save_from_server(server.url, words, ["some words of text"], tmp_path / "t", k=5)
