"""Responses of inference servers: their recorded shapes, and which position each entry belongs to."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import mlot
from mlot import serving

RESPONSES = Path(__file__).parent / "responses"


def recorded(name: str) -> object:
    return json.loads((RESPONSES / f"{name}.json").read_text())


def listed(source: mlot.TopKLogprobs, n: int = 0) -> list[dict[int, float]]:
    """Ids and log-probabilities at each position of one sequence."""
    return [
        {int(i): float(p) for i, p in zip(ids, logs, strict=True) if i >= 0}
        for ids, logs in zip(source.ids[n], source.logprobs[n], strict=True)
    ]


@dataclass
class Logprob:
    """As vLLM's."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


# -- alignment: entries that describe token t + 1 stand at position t -------------------------------------


def some_model(rng: np.random.Generator, tokens: int, width: int) -> np.ndarray:
    """Log-probabilities ``(T, V)``, row t predicting token t + 1."""
    return np.log(rng.dirichlet(np.full(width, 0.3), size=tokens))


def as_vllm(logs: np.ndarray, tokens: np.ndarray, k: int) -> list[object]:
    """What vLLM lists for each token: the top k of the row before it, and the token itself."""
    rows: list[object] = [None]
    for t in range(1, len(tokens)):
        order = np.argsort(-logs[t - 1], kind="stable")
        row = {int(tokens[t]): Logprob(float(logs[t - 1, tokens[t]]), int((order == tokens[t]).argmax()) + 1)}
        row |= {int(i): Logprob(float(logs[t - 1, i]), rank) for rank, i in enumerate(order[:k], 1)}
        rows.append(row)
    return rows


@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 6))
def test_the_entries_are_those_of_the_position_that_predicts(seed: int, k: int) -> None:
    """Against the model's own rows, for every format; positions off by one would not pass."""
    rng = np.random.default_rng(seed)
    logs, tokens = some_model(rng, 6, 6), rng.integers(0, 6, size=6)
    order = np.argsort(-logs, axis=1, kind="stable")[:, :k]
    top = [[(float(logs[t, i]), int(i), None) for i in order[t]] for t in range(5)]
    text = {f"t{i}": i for i in range(6)}
    chat = [
        {"token": "", "top_logprobs": [{"token": f"t{i}", "bytes": None, "logprob": p} for p, i, _ in row]}
        for row in top[2:]
    ]
    legacy = [None, *({f"t{i}": p for p, i, _ in row} for row in top)]
    sources = {
        "vllm": serving.from_vllm(as_vllm(logs, tokens, k)),
        "sglang": serving.from_sglang([None, *top]),
        "chat": serving.from_openai({"choices": [{"logprobs": {"content": chat}}]}, text, prompt_lengths=3),
        "legacy": serving.from_openai(
            {"choices": [{"logprobs": {"top_logprobs": legacy}}]}, text, prompt_lengths=0
        ),
    }
    for name, served in sources.items():
        rows = listed(served.source)
        assert len(rows) == 6, name
        assert rows[5] == {}, name
        for t in range(2 if name == "chat" else 0, 5):
            want = {int(i): float(logs[t, i]) for i in order[t]}
            if name == "vllm" and int(tokens[t + 1]) not in want and len(rows[t]) > k:
                want[int(tokens[t + 1])] = float(
                    logs[t, tokens[t + 1]]
                )  # the next likeliest: nothing is left out
            assert rows[t] == want, (name, t)


def test_a_served_teacher_gives_the_loss_of_its_logits() -> None:
    """With every token listed; labels of the tokens are the mask."""
    rng = np.random.default_rng(0)
    lengths, width = (6, 4), 8
    logits, labels = np.zeros((2, 6, width)), np.full((2, 6), -100)
    prompts = []
    for n, length in enumerate(lengths):
        logs, tokens = some_model(rng, length, width), rng.integers(0, width, size=length)
        logits[n, :length], labels[n, 2:length] = logs, tokens[2:]
        prompts.append(as_vllm(logs, tokens, width))
    student = rng.normal(size=(2, 5, 9))
    mask = mlot.mask_from_labels(labels)
    source = serving.from_vllm(prompts, vocab_size=width).source
    want = mlot.multi_level_ot(student, logits, teacher_mask=mask)
    got = mlot.multi_level_ot(student, source, teacher_mask=mask)
    np.testing.assert_allclose(got.loss, want.loss, rtol=1e-10)
    shifted = mlot.TopKLogprobs(np.roll(source.ids, 1, axis=1), np.roll(source.logprobs, 1, axis=1), width)
    wrong = mlot.multi_level_ot(student, shifted, teacher_mask=np.roll(mask, 1, axis=1) & mask)
    assert abs(wrong.loss - want.loss) > 1e-3  # the check would see a shift


# -- recorded shapes -------------------------------------------------------------------------------------


def test_vllm_completions() -> None:
    served = serving.from_vllm(recorded("vllm_completions"), vocab_size=300)
    assert listed(served.source, 0) == [
        {4: -0.5, 9: -1.75},  # the token that stands there has rank 214, and is left out
        {7: -0.25, 2: -2.5},
        {5: -0.75, 6: -1.25, 8: -1.5},  # rank 3 of three: it belongs to the most likely
        {},
    ]
    assert listed(served.source, 1) == [{4: -0.125}, {}, {}, {}]
    assert (served.beyond, served.unknown, served.ambiguous) == (2, 0, 0)
    two = serving.from_vllm(recorded("vllm_completions"), k=2)
    assert listed(two.source, 0)[2] == {5: -0.75, 6: -1.25}
    assert two.source.ids.shape == (2, 4, 2)


def test_vllm_chat_and_a_list_of_responses() -> None:
    one = recorded("vllm_chat")
    served = serving.from_vllm(one)
    assert listed(served.source) == [{1: -0.25, 3: -2.0}, {0: -0.5, 6: -3.5}, {}]
    both = serving.from_vllm([one, recorded("vllm_completions")])
    assert both.source.ids.shape == (3, 4, 3)
    assert listed(both.source, 0)[:3] == listed(served.source)


def test_vllm_offline() -> None:
    prompt = [None, {11: Logprob(-9.25, 214, "x"), 4: Logprob(-0.5, 1), 9: Logprob(-1.75, 2)}]
    answer = [
        {5: Logprob(-0.75, 1), 6: Logprob(-1.25, 2)},
        {3: Logprob(-0.25, 1), 2: Logprob(float("-inf"), 2)},
    ]
    output = SimpleNamespace(prompt_logprobs=prompt, outputs=[SimpleNamespace(logprobs=answer)])
    assert listed(serving.from_vllm(output).source) == [{4: -0.5, 9: -1.75}, {}]
    served = serving.from_vllm([output, output], generated=True)
    assert listed(served.source, 1) == [{4: -0.5, 9: -1.75}, {5: -0.75, 6: -1.25}, {3: -0.25}, {}]
    assert served.beyond == 4
    for rank, kept in ((3, {4: -0.5, 9: -1.75, 11: -2.5}), (4, {4: -0.5, 9: -1.75})):
        row = {11: Logprob(-2.5, rank), 4: Logprob(-0.5, 1), 9: Logprob(-1.75, 2)}
        assert listed(serving.from_vllm([None, row]).source)[0] == kept  # the next one is among the likeliest
    without_ranks = [None, {11: Logprob(-9.25), 4: Logprob(-0.5), 9: Logprob(-1.75)}]
    assert listed(serving.from_vllm(without_ranks, k=2).source)[0] == {4: -0.5, 9: -1.75}


def test_sglang() -> None:
    one = recorded("sglang_generate")
    want = [{4: -0.5, 9: -1.75}, {7: -0.25, 2: -2.5}, {}]
    for response in (one, one["meta_info"], one["meta_info"]["input_top_logprobs"], [one]):
        assert listed(serving.from_sglang(response).source) == want
    whole = serving.from_sglang(one, generated=True)
    assert listed(whole.source) == [*want[:2], {5: -0.75, 6: -1.25}, {10: -0.125, 1: -3.0}, {}]
    late = serving.from_sglang([one, one], start=2)
    assert listed(late.source, 1) == [{}, {}, *want]


VOCABULARY = {"caf": 3, "the": 4, "é": 5, b"\xc3": 6, " ": 7, "<|end|>": 8}


def test_openai_chat() -> None:
    served = serving.from_openai(recorded("openai_chat"), VOCABULARY, prompt_lengths=3, vocab_size=9)
    assert listed(served.source) == [
        {},
        {},
        {3: -0.5, 4: -1.75},  # made at the prompt's last token
        {5: -0.25, 6: -2.0},
        {7: -0.125},  # what comes after an unknown token is left out as well
        {8: -0.0625},
        {},
    ]
    assert (served.beyond, served.unknown, served.ambiguous) == (2, 1, 0)


def test_openai_objects_are_read_like_json() -> None:
    def objects(value: object) -> object:
        if isinstance(value, dict):
            return SimpleNamespace(**{name: objects(each) for name, each in value.items()})
        return [objects(each) for each in value] if isinstance(value, list) else value

    plain = recorded("openai_chat")
    want = serving.from_openai(plain, VOCABULARY, prompt_lengths=3)
    got = serving.from_openai(objects(plain), VOCABULARY, prompt_lengths=[3])
    np.testing.assert_array_equal(got.source.ids, want.source.ids)


def test_openai_completions_with_echo() -> None:
    vocabulary = {"the": 0, " cat": 1, " sat": 2, " dog": 3, " hat": 4, " ran": 5}
    served = serving.from_openai(recorded("openai_completions_echo"), vocabulary, prompt_lengths=0, k=2)
    assert listed(served.source) == [{3: -0.5, 4: -1.5}, {2: -0.25, 5: -2.5}, {}]
    assert served.beyond == 1


def test_a_tokenizer_as_the_vocabulary() -> None:
    """By the bytes that its tokens stand for, special tokens as they are spelled, and what is ambiguous is not guessed."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "ca", "caf", "<|end|>"]
    made = Tokenizer(models.BPE({t: n for n, t in enumerate(tokens)}, [("c", "a"), ("ca", "f")]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<|end|>"])
    served = serving.from_openai(recorded("openai_chat"), made, prompt_lengths=1)
    ids = {name: made.token_to_id(name) for name in ("caf", "Ã", "Ġ", "<|end|>")}
    assert listed(served.source) == [
        {ids["caf"]: -0.5},
        {},
        {ids["Ġ"]: -0.125},
        {ids["<|end|>"]: -0.0625},
        {},
    ]
    assert served.unknown == 3  # "the", "é" (whose spelling is another token), " unheard"


def test_ambiguous_text() -> None:
    row = [{"token": "a", "bytes": [97], "logprob": -0.5}, {"token": "b", "bytes": [98], "logprob": -1.5}]
    response = {
        "choices": [{"logprobs": {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": row}]}}]
    }
    fallback = Tokenizer(models.BPE({"<0x61>": 0, "a": 1, "b": 2, "<0x62>": 3}, [], byte_fallback=True))
    fallback.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    served = serving.from_openai(response, fallback, prompt_lengths=1)
    assert listed(served.source)[0] == {1: -0.5, 2: -1.5}  # spelled as the vocabulary does
    both = {b"a": 0, "a": 1, "b": 2}
    assert listed(serving.from_openai(response, both, prompt_lengths=1).source)[0] == {1: -0.5, 2: -1.5}
    row[0]["token"] = "?"
    served = serving.from_openai(response, both, prompt_lengths=1)
    assert listed(served.source)[0] == {}
    assert (served.ambiguous, served.beyond) == (1, 1)


def test_escaped_bytes_of_the_older_completions() -> None:
    response = {"choices": [{"logprobs": {"top_logprobs": [{"bytes:\\xe2\\x80": -0.5, "a": -1.5}]}}]}
    served = serving.from_openai(response, {b"\xe2\x80": 4, "a": 1}, prompt_lengths=1)
    assert listed(served.source) == [{4: -0.5, 1: -1.5}, {}]


def test_a_vocabulary_of_unknown_spelling() -> None:
    slow = SimpleNamespace(
        get_vocab=lambda: {"caf": 3, "the": 4}, convert_ids_to_tokens=list, all_special_ids=[]
    )
    served = serving.from_openai(recorded("openai_chat"), slow, prompt_lengths=1)
    assert listed(served.source)[0] == {3: -0.5, 4: -1.75}


def test_tokens_as_ids() -> None:
    row = [{"token": "token_id:17", "bytes": None, "logprob": -0.5}]
    response = {"choices": [{"logprobs": {"content": [{"token": "", "logprob": -0.5, "top_logprobs": row}]}}]}
    assert listed(serving.from_openai(response, None, prompt_lengths=1).source) == [{17: -0.5}, {}]
    for token, logprob in (("b", -1.5), ("token_id:17", -2.5), ("c", -3.5)):
        row.append({"token": token, "bytes": None, "logprob": logprob})
    served = serving.from_openai(response, {"b": 2, "c": 3}, prompt_lengths=1)
    assert listed(served.source)[0] == {17: -0.5, 2: -1.5}  # two tokens cannot have one id
    assert (served.ambiguous, served.beyond) == (1, 1)


# -- what all of them take -------------------------------------------------------------------------------


def test_padding_length_and_settings() -> None:
    prompts = [[None, {1: -0.5}, {2: -0.25}], [None, {3: -0.125}]]
    right = serving.from_vllm(prompts, length=4, vocab_size=9, tail="uniform", temperature=0.7).source
    assert (right.vocab_size, right.tail, right.temperature) == (9, "uniform", 0.7)
    assert right.ids[:, :, 0].tolist() == [[1, 2, -1, -1], [3, -1, -1, -1]]
    left = serving.from_vllm(prompts, length=4, padding_side="left").source
    assert left.ids[:, :, 0].tolist() == [[-1, 1, 2, -1], [-1, -1, 3, -1]]
    on_torch = serving.from_vllm(prompts, backend="torch").source
    assert isinstance(on_torch.ids, torch.Tensor)
    assert on_torch.ids[:, :, 0].tolist() == [[1, 2, -1], [3, -1, -1]]
    assert serving.from_vllm([]).source.shape[:2] == (0, 0)


def test_bad_responses() -> None:
    wrong = recorded("vllm_completions")
    wrong["choices"][1]["prompt_logprobs"][1]["4"]["logprob"] = None
    chat = recorded("openai_chat")
    unlisted = copy.deepcopy(chat)
    unlisted["choices"][0]["logprobs"]["content"][2].pop("top_logprobs")
    for call, kind, message in (
        (lambda: serving.from_vllm(wrong), ValueError, r"^responses\[0\].choices\[1\]\[1\]\['4'\]: expected a log-prob"),
        (lambda: serving.from_vllm(chat), ValueError, r"^responses\[0\].choices\[0\]: expected a list prompt_logprobs"),
        (lambda: serving.from_vllm({}), ValueError, r"^responses\[0\]: expected a list prompt_logprobs, got NoneType"),
        (lambda: serving.from_vllm([None, {"a": -1.0}]), ValueError, r"^responses\[0\]\[1\]: expected a token id, got 'a'"),
        (lambda: serving.from_vllm([None, {2**63: -1.0}]), ValueError, r"^responses\[0\]\[1\]: expected a token id, got 9223"),
        (lambda: serving.from_vllm([None, {"9" * 5000: -1.0}]), ValueError, r"^responses\[0\]\[1\]: expected a token id, got '999"),
        (lambda: serving.from_vllm([None, {"4": -(10**400)}]), ValueError, r"^responses\[0\]\[1\]\['4'\]: expected a log-prob"),
        (
            lambda: serving.from_vllm([None, {"4": {"logprob": -1.0, "rank": "1"}}]),
            ValueError,
            r"^responses\[0\]\[1\]\['4'\]: expected a rank, got '1'",
        ),
        *(
            (
                lambda raw=raw: serving.from_openai(
                    {"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "a", "bytes": raw, "logprob": -1.0}]}]}}]},
                    {"a": 0},
                    prompt_lengths=1,
                ),
                ValueError,
                r"^responses\[0\].choices\[0\].logprobs.content\[0\]: expected bytes as a list of integers",
            )
            for raw in (10**12, [256], ["a"], "a")
        ),
        (lambda: serving.from_vllm([None, [1]]), ValueError, r"^responses\[0\]\[1\]: expected None or ids mapped"),
        (lambda: serving.from_vllm([None, {1: float("nan")}]), ValueError, "expected a log-probability, got NaN"),
        (lambda: serving.from_vllm([None, {1: -1.0}], generated=True), ValueError, "expected a RequestOutput"),
        (lambda: serving.from_vllm([None, {1: -1.0}], length=1), ValueError, "^length: expected at least 2"),
        (lambda: serving.from_vllm([None, {1: -1.0}], k=0), ValueError, "^k: expected an integer >= 1"),
        (lambda: serving.from_vllm([None], padding_side="top"), ValueError, "^padding_side: expected one of"),
        (lambda: serving.from_vllm([None, {1: -1.0}], backend="abacus"), ValueError, "^backend: expected one of"),
        (lambda: serving.from_sglang({"meta_info": {}}), ValueError, r"^responses\[0\]: expected meta_info with a list"),
        (lambda: serving.from_sglang([None, [[-0.1]]]), ValueError, r"^responses\[0\]\[1\]: expected \(logprob, id, text\)"),
        (lambda: serving.from_sglang([None], start=-1), ValueError, "^start: expected an integer >= 0"),
        (lambda: serving.from_openai({}, {}, prompt_lengths=1), ValueError, r"^responses\[0\]: expected a completion with"),
        (lambda: serving.from_openai({"choices": [{}]}, {}, prompt_lengths=1), ValueError, "expected logprobs with a list"),
        (lambda: serving.from_openai(unlisted, {}, prompt_lengths=1), ValueError, r"content\[2\]: expected a list top_logprobs"),
        (lambda: serving.from_openai(chat, ["a"], prompt_lengths=1), TypeError, "^vocabulary: expected a tokenizer"),
        (lambda: serving.from_openai(chat, {"a": "b"}, prompt_lengths=1), TypeError, "^vocabulary: expected text or bytes"),
        (lambda: serving.from_openai(chat, {}, prompt_lengths=[1, 2]), ValueError, "^prompt_lengths: expected one for each of 1"),
        (lambda: serving.from_openai(chat, {}, prompt_lengths=-1), ValueError, "^prompt_lengths: expected an integer >= 0"),
    ):  # fmt: skip
        with pytest.raises(kind, match=message):
            call()
