"""Reasoning and tool calls: each side learns what its own template writes, and both what they share."""

import logging
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("trl")

import trl

from mlot.training import DistillationCollator
from training_cases import bytes_of, chat_tokenizers, student_tokenizer, teacher_tokenizer

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|start|>",
    "<|end|>",
    "<|channel|>",
    "<|message|>",
    "<|return|>",
    "<|call|>",
]
CALL = {
    "id": "callcall1",
    "type": "function",
    "function": {"name": "weigh", "arguments": '{"what": "hen ☃"}'},
}
PARAMETERS = {"type": "object", "properties": {"what": {"type": "string", "description": "thing"}}}
TOOLS = [
    {"type": "function", "function": {"name": "weigh", "description": "weighs", "parameters": PARAMETERS}}
]
ASK = {"role": "user", "content": "the hen?"}
CALLING = [
    ASK,
    {"role": "assistant", "reasoning_content": "think — a", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "weigh", "tool_call_id": "callcall1", "content": "4"},
    {
        "role": "assistant",
        "thinking": "then so",
        "content": [{"type": "text", "text": "four "}, {"type": "text", "text": "tons"}],
    },
]
THINKING = [ASK, {"role": "assistant", "content": "<think>\nso it is\n</think>\n\nin the end"}]


def side(name, make=teacher_tokenizer):
    tokenizer = make(extra_special_tokens=SPECIAL)
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    return tokenizer


def collate(student, teacher, **settings):
    return DistillationCollator(side(student, student_tokenizer), side(teacher), **settings)


def runs(collator, row):
    """What each side learns, in strings."""
    made = []
    for tokenizer, prefix in zip(collator.tokenizers, ("", "teacher_"), strict=True):
        labels = [-100, *row[prefix + "labels"], -100]
        cuts = [n for n in range(1, len(labels)) if (labels[n] == -100) != (labels[n - 1] == -100)]
        made.append(
            [bytes_of(tokenizer, labels[a:b]).decode() for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
        )
    return made


QWEN = [
    '<think>\nthink — a\n</think>\n\n<tool_call>\n{"name": "weigh", "arguments": {"what": "hen ☃"}}\n</tool_call><|im_end|>',
    "<think>\nthen so\n</think>\n\nfour tons<|im_end|>",
]
GPT_OSS = [
    '<|channel|>analysis<|message|>think — a<|end|><|start|>assistant to=functions.weigh<|channel|>commentary json<|message|>{"what": "hen ☃"}<|call|>',
    "<|channel|>analysis<|message|>then so<|end|><|start|>assistant<|channel|>final<|message|>four tons<|return|>",
]
GLM = [
    "\n<think>think — a</think>\n<tool_call>weigh\n<arg_key>what</arg_key>\n<arg_value>hen ☃</arg_value>\n</tool_call>",
    "\n<think>then so</think>\nfour tons",
]


def test_one_template_on_both_sides_is_compared_throughout():
    collator = collate("qwen3", "qwen3")
    row = collator.prepare({"messages": CALLING, "tools": TOOLS})
    assert runs(collator, row) == [QWEN, QWEN]
    text = "".join(QWEN).replace("<|im_end|>", "")
    assert row["target_bytes"] == len(text.encode())
    assert collator.notes == {}
    assert b"weighs" in bytes_of(collator.tokenizer, row["input_ids"])


def test_two_templates_learn_their_own_and_share_what_is_said():
    collator = collate("qwen3", "gptoss")
    row = collator.prepare({"messages": CALLING, "tools": TOOLS})
    student, teacher = runs(collator, row)
    assert student == QWEN
    # this template leaves out thinking that was before the last answer
    assert teacher[-1] == GPT_OSS[-1]
    assert '{"what": "hen ☃"}<|call|>' in teacher[0]
    assert row["target_bytes"] == len("then sofour tons")
    assert collator.notes["reasoning that only the student's template shows"] == 1


@pytest.mark.parametrize("arguments", ['{"what": "hen ☃"}', {"what": "hen ☃"}])
def test_arguments_in_json_and_as_a_mapping(arguments):
    call = {**CALL, "function": {"name": "weigh", "arguments": arguments}}
    collator = collate("qwen3", "glm4moe")
    row = collator.prepare({"messages": [ASK, {**CALLING[1], "tool_calls": [call]}, *CALLING[2:]]})
    student, teacher = runs(collator, row)
    assert student == QWEN
    assert [each.removesuffix("\n</tool_call>") for each in teacher] == [
        each.removesuffix("\n</tool_call>") for each in GLM
    ]
    assert row["target_bytes"] == len("think — athen sofour tons".encode())


def test_thinking_in_the_content_is_the_same_as_beside_it():
    apart = [ASK, {"role": "assistant", "reasoning_content": "so it is", "content": "in the end"}]
    one, other = collate("qwen3", "glm4moe"), collate("qwen3", "glm4moe")
    rows = one.prepare({"messages": THINKING}), other.prepare({"messages": apart})
    assert runs(one, rows[0]) == runs(other, rows[1])
    assert rows[0]["pairs"] == rows[1]["pairs"]
    assert runs(one, rows[0])[0] == ["<think>\nso it is\n</think>\n\nin the end<|im_end|>"]


@pytest.mark.parametrize(("one_sided", "there"), [("learn", True), ("leave_out", False)])
def test_what_one_side_alone_shows(one_sided, there):
    collator = collate("qwen3", "gptoss", one_sided=one_sided)
    row = collator.prepare({"messages": CALLING, "tools": TOOLS})
    student, _ = runs(collator, row)
    assert ("think — a" in student[0]) == there
    assert collator.notes["reasoning that only the student's template shows"] == 1


def test_refused_and_skipped(caplog):
    data = [{"messages": THINKING}, {"messages": CALLING}, {"messages": [ASK]}, {"messages": THINKING}]
    with pytest.raises(
        ValueError, match=r"data\[1\]: .*message 1, got reasoning that only the student shows"
    ):
        collate("qwen3", "gptoss", one_sided="refuse").prepare_all("data", data)
    collator = collate("qwen3", "gptoss", one_sided="refuse", on_error="skip")
    with caplog.at_level(logging.WARNING, "mlot.training"):
        made = collator.prepare_all("data", data)
    assert len(made) == 2
    assert [each.partition(":")[0] for each in collator.skipped] == ["data[1]", "data[2]"]
    assert "role is 'assistant', got roles 'user'" in collator.skipped[1]
    assert "data: 2 examples were skipped; the first: data[1]: " in caplog.messages[-1]
    batch = collator(data)
    assert len(batch["input_ids"]) == 2
    with pytest.raises(ValueError, match="batch: expected an example that can be read, found none"):
        collator(data[2:3])


def test_settings_of_one_example_reach_the_templates():
    collator = collate("qwen3", "qwen3")
    plain = [ASK, {"role": "assistant", "content": "in the end"}]
    row = collator.prepare({"messages": plain})
    assert runs(collator, row)[0] == ["<think>\n\n</think>\n\nin the end<|im_end|>"]
    row = collator.prepare({"messages": plain, "chat_template_kwargs": {"enable_thinking": False}})
    assert runs(collator, row)[0] == ["in the end<|im_end|>"]


def test_the_space_before_an_answer_is_learnt_with_its_first_token():
    student, teacher = chat_tokenizers()
    collator = DistillationCollator(student, teacher)
    row = collator.prepare({"messages": [ASK, {"role": "assistant", "content": "the end"}]})
    label = next(label for label in row["teacher_labels"] if label != -100)
    assert teacher.convert_ids_to_tokens(label) == "Ġthe"
