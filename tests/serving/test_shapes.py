"""Further shapes: llama.cpp's and Ollama's own endpoints, streamed chunks, vLLM's flat arrays; hostile answers."""

from __future__ import annotations

import json
import math
import random
import re
import tracemalloc
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from mlot import serving
from serving_cases import byte_level, chat, entry, listed

TOP = [
    {"id": 5, "token": " a", "bytes": [32, 97], "logprob": -0.5},
    {"id": 7, "token": "b", "bytes": [98], "logprob": -1.5},
]
DESCRIBED = [{**TOP[0], "top_logprobs": TOP}, {**TOP[1], "top_logprobs": TOP[:1]}]


def test_llama_cpp() -> None:
    response = {"content": " ab", "completion_probabilities": DESCRIBED, "tokens_evaluated": 3}
    want = [{}, {}, {5: -0.5, 7: -1.5}, {5: -0.5}, {}]
    assert listed(serving.from_llama_cpp(response).source) == want
    assert listed(serving.from_llama_cpp([response] * 2, prompt_lengths=[3, 1]).source, 1) == [
        *want[2:],
        {},
        {},
    ]
    sampled = [{"id": 5, "token": " a", "prob": 0.75, "top_probs": [{"id": 5, "token": " a", "prob": 0.75}]}]
    response = {"completion_probabilities": sampled, "tokens_evaluated": 1}
    assert listed(serving.from_llama_cpp(response).source) == [{5: math.log(0.75)}, {}]


def test_llama_cpp_before_ids() -> None:
    probs = [{"tok_str": " a", "prob": 0.75}, {"tok_str": "b", "prob": 0.125}, {"tok_str": "c", "prob": 0.0}]
    response = {"completion_probabilities": [{"content": " a", "probs": probs}], "tokens_evaluated": 1}
    served = serving.from_llama_cpp(response, {" a": 5, "b": 7, "c": 8})
    assert listed(served.source) == [{5: math.log(0.75), 7: math.log(0.125)}, {}]
    assert served.beyond == 1


def test_ollama() -> None:
    made = byte_level("Ġa", "ï¿½")
    plain = [{k: v for k, v in each.items() if k != "id"} for each in TOP]
    half = {"token": "\ufffd", "bytes": [239, 191, 189], "logprob": -3.0}
    described = [{**plain[0], "top_logprobs": [*plain, half]}]
    response = {"response": " a", "logprobs": described, "prompt_eval_count": 2}
    served = serving.from_ollama(response, made)
    want = {made.token_to_id("Ġa"): -0.5, made.token_to_id("b"): -1.5}
    assert listed(served.source) == [{}, want, {}]
    assert served.ambiguous == 1
    with pytest.raises(ValueError, match=r"^responses\[0\].prompt_eval_count: expected a number of tokens"):
        serving.from_ollama({"logprobs": described}, made)


def pieces(rng: random.Random, value: list[object]) -> list[list[object]]:
    cuts = sorted(rng.choices(range(len(value) + 1), k=3))
    return [value[a:b] for a, b in zip([0, *cuts], [*cuts, len(value)], strict=True)]


@pytest.mark.parametrize("seed", range(10))
def test_streamed_chunks_make_the_whole(seed: int) -> None:
    rng = random.Random(seed)
    names = {"a": 0, "b": 1}
    content = [
        {**entry("a", -0.5), "top_logprobs": [entry("a", -0.5), entry("b", -1.0 - n)]} for n in range(6)
    ]
    usage = {"prompt_tokens": 2, "completion_tokens": 6}
    whole = {"choices": [{"logprobs": {"content": content}}, {"logprobs": {"content": content[::-1]}}]}
    chunks: list[dict[str, object]] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant"}, "logprobs": None}]}
    ]
    for one, other in zip(pieces(rng, content), pieces(rng, content[::-1]), strict=True):
        for index, each in ((1, other), (0, one)):
            chunks.append({"choices": [{"index": index, "delta": {}, "logprobs": {"content": each}}]})
    chunks.append({"choices": [], "usage": usage})
    want = serving.from_openai(whole, names, prompt_lengths=2).source
    for given in (chunks, iter(chunks), [SimpleNamespace(**each) for each in chunks]):
        got = serving.from_openai(serving.merge_chunks(given), names, prompt_lengths=2).source
        np.testing.assert_array_equal(got.ids, want.ids)
        np.testing.assert_array_equal(got.logprobs, want.logprobs)
    with pytest.raises(
        ValueError, match=r"^responses\[0\].choices\[0\]: expected a whole response, got a streamed"
    ):
        serving.from_openai(chunks, names, prompt_lengths=2)


def test_streams_of_completions_llama_cpp_and_ollama() -> None:
    names = {" a": 5, "b": 7}
    rows = [{" a": -0.5, "b": -1.5}, {" a": -0.5}]
    chunks = [
        {"choices": [{"index": 0, "logprobs": {"tokens": [" a"], "top_logprobs": [row]}}]} for row in rows
    ]
    want = [{5: -0.5, 7: -1.5}, {5: -0.5}, {}]
    assert listed(serving.from_openai(serving.merge_chunks(chunks), names, prompt_lengths=1).source) == want
    chunks = [{"completion_probabilities": [each], "tokens_evaluated": 1} for each in DESCRIBED]
    whole = serving.merge_chunks([*chunks, {"content": "", "stop": True, "tokens_evaluated": 1}])
    assert listed(serving.from_llama_cpp(whole).source) == want
    chunks = [{"logprobs": [each], "done": False} for each in DESCRIBED]
    whole = serving.merge_chunks([*chunks, {"done": True, "prompt_eval_count": 1}])
    assert listed(serving.from_ollama(whole, names).source) == want
    for wrong, kind in (("a", TypeError), ([1], TypeError), ([{"choices": 3}], ValueError), ({}, TypeError)):
        with pytest.raises(kind, match=r"^chunks"):
            serving.merge_chunks(wrong)


@dataclass
class FlatLogprobs:
    """As vLLM's."""

    start_indices: list[int] = field(default_factory=list)
    end_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int | None] = field(default_factory=list)
    decoded_tokens: list[str | None] = field(default_factory=list)

    def append(self, row: dict[int, dict[str, object]] | None) -> None:
        self.start_indices.append(len(self.token_ids))
        for i, each in (row or {}).items():
            self.token_ids.append(i)
            self.logprobs.append(each["logprob"])
            self.ranks.append(each["rank"])
        self.end_indices.append(len(self.token_ids))


def test_flat_arrays_of_vllm() -> None:
    rng = np.random.default_rng(0)
    rows: list[dict[int, dict[str, object]] | None] = [None]
    for _ in range(7):
        logs = np.log(rng.dirichlet(np.full(12, 0.3)))
        order, drawn = np.argsort(-logs), rng.integers(12)
        some = [drawn, *order[:4]]
        rows.append(
            {int(i): {"logprob": float(logs[i]), "rank": int((order == i).argmax()) + 1} for i in some}
        )
    flat = FlatLogprobs()
    for row in rows:
        flat.append(row)
    want = serving.from_vllm(rows)
    arrays = {**vars(flat), "token_ids": np.array(flat.token_ids), "logprobs": np.array(flat.logprobs)}
    output = SimpleNamespace(prompt_logprobs=flat, outputs=[SimpleNamespace(logprobs=flat)])
    for given in (flat, vars(flat), json.loads(json.dumps(vars(flat))), arrays, output, [flat, flat]):
        got = serving.from_vllm(given)
        np.testing.assert_array_equal(got.source.ids[0], want.source.ids[0])
        np.testing.assert_array_equal(got.source.logprobs[0], want.source.logprobs[0])
        assert got.beyond == want.beyond * got.source.shape[0]
    assert serving.from_vllm(output, generated=True).source.shape[1] == 16
    for name, value, message in (
        ("token_ids", ["a"], r"responses\[0\].token_ids: expected a list of integers"),
        ("token_ids", [10**30] * len(flat.token_ids), r"responses\[0\].token_ids: expected a list of integers"),
        ("token_ids", [-1] * len(flat.token_ids), r"responses\[0\].token_ids: expected token ids, got -1"),
        ("token_ids", [3] * len(flat.token_ids), r"responses\[0\]\[1\]: expected different ids"),
        ("logprobs", [None], r"responses\[0\].logprobs: expected a list of numbers"),
        ("logprobs", [math.nan] * len(flat.logprobs), r"responses\[0\].logprobs: expected log-prob.* NaN"),
        ("logprobs", flat.logprobs[1:], r"responses\[0\]: expected start_indices as long as"),
        ("end_indices", [len(flat.token_ids)] * 8, r"responses\[0\]: expected start_indices and end_indices in order"),
        ("end_indices", [10**9] * 8, r"responses\[0\]: expected start_indices and end_indices in order"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{message}"):
            serving.from_vllm({**vars(flat), name: value})


# -- hostile answers -------------------------------------------------------------------------------------


def nested(depth: int) -> object:
    value: object = 0
    for _ in range(depth):
        value = [value]
    return value


HOSTILE = (None, nested(10**5), "a" * 10**6, 10**5000, {"a": {}}, True, math.nan, b"\xff", {}, object())


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_values_at_every_place(value: object) -> None:
    """Errors name the place, and are short however long or deep a value is."""
    readers = {
        "vllm": serving.from_vllm,
        "sglang": serving.from_sglang,
        "openai": lambda response: serving.from_openai(response, {" a": 5, "b": 7}, prompt_lengths=1),
        "llama": lambda response: serving.from_llama_cpp(response, {" a": 5, "b": 7}),
        "ollama": lambda response: serving.from_ollama(response, {" a": 5, "b": 7}),
        "chunks": lambda response: serving.from_openai(
            serving.merge_chunks([response]), {" a": 5, "b": 7}, prompt_lengths=1
        ),
    }
    whole = {
        "vllm": {
            "prompt_logprobs": [None, {"5": {"logprob": -0.1, "rank": 1}, "7": {"logprob": -3.0, "rank": 2}}]
        },
        "sglang": {"meta_info": {"input_top_logprobs": [None, [[-0.1, 5, None], [-3.0, 7, None]]]}},
        "openai": chat(TOP, TOP[:1]),
        "llama": {"completion_probabilities": DESCRIBED, "tokens_evaluated": 3},
        "ollama": {"logprobs": DESCRIBED, "prompt_eval_count": 3},
        "chunks": {
            "choices": [{"index": 0, "logprobs": {"content": DESCRIBED}}],
            "usage": {"prompt_tokens": 3},
        },
    }
    for name, reader in readers.items():
        for path in paths(whole[name]):
            said = ""
            try:
                reader(replaced(whole[name], path, value))
            except (TypeError, ValueError) as error:
                said = str(error)
            assert re.match("(responses|chunks|logprobs: |ids: |$)", said), (name, path, said[:400])
            assert len(said) < 400, (name, path)


def paths(value: object) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = [()]
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found += [(key, *rest) for rest in paths(value[key])]
    return found


def replaced(value: object, path: tuple[object, ...], new: object) -> object:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def test_a_few_long_lists_among_many_short_ones_take_no_memory() -> None:
    one = [[-30.0 - n / 1e5, n, None] for n in range(4000)]
    rows = [None, one, *([] for _ in range(20_000))]
    tracemalloc.start()
    try:
        with pytest.raises(
            ValueError, match="^responses: expected lists of about one length, got one of 4000"
        ):
            serving.from_sglang(rows)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
    for count in (2**40, -1, "3", 1.5):
        with pytest.raises(
            ValueError, match=r"^responses\[0\].tokens_evaluated: expected a number of tokens"
        ):
            serving.from_llama_cpp({"completion_probabilities": DESCRIBED, "tokens_evaluated": count})


def test_bytes_that_are_a_number_make_no_zeros() -> None:
    row = [{"token": "a", "bytes": 6_000_000_000, "logprob": -0.5}]
    with pytest.raises(ValueError, match="expected bytes as a list of integers"):
        serving.from_openai(chat(row, drawn=[entry("a", -0.5)]), {"a": 0}, prompt_lengths=1)
