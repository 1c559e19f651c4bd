"""The targets of the text's plan from their definition, as loops over two vocabularies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import mlot
from byte_cases import bytewise, two_tokenizations
from mlot import TextPositions
from mlot.align import TokenBytes, VocabularyMap, batch_text_positions, text_positions

ROLES = [(1, 1)]


@st.composite
def text_problems(draw, framed=True, reading=None):
    """A pair of vocabularies, a text in the tokens of both, and logits of the teacher."""
    mine, others, text, student, teacher = draw(two_tokenizations(framed=framed))
    known = draw(st.booleans())
    tokenize = bytewise(mine) if known else None
    vocabulary = VocabularyMap.from_bytes(mine, others, tokenize=tokenize, roles=ROLES)
    reading = draw(st.sampled_from(["canonical", "longest"])) if reading is None else reading
    rows = text_positions(student, teacher, text, vocabulary)
    seed = draw(st.integers(0, 2**32 - 1))
    logits = np.random.default_rng(seed).normal(scale=2, size=(1, max(len(teacher), 1), len(others)))
    ids = np.array([teacher.ids.tolist() or [0]])
    text_side = TextPositions(batch_text_positions([rows]), ids, vocabulary.plan(reading))
    return Problem(mine, others, text, student, teacher, tokenize, reading, logits, text_side)


@st.composite
def two_ended_problems(draw):
    """One token of the teacher ends turns and texts, of which the student has two; either ends the text."""
    mine, others, text, student, teacher = draw(two_tokenizations())
    mine, others = [*mine, None], [*others, None]
    end, besides = len(mine) - 1, len(others) - 1
    ids = student.ids.copy()
    if draw(st.booleans()):
        ids[ids == 1] = end
    student = TokenBytes(ids, student.starts, student.ends, student.special, student.total)
    roles = [*ROLES, (besides, 1)] if draw(st.booleans()) else ROLES
    vocabulary = VocabularyMap.from_bytes(mine, others, roles=roles, ends=[(1, end)])
    rows = text_positions(student, teacher, text, vocabulary)
    logits = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).normal(
        scale=2, size=(1, max(len(teacher), 1), len(others))
    )
    positions = TextPositions(
        batch_text_positions([rows]), np.array([teacher.ids.tolist() or [0]]), vocabulary.plan()
    )
    problem = Problem(mine, others, text, student, teacher, None, "canonical", logits, positions)
    problem.roles = roles
    if _closing(student) == (end, _closing(teacher)[1]) and _closing(teacher)[0] == 1:
        problem.roles = [(1, end), *roles[1:]]
    return problem


def _closing(tokens):
    """The token that ends a text, and the byte where it does."""
    last = len(tokens)
    while last > 1 and tokens.special[last - 1] and tokens.ends[last - 1] == tokens.ends[last - 2]:
        last -= 1
    return (int(tokens.ids[last]), int(tokens.ends[last])) if last < len(tokens) else (None, None)


@st.composite
def canonical_problems(draw):
    """A student that reads the text as it reads the teacher's tokens, or the whole; so it has read some inside.

    Two letters and short words, so that many tokens begin with what has been read, cut in the same way or not.
    """
    words = st.lists(st.sampled_from([b"a", b"b"]), min_size=2, max_size=4).map(b"".join)
    mine = [b"a", None, b"b", *draw(st.lists(words, max_size=4, unique=True))]
    others = [b"a", None, b"b", *draw(st.lists(words, min_size=2, max_size=12))]
    longest_first = draw(st.booleans())

    def tokenize(data):
        ids, rest = [], data
        while rest:
            fitting = [v for v, word in enumerate(mine) if word and rest.startswith(word)]
            # by another rule for each rest's length, so that the longest token is not always the student's own
            pick = max if longest_first or len(rest) % 2 else min
            ids.append(pick(fitting, key=lambda v: len(mine[v])))
            rest = rest[len(mine[ids[-1]]) :]
        return ids

    teacher_ids = draw(
        st.lists(st.integers(0, len(others) - 1).filter(lambda v: v != 1), min_size=1, max_size=4)
    )
    text = b"".join(others[v] for v in teacher_ids)
    whole = draw(st.booleans())
    student_ids = tokenize(text) if whole else [u for v in teacher_ids for u in tokenize(others[v])]
    sides = [_side(ids, words, len(text)) for ids, words in ((student_ids, mine), (teacher_ids, others))]
    vocabulary = VocabularyMap.from_bytes(mine, others, tokenize=tokenize, roles=ROLES)
    rows = text_positions(*sides, text, vocabulary)
    logits = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).normal(
        size=(1, len(sides[1]), len(others))
    )
    positions = TextPositions(
        batch_text_positions([rows]), np.array([sides[1].ids.tolist()]), vocabulary.plan()
    )
    return Problem(mine, others, text, *sides, tokenize, "canonical", logits, positions)


def _side(ids, words, size):
    """Tokens of a text one after the other, framed by special ones."""
    ends = np.cumsum([0, *(len(words[v]) for v in ids)]).tolist()
    framed = [True, *[False] * len(ids), True]
    return TokenBytes([1, *ids, 1], [0, *ends[:-1], size], [0, *ends[1:], size], framed, size)


class Problem:
    def __init__(self, mine, others, text, student, teacher, tokenize, reading, logits, positions):
        self.mine, self.others, self.text = mine, others, text
        self.student, self.teacher, self.tokenize, self.reading = student, teacher, tokenize, reading
        self.logits, self.positions, self.roles = logits, positions, ROLES

    @property
    def mask(self):
        return np.ones((1, max(len(self.student), 1)), dtype=bool)

    def targets(self):
        """``{position: (q, served)}`` from the definition."""
        t = np.exp(self.logits[0] - np.logaddexp.reduce(self.logits[0], axis=1, keepdims=True))
        result = {}
        for row in self.positions.rows[0].tolist():
            if row[0] < 0:
                continue
            q, served = self._target(t, row)
            if served >= 0.01:
                result[row[0]] = (q, served)
        return result

    def _target(self, t, row):
        _, j, depth = row[:3]
        first = int(self.teacher.ids[j + 1])
        c = b"" if depth == 0 else self.others[first][:depth]
        longer = [v for v, word in enumerate(self.others) if word and word.startswith(c) and word != c]
        equal = [v for v, word in enumerate(self.others) if word and word == c]
        follows = self._follows(t[j], longer, depth, row[6])
        q = dict.fromkeys(range(len(self.mine)), 0.0)
        for v, u in follows.items():
            if u is not None:
                q[u] += t[j, v]
        chain = row[8]
        if chain > 1:
            product = math.prod(t[j + m, self.teacher.ids[j + m + 1]] for m in range(chain))
            before = follows.get(first)
            if before is not None:
                moved = min(product, q[before])
                q[before] -= moved
                q[row[7]] += moved
            else:
                q[row[7]] += product
        there = sum(t[j, v] for v in longer + equal)
        if depth == 0:
            for special, role in self.roles:
                q[role] += t[j, special]
                there += t[j, special]
        total = sum(q.values())
        if total == 0:
            return None, 0.0
        return np.array(list(q.values())) / total, total / there

    def _follows(self, t, longer, depth, borders):
        longest = {v: self._longest(self.others[v][depth:], v, depth) for v in longer}
        if self.reading == "longest" or self.tokenize is None:
            return longest
        own, agrees = {}, {}
        for v in longer:
            cuts, tokens = self._own(v)
            own[v] = tokens.get(depth)
            inner = sum(1 << b for b in cuts if 1 <= b <= depth)
            agrees[v] = depth > 0 and borders >= 0 and own[v] is not None and inner == borders
        if depth == 0:
            return {v: longest[v] if own[v] is None else own[v] for v in longer}
        mass = sum(t[v] for v in longer if agrees[v])
        if mass > 0.01 * sum(t[v] for v in longer):
            return {v: own[v] if agrees[v] else None for v in longer}
        return longest

    def _own(self, v):
        """Borders of the student's own tokenization of a teacher token, and its token at each."""
        tokens, at, reached = {}, [], 0
        for token in self.tokenize(self.others[v]):
            at.append(reached)
            tokens[reached] = int(token)
            reached += len(self.mine[token])
        if len(at) == 1:
            tokens[0] = self._longest(self.others[v], v, 0)
        return at, tokens

    def _longest(self, data, v, depth):
        """The longest student token; of several with the same bytes the lowest, or the copy of this one."""
        for size in range(len(data), 0, -1):
            copies = [u for u, word in enumerate(self.mine) if word == data[:size]]
            if copies:
                number = 0
                if depth == 0 and size == len(data):
                    number = sum(word == data for word in self.others[:v])
                return copies[min(number, len(copies) - 1)]
        return None


def problem_of(mine, others, teacher_ids, tokenize, seed):
    """A text in the tokens of a teacher, and of a student that tokenizes it as it does everything."""
    text = b"".join(others[v] for v in teacher_ids)
    sides = [_side(ids, words, len(text)) for ids, words in ((tokenize(text), mine), (teacher_ids, others))]
    vocabulary = VocabularyMap.from_bytes(mine, others, tokenize=tokenize, roles=ROLES)
    rows = text_positions(*sides, text, vocabulary)
    logits = np.random.default_rng(seed).normal(scale=2, size=(1, len(sides[1]), len(others)))
    ids = np.array([sides[1].ids.tolist()])
    positions = TextPositions(batch_text_positions([rows]), ids, vocabulary.plan())
    return Problem(mine, others, text, *sides, tokenize, "canonical", logits, positions)


def greedy(mine, *, longest=True):
    """Tokens of bytes from the left, the longest or the shortest that fits."""

    def tokenize(data):
        ids, rest = [], data
        while rest:
            fitting = [v for v, word in enumerate(mine) if word and rest.startswith(word)]
            # by another rule where the rest is long, so that the longest token is not always the student's own
            pick = max if longest or len(rest) % 3 else min
            ids.append(pick(fitting, key=lambda v: len(mine[v])))
            rest = rest[len(mine[ids[-1]]) :]
        return ids

    return tokenize


def made(problem, backend="numpy", k=None, **settings):
    logits, text, mask = problem.logits, problem.positions, problem.mask
    if backend == "torch":
        logits, mask = torch.from_numpy(logits), torch.from_numpy(mask)
        rows, ids = torch.from_numpy(text.rows), torch.from_numpy(text.teacher_ids)
        text = mlot.TextPositions(rows, ids, text.plan)
    k = max(len(problem.mine), 1) if k is None else k
    targets = mlot.text_targets(logits, text, student_mask=mask, k=k, **settings)
    return targets if backend == "numpy" else targets.map(lambda x: x.numpy())


def dense(targets):
    """Probabilities ``(T, V_s)`` of the first sequence."""
    _, length, vocabulary = targets.shape
    q = np.zeros((length, vocabulary))
    for i, j in np.argwhere(targets.ids[0] >= 0):
        q[i, targets.ids[0, i, j]] += np.exp(targets.log_probs[0, i, j])
    return q


def check_definition(backend, problem):
    targets = made(problem, backend)
    expected = problem.targets()
    q = dense(targets)
    assert set(np.flatnonzero(targets.served[0] > 0)) == set(expected)
    for i, (probabilities, served) in expected.items():
        np.testing.assert_allclose(q[i], probabilities, rtol=0, atol=1e-12)
        assert targets.served[0, i] == pytest.approx(served, abs=1e-12)
