"""Conversations: each model's own template around what the assistant says, which alone is learnt and paired."""

import pytest

pytest.importorskip("transformers")

from hypothesis import given, settings
from hypothesis import strategies as st

from mlot.training import DistillationCollator
from training_cases import bytes_of, chat_tokenizers, student_tokenizer

STUDENT, TEACHER = chat_tokenizers()
SIDES = ((STUDENT, ""), (TEACHER, "teacher_"))


def said(role, content):
    return {"role": role, "content": content}


CHAT = [
    said("system", "be brief"),
    said("user", "what is the end"),
    said("assistant", "the end is the hen"),
    said("user", "and then ☃?"),
    said("assistant", "then — the mat"),
]


def collate(**settings):
    return DistillationCollator(STUDENT, TEACHER, **settings)


def targets(tokenizer, row, prefix):
    """Runs of labels: the position of the first, the ids."""
    runs = []
    for n, label in enumerate(row[prefix + "labels"]):
        if label != -100:
            assert label == row[prefix + "input_ids"][n]
            if runs and runs[-1][0] + len(runs[-1][1]) == n:
                runs[-1][1].append(label)
            else:
                runs.append((n, [label]))
    return runs


def said_bytes(tokenizer, ids):
    """Bytes of an answer; the space before it, where a template puts one, is a part of its first token."""
    return bytes_of(tokenizer, ids).removeprefix(b" ")


def expected_pairs(row):
    """All positions in the same answer at which both have read the same bytes of it, by looking at all."""
    found = []
    runs = [targets(tokenizer, row, prefix) for tokenizer, prefix in SIDES]
    for one, other in zip(*runs, strict=True):
        read = [
            {said_bytes(tokenizer, ids[:n]): first - 1 + n for n in range(len(ids))}
            for (first, ids), (tokenizer, _) in zip((one, other), SIDES, strict=True)
        ]
        found += [[i, read[1][a]] for a, i in read[0].items() if a in read[1]]
    return found


def test_templates_are_each_models_own_and_answers_are_learnt_with_the_token_that_ends_them():
    row = collate().prepare({"messages": CHAT})
    for tokenizer, prefix, end in ((STUDENT, "", b"<|im_end|>"), (TEACHER, "teacher_", b"</s>")):
        rendered = tokenizer.apply_chat_template(CHAT, tokenize=False)
        assert bytes_of(tokenizer, row[prefix + "input_ids"]) == rendered.encode()
        answers = [said_bytes(tokenizer, ids) for _, ids in targets(tokenizer, row, prefix)]
        assert answers == [b"the end is the hen" + end, "then — the mat".encode() + end]
    assert row["target_bytes"] == len("the end is the henthen — the mat".encode())
    assert sum(row["text_mask"]) == sum(label != -100 for label in row["labels"]) - 2
    assert row["pairs"] == expected_pairs(row)
    # the first answer begins, and ends, at one place for both
    first = targets(*SIDES[0][:1], row, "")[0][0], targets(*SIDES[1][:1], row, "teacher_")[0][0]
    assert [first[0] - 1, first[1] - 1] in row["pairs"]


words = st.text(alphabet="the an☃\n", max_size=20)


@given(turns=st.lists(st.tuples(words, words), min_size=1, max_size=3))
@settings(max_examples=40)
def test_pairs_of_random_conversations(turns):
    """Templates that strip what is said, and one that does not, have what remains in common."""
    messages = [each for ask, answer in turns for each in (said("user", ask), said("assistant", answer))]
    row = collate().prepare({"messages": messages})
    answers = [answer for _, answer in turns]
    if any(answer != answer.strip() for answer in answers):
        answers = [answer.strip() for answer in answers]
    for tokenizer, prefix in SIDES:
        runs = [said_bytes(tokenizer, ids).decode() for _, ids in targets(tokenizer, row, prefix)]
        assert [run.split("<|im_end|>")[0].removesuffix("</s>") for run in runs] == answers
    if all(len(t) == len(turns) for t in (targets(tok, row, p) for tok, p in SIDES)):
        assert row["pairs"] == expected_pairs(row)
    assert row["target_bytes"] == sum(len(answer.encode()) for answer in answers)


def test_prompt_and_completion_of_messages():
    """Only the completion is learnt, though the prompt has an answer too."""
    row = collate().prepare({"prompt": CHAT[:4], "completion": CHAT[4:]})
    whole = collate().prepare({"messages": CHAT})
    for tokenizer, prefix in SIDES:
        answers = [[ids for _, ids in targets(tokenizer, each, prefix)] for each in (row, whole)]
        assert answers[0] == answers[1][1:]
        assert bytes_of(tokenizer, row[prefix + "input_ids"]) == bytes_of(
            tokenizer, whole[prefix + "input_ids"]
        )
    assert row["pairs"] == expected_pairs(row)


def test_conversation_that_is_too_long_is_cut_within_an_answer():
    whole = collate().prepare({"messages": CHAT})
    limit = targets(STUDENT, whole, "")[1][0] + 4
    collator = collate(max_length=limit)
    row = collator.prepare({"messages": CHAT})
    assert len(row["input_ids"]) <= limit
    answers = [[said_bytes(t, ids) for _, ids in targets(t, row, p)] for t, p in SIDES]
    assert (
        answers[0][0].removesuffix(b"<|im_end|>")
        == answers[1][0].removesuffix(b"</s>")
        == b"the end is the hen"
    )
    assert answers[0][1] == answers[1][1]
    assert b"then" in answers[0][1]
    assert collator.truncation.cut_bytes == len("then — the mat".encode()) - len(answers[0][1])
    assert row["pairs"] == [pair for pair in whole["pairs"] if pair[0] < len(row["input_ids"]) - 1]


def test_answers_that_look_like_the_template():
    """What marks answers in a template cannot be taken for what is said."""
    for answer in ("assistant", "<|im_end|>", "user", "[/]", "s", "</s>"):
        row = collate().prepare({"messages": [said("user", "user assistant"), said("assistant", answer)]})
        for tokenizer, prefix in SIDES:
            ids = targets(tokenizer, row, prefix)[0][1]
            assert said_bytes(tokenizer, ids).startswith(answer.encode())
            assert len(bytes_of(tokenizer, ids)) > len(answer.encode())


def test_settings_of_templates_are_passed_on():
    teacher = student_tokenizer()
    teacher.chat_template = "{% for m in messages %}{{ mark }}{{ m.content }}{{ eos_token }}{% endfor %}"
    collator = DistillationCollator(teacher, teacher, template_settings={"mark": "the"})
    row = collator.prepare({"messages": CHAT[:3]})
    assert bytes_of(teacher, row["input_ids"]).count(b"the") == 3 + 3


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "messages: expected messages, got str"),
        ([{"role": "user"}], "messages: expected messages with a role and a content"),
        ([said("assistant", ["a"])], "messages: expected the assistant to say a string, got list"),
    ],
)
def test_messages_that_are_refused(messages, message):
    with pytest.raises((TypeError, ValueError), match=message):
        collate().prepare({"messages": messages})


def test_templates_that_are_refused():
    with pytest.raises(ValueError, match="teacher_tokenizer: expected a chat template.*found none"):
        DistillationCollator(STUDENT, student_tokenizer()).prepare({"messages": CHAT})
    loud = student_tokenizer()
    loud.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(
        ValueError, match="messages: expected chat templates that hold .* the teacher's tokenizer"
    ):
        DistillationCollator(STUDENT, loud).prepare({"messages": CHAT})
    silent = student_tokenizer()
    silent.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(
        ValueError, match="messages: expected chat templates that hold .* the student's tokenizer"
    ):
        DistillationCollator(silent, TEACHER).prepare({"messages": CHAT})


@pytest.mark.parametrize("template", ["{% for", "{{ a.b.c }}", "{{ 1 / 0 }}", "{{ raise_exception('no') }}"])
def test_a_template_that_fails_is_named(template):
    tokenizer, _ = chat_tokenizers()
    tokenizer.chat_template = template
    collator = DistillationCollator(tokenizer, TEACHER)
    with pytest.raises(
        ValueError, match="student_tokenizer: expected a chat template that reads these messages"
    ):
        collator([{"messages": CHAT}])
