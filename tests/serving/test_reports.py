"""What servers were reported to answer: pieces of characters, lost spaces, drawn tokens, ids, echo."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlot import serving
from serving_cases import REPLACED, byte_level, chat, entry, listed, sentence_piece

# -- pieces of characters --------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"bytes": None}])
def test_a_replacement_character_is_ambiguous(given: dict[str, object]) -> None:
    """vLLM, SGLang and Ollama write pieces of characters as U+FFFD, with its bytes; none is the real one."""
    made = byte_level("ï¿½", "the")
    real = made.token_to_id("ï¿½")
    row = [entry("the", -0.5), {**entry(REPLACED, -1.5), **given}, entry("a", -3.0)]
    served = serving.from_openai(chat(row, row[:1]), made, prompt_lengths=1)
    assert listed(served.source)[0] == {made.token_to_id("the"): -0.5}
    assert (served.ambiguous, served.unknown, served.beyond) == (1, 0, 1)
    for shows in ({"id": real}, {"bytes": [0xEF]}):
        row[1] = {**entry(REPLACED, -1.5), **shows}
        found = serving.from_openai(chat(row), made, prompt_lengths=1)
        assert found.ambiguous == 0
        piece = real if "id" in shows else made.token_to_id("ï")
        assert listed(found.source)[0] == {
            made.token_to_id("the"): -0.5,
            piece: -1.5,
            made.token_to_id("a"): -3.0,
        }


def test_bytes_that_are_shown_to_be_the_tokens_own_prove_the_real_one() -> None:
    made = byte_level("ï¿½")
    rows = [entry(REPLACED, -0.5)], [{**entry("\\xef", -0.25), "bytes": [0xEF]}]
    served = serving.from_openai(chat(*rows), made, prompt_lengths=1)
    assert listed(served.source)[:2] == [{made.token_to_id("ï¿½"): -0.5}, {made.token_to_id("ï"): -0.25}]


def test_what_completes_a_character_is_not_the_character() -> None:
    """Newer vLLM writes the last byte of a character as the whole of it, the bytes before as nothing."""
    made = byte_level("âĢĻ", "x")
    whole = made.token_to_id("âĢĻ")
    rows = [entry("’", -0.5)], [entry("", -0.5)], [entry("’", -0.5), entry("x", -1.5)], [entry("’", -0.5)]
    served = serving.from_openai(chat(*rows), made, prompt_lengths=1)
    assert listed(served.source) == [{whole: -0.5}, {}, {}, {whole: -0.5}, {}]
    assert served.ambiguous == 2


def test_code_points_in_place_of_bytes_are_no_bytes() -> None:
    made = byte_level("Ã©")
    served = serving.from_openai(
        chat([{"token": "é", "logprob": -0.5, "bytes": [0xE9]}]), made, prompt_lengths=1
    )
    assert (listed(served.source)[0], served.ambiguous) == ({}, 1)


# -- lost spaces, and other spellings --------------------------------------------------------------------


def test_words_without_their_space_are_ambiguous() -> None:
    """vLLM before July 2026 writes "▁true" as "true"."""
    made = sentence_piece("▁true", "true", "▁only", "▁", "x")
    ids = {name: made.token_to_id(name) for name in ("▁true", "true", "▁only", "▁", "x")}
    assert made.decode([ids["▁true"]]) == "true"
    lost = [entry("only", -0.5), entry("true", -1.5), entry("x", -3.0)]
    served = serving.from_openai(chat(lost), made, prompt_lengths=1)
    assert listed(served.source)[0] == {ids["▁only"]: -0.5}
    assert (served.ambiguous, served.beyond) == (1, 1)
    # One word with its space shows that the server keeps them.
    kept = [entry("true", -0.5), entry(" true", -1.5), entry(" ", -3.0), entry("x", -4.0)]
    served = serving.from_openai(chat(kept, kept[:1]), made, prompt_lengths=1)
    assert listed(served.source)[0] == {ids["true"]: -0.5, ids["▁true"]: -1.5, ids["▁"]: -3.0, ids["x"]: -4.0}
    # Ids are the cure.
    cured = [entry(f"token_id:{ids['▁true']}", -0.5), entry(f"token_id:{ids['true']}", -1.5)]
    served = serving.from_openai(chat(cured), made, prompt_lengths=1)
    assert listed(served.source)[0] == {ids["▁true"]: -0.5, ids["true"]: -1.5}


def test_a_text_that_is_listed_twice_is_ambiguous() -> None:
    made = byte_level("the")
    served = serving.from_openai(
        chat([entry("the", -0.5), entry("a", -1.5), entry("a", -2.5)]), made, prompt_lengths=1
    )
    assert listed(served.source)[0] == {made.token_to_id("the"): -0.5}
    assert (served.ambiguous, served.beyond) == (1, 1)


def test_a_mapping_that_lost_a_token_keeps_what_is_sure() -> None:
    """Of "▁true" and "true" the older completions keep one key, and the lost one may be the likelier."""
    made = sentence_piece("▁true", "true", "a", "b")
    row = {"a": math.log(0.3), "b": math.log(0.2), "true": math.log(0.01)}
    response = {"choices": [{"logprobs": {"tokens": ["a"], "top_logprobs": [row]}}]}
    served = serving.from_openai(response, made, prompt_lengths=1)
    assert listed(served.source) == [{}, {}]
    assert (served.ambiguous, served.beyond) == (1, 2)
    row["a"] = math.log(0.6)
    served = serving.from_openai(response, made, prompt_lengths=1)
    assert list(listed(served.source)[0]) == [made.token_to_id("a"), made.token_to_id("b")]
    row["b"] = math.log(0.1)  # less than what may have been lost
    served = serving.from_openai(response, made, prompt_lengths=1)
    assert list(listed(served.source)[0]) == [made.token_to_id("a")]


def test_the_vocabularys_own_spelling() -> None:
    """vLLM 0.8 writes "Ġthe" for " the"; a text of such a response is not read as what it looks like."""
    made = byte_level("Ġthe", "Ã©", "é")
    ids = {name: made.token_to_id(name) for name in ("Ġthe", "Ã©", "é")}
    spelled = [entry("Ġthe", -0.5), entry("é", -1.5)]
    served = serving.from_openai(chat(spelled), made, prompt_lengths=1)
    assert listed(served.source)[0] == {ids["Ġthe"]: -0.5, ids["é"]: -1.5}
    plain = [entry(" the", -0.5), entry("é", -1.5)]
    served = serving.from_openai(chat(plain), made, prompt_lengths=1)
    assert listed(served.source)[0] == {ids["Ġthe"]: -0.5, ids["Ã©"]: -1.5}
    served = serving.from_openai(chat([entry("é", -0.1)]), made, prompt_lengths=1)
    assert (listed(served.source)[0], served.ambiguous) == ({}, 1)  # nothing shows which


def test_a_space_and_spaces_that_were_added() -> None:
    made = sentence_piece("▁", "▁▁", "▁a")
    made.add_tokens(["▁▁▁", "    "])
    served = serving.from_openai(
        chat(
            [entry(" a", -0.5), entry(" ", -1.5), entry("   ", -2.5), entry("    ", -3.5), entry("  ", -4.5)]
        ),
        made,
        prompt_lengths=1,
    )
    assert list(listed(served.source)[0]) == list(map(made.token_to_id, ("▁a", "▁", "▁▁▁", "    ", "▁▁")))


# -- the token described ---------------------------------------------------------------------------------

PROBS = [0.4, 0.3, 0.2, 0.05, 0.04, 0.01]


def drawn_in_place(drawn: int, most: int) -> list[int]:
    ids = list(range(most))
    return ids if drawn in ids else [*ids[:-1], drawn]


@pytest.mark.parametrize("drawn", range(6))
@pytest.mark.parametrize("most", range(1, 7))
@pytest.mark.parametrize("shape", ["chat", "ids", "completions", "vllm", "all ranks 1"])
def test_bounds_hold_where_the_drawn_token_is_listed(shape: str, most: int, drawn: int) -> None:
    """In place of the last of the likeliest, as some servers list it."""
    ids = drawn_in_place(drawn, most)
    logs = [math.log(PROBS[i]) for i in ids]
    names = {f"t{i}": i for i in range(6)}
    more = [{"id": i} if shape == "ids" else {} for i in range(6)]
    if shape in ("chat", "ids"):
        row = [entry(f"t{i}", p, **more[i]) for i, p in zip(ids, logs, strict=True)]
        response = chat(row, drawn=[entry(f"t{drawn}", math.log(PROBS[drawn]), **more[drawn])])
        source = serving.from_openai(response, names, prompt_lengths=1, vocab_size=6).source
    elif shape == "completions":
        top = {f"t{i}": p for i, p in zip(ids, logs, strict=True)}
        response = {"choices": [{"logprobs": {"tokens": [f"t{drawn}"], "top_logprobs": [top]}}]}
        source = serving.from_openai(response, names, prompt_lengths=1, vocab_size=6).source
    else:
        rank = 1 if shape == "all ranks 1" else None
        ranked = {i: {"logprob": p, "rank": rank} for i, p in zip(ids, logs, strict=True)}
        if rank == 1 and most == 1:
            return  # a single rank of 1 is one
        source = serving.from_vllm([None, ranked], vocab_size=6).source
    got = listed(source)[0]
    if most > 1:
        assert len(got) >= most - 1
    truth = np.sqrt(PROBS) / np.sqrt(PROBS).sum()
    low, high = source.probability_bounds(2.0)
    for j, i in enumerate(source.ids[0, 0].tolist()):
        if i >= 0:
            assert low[0, 0, j] - 1e-9 <= truth[i] <= high[0, 0, j] + 1e-9
    least = min(got.values(), default=0.0)
    assert all(math.log(p) <= least + 1e-12 for i, p in enumerate(PROBS) if i not in got)


def test_the_drawn_token_that_nothing_else_can_exceed_stays() -> None:
    names = {"a": 0, "b": 1}
    row = [entry("a", math.log(0.6)), entry("b", math.log(0.3))]
    response = chat(row, drawn=[row[1]])
    assert list(listed(serving.from_openai(response, names, prompt_lengths=1).source)[0]) == [0, 1]


# -- ids -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["id", "token_id"])
def test_ids_that_are_there_are_used(name: str) -> None:
    """llama.cpp, KoboldCpp, Fireworks: an end of turn has no text, and a space may be of two tokens."""
    made = sentence_piece("▁", "</s>")
    end, space = made.token_to_id("</s>"), made.token_to_id("▁")
    row = [
        {"token": "", "bytes": [], "logprob": -0.5, name: end},
        {"token": " ", "bytes": [32], "logprob": -1.5, name: space},
        {"token": REPLACED, "bytes": [0xE3], "logprob": -2.5, name: 0xE3},
    ]
    for vocabulary in (made, None):
        served = serving.from_openai(chat(row), vocabulary, prompt_lengths=1)
        assert listed(served.source)[0] == {end: -0.5, space: -1.5, 0xE3: -2.5}
        assert (served.unknown, served.ambiguous) == (0, 0)
    for each in row:
        del each[name]
    served = serving.from_openai(chat(row[:1]), made, prompt_lengths=1)
    assert (listed(served.source)[0], served.ambiguous) == ({}, 1)


def test_ids_that_are_none() -> None:
    for wrong in (-1, "a", 2**63, True, [3]):
        with pytest.raises(
            ValueError, match=r"^responses\[0\].choices\[0\].logprobs.content\[0\]: expected a token id"
        ):
            serving.from_openai(chat([entry("a", -0.5, id=wrong)]), None, prompt_lengths=1)


# -- echo ------------------------------------------------------------------------------------------------


def completion(rows: int, first: object, **usage: int) -> dict[str, object]:
    top = [first, *({"a": -0.5} for _ in range(rows - 1))]
    return {"choices": [{"logprobs": {"top_logprobs": top}}], "usage": usage}


def test_a_server_that_ignored_echo() -> None:
    for response in (
        completion(3, {"a": -0.5}, prompt_tokens=5, completion_tokens=3),
        completion(7, {"a": -0.5}, prompt_tokens=5, completion_tokens=7),
        completion(3, {"a": -0.5}, prompt_tokens=5),
    ):
        with pytest.raises(
            ValueError, match=r"^responses\[0\]: .* usage tells 5 of the prompt: the server ignored echo"
        ):
            serving.from_openai(response, {"a": 0}, prompt_lengths=0)
        assert serving.from_openai(response, {"a": 0}, prompt_lengths=5).source.shape[1] > 5
    for response in (
        completion(8, None, prompt_tokens=5, completion_tokens=3),
        completion(5, None, prompt_tokens=5, completion_tokens=0),
        completion(8, {"a": -0.5}, prompt_tokens=5, completion_tokens=3),
    ):
        rows = listed(serving.from_openai(response, {"a": 0}, prompt_lengths=0).source)
        assert rows[:2] == [{0: -0.5}, {0: -0.5}]
    with pytest.raises(
        ValueError, match=r"^prompt_lengths: expected 0 for responses\[0\].choices\[0\], which describes"
    ):
        serving.from_openai(completion(8, None), {"a": 0}, prompt_lengths=5)
