r"""
Two tokenizations of one sentence
=================================

Two tokenizers cut a sentence differently, so position :math:`i` of one is not the
place in the text that position :math:`i` of the other is. The sequence level of
the loss transports whole positions; the token level compares pairs. Here are
both, for two bigram models, one for each tokenizer, made on the spot from
docstrings.
"""

import inspect
import pydoc
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import mlot
from mlot import align

modules = [inspect, pydoc, textwrap, plt, np]
text = "\n".join(
    inspect.getdoc(value) or ""
    for m in modules
    for value in vars(m).values()
    if callable(value)
)
sentence = " Return the first position where the value can be found"


def train_tokenizer(vocabulary):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        text.splitlines(),
        trainers.BpeTrainer(
            vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return made


def bigram_logits(tokenizer):
    """Log-counts of what follows each token, read at those of the sentence."""
    ids = np.array(tokenizer.encode(text).ids)
    counts = np.full((tokenizer.get_vocab_size(),) * 2, 0.02)
    np.add.at(counts, (ids[:-1], ids[1:]), 1)
    return np.log(counts)[tokenizer.encode(sentence).ids][None]


student_tokenizer, teacher_tokenizer = train_tokenizer(320), train_tokenizer(1200)
student, teacher = (
    bigram_logits(student_tokenizer),
    bigram_logits(teacher_tokenizer),
)
print(f"student: {student.shape[1]} positions, {student.shape[2]} tokens")
print(f"teacher: {teacher.shape[1]} positions, {teacher.shape[2]} tokens")

# %%
# Pairs
# -----
#
# After the same bytes, both models predict from the same context.
# `mlot.align.pairs` finds these positions.

student_bytes = align.byte_ranges(student_tokenizer, sentence)
teacher_bytes = align.byte_ranges(teacher_tokenizer, sentence)
pairs = align.pairs(student_bytes, teacher_bytes)
print(align.report(student_bytes, teacher_bytes))

# %%
# The loss, and the plan behind its sequence level
# ------------------------------------------------

by_pairs = mlot.multi_level_ot(
    student, teacher, pairs=pairs[None], return_plan=True
)
by_index = mlot.multi_level_ot(student, teacher)
print(
    f"HAD for each pair: {float(by_pairs.had):.3f} by bytes, "
    f"{float(by_index.had):.3f} by index"
)

pieces = [
    [
        sentence.encode()[a:b].decode().replace(" ", "·")
        for a, b in zip(side.starts, side.ends, strict=True)
    ]
    for side in (student_bytes, teacher_bytes)
]
plan = np.asarray(by_pairs.plan[0])
figure, axis = plt.subplots(figsize=(7.2, 4.2))
shown = axis.imshow(
    plan / plan.max(axis=1, keepdims=True),
    aspect="auto",
    cmap="Blues",
    vmin=0,
    vmax=1.3,
)
axis.plot(
    pairs[:, 0],
    pairs[:, 1],
    "o",
    color="#e0782f",
    markersize=5,
    label="after the same bytes",
)
axis.set_xticks(
    range(len(pieces[0])), pieces[0], rotation=90, fontsize=7, family="monospace"
)
axis.set_yticks(range(len(pieces[1])), pieces[1], fontsize=8, family="monospace")
axis.set(xlabel="student tokens", ylabel="teacher tokens")
axis.legend(loc="lower right", bbox_to_anchor=(1, 1))
# sphinx_gallery_start_ignore
figure.set_label(
    "Heat map of the transport plan between the tokens of one sentence: rows "
    "are the teacher's tokens, columns the student's shorter ones. Dots mark "
    "the positions after the same bytes; they run along the diagonal, while "
    "the plan also moves mass between distant positions whose predictions are "
    "alike."
)
# sphinx_gallery_end_ignore

# %%
# The plan knows predictions only, not places: mass goes where the two models
# predict alike. A teacher's row is scaled to its largest entry for the picture.
