"""The targets of the text's plan from their definition, as loops over two vocabularies."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from byte_cases import bytewise, two_tokenizations
from mlot import TextPositions
from mlot.align import VocabularyMap, batch_text_positions, text_positions

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


class Problem:
    def __init__(self, mine, others, text, student, teacher, tokenize, reading, logits, positions):
        self.mine, self.others, self.text = mine, others, text
        self.student, self.teacher, self.tokenize, self.reading = student, teacher, tokenize, reading
        self.logits, self.positions = logits, positions

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
            for special, role in ROLES:
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
