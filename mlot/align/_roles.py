"""Special tokens of two tokenizers that correspond, by the role that each plays."""

from __future__ import annotations

from mlot.align._reader import Reader

#: How the tokens that end a turn, and a text, are called where nothing else tells.
_TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
)
_TEXT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|EOS_TOKEN|>", "<｜end▁of▁sentence｜>")
_DECLARED = ("bos", "cls", "sep", "mask", "pad")
#: Stands for what the assistant says while a chat template is read; a character for private use.
_MARK = "\ue000"


def corresponding(student: Reader, teacher: Reader) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Special tokens that correspond.

    The end of a turn to the end of a turn, as the chat templates write it, the end of a text to the end of a
    text, then by what the tokenizers declare, then by name. Where one token of the teacher ends both, it
    corresponds to what ends a turn in the student's chat template, or without one to its eos; and, in a text
    that the student ends with another of its ends, to that one.

    Returns:
        ``(teacher id, student id)``, each teacher id once, sorted; and those that hold instead where
        a text ends with both.
    """
    (turn, text), (teacher_turn, teacher_text) = _ends(student), _ends(teacher)
    rows = [(teacher_turn, turn), (teacher_text, text)]
    if teacher_turn == teacher_text and _after_a_turn(student) is None:
        rows.insert(0, (teacher_text, student.role("eos")))
    rows.append((teacher.role("eos"), student.role("eos")))
    # An end is the counterpart of ends alone, though it may also be what starts or pads.
    rows += [row for row in _declared(student, teacher) if row[1] not in (turn, text)]
    names = _special(student)
    rows += [(i, names.get(teacher.added.get(i, ""))) for i in sorted(teacher.special)]
    chosen: dict[int, int] = {}
    for one, other in rows:
        if one is not None and other is not None:
            chosen.setdefault(one, other)
    others: set[tuple[int, int]] = set()
    if teacher_turn is not None and teacher_turn == teacher_text:
        ends = {each for each in (turn, text, student.role("eos")) if each is not None}
        others = {(teacher_turn, each) for each in ends - {chosen.get(teacher_turn)}}
    return sorted(chosen.items()), sorted(others)


def _special(reader: Reader) -> dict[str, int]:
    return {name: i for i, name in reader.added.items() if i in reader.special}


def _declared(student: Reader, teacher: Reader) -> list[tuple[int | None, int | None]]:
    return [(teacher.role(name), student.role(name)) for name in _DECLARED]


def _ends(reader: Reader) -> tuple[int | None, int | None]:
    """Tokens that end a turn and a text, the same one where there is but one; ``None``: there is none."""
    eos = reader.role("eos")
    names = _special(reader)
    turn = _after_a_turn(reader)
    if turn is None:
        turn = next((names[name] for name in _TURN_ENDS if name in names), eos)
    named = (names[name] for name in _TEXT_ENDS if name in names)
    text = eos if eos is not None and eos != turn else next((i for i in named if i != turn), turn)
    return turn, text


def _after_a_turn(reader: Reader) -> int | None:
    """The special token that a chat template puts after what the assistant says."""
    apply = getattr(reader.tokenizer, "apply_chat_template", None)
    if apply is None or getattr(reader.tokenizer, "chat_template", None) is None:
        return None
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
    try:
        after = str(apply(said, tokenize=False)).partition(_MARK)[2].lstrip()
    except Exception:  # templates raise what they like, and without jinja2 there are none
        return None
    names = _special(reader)
    return next(
        (names[name] for name in sorted(names, key=len, reverse=True) if after.startswith(name)), None
    )
