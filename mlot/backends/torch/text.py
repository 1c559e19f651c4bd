"""The teacher's distribution in the student's tokens: blocks of teacher positions, and sums by token.

The rows of a block are the probabilities of some positions in the order of the sorted vocabulary, so that the
tokens that begin with given bytes lie side by side. Nothing has the size of ``(B, T_s, V_s)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mlot._composite import Composite, arrays_of
from mlot.backends.torch.rows import RowSource, SourceLayout, compute_dtype
from mlot.backends.torch.topk import tempered
from mlot.sources import Predictions
from mlot.text import TextPlan, TextPositions, TextTargets
from mlot.topk import TopKLogprobs

LEAST_CONSISTENT = 0.01  # as in the reference
#: Bytes of probabilities and sums in one block, on the host and on accelerators.
HOST_BLOCK_BYTES = 1 << 23
DEVICE_BLOCK_BYTES = 1 << 28


class _Plan(NamedTuple):
    """A plan's arrays as tensors; tokens that nothing follows have the id ``V_s``."""

    order: Tensor
    offsets: Tensor
    longest: Tensor
    canonical: Tensor
    segmentation: Tensor
    roles: Tensor
    whole: Tensor  #: token that follows each teacher token of which nothing has been read, ``(N,)``
    number: Tensor  #: of each teacher id, ``(V_t,)``, -1 where it is no text


def _on_device(plan: TextPlan, device: torch.device) -> _Plan:
    key = ("torch", str(device))
    if key not in plan.cache:
        none = plan.student_vocab_size
        order, offsets, longest, canonical, segmentation, roles = (
            torch.from_numpy(array.astype("int64")).to(device)
            for array in (
                plan.order,
                plan.offsets,
                plan.longest,
                plan.canonical,
                plan.segmentation,
                plan.roles.reshape(-1, 2),
            )
        )
        longest = torch.where(longest < 0, none, longest)
        first = offsets[:-1]
        whole = longest[first]
        if plan.reading == "canonical":
            whole = torch.where(canonical[first] >= 0, canonical[first], whole)
        number = torch.full((plan.teacher_vocab_size,), -1, device=device)
        number[order] = torch.arange(len(order), device=device)
        plan.cache[key] = _Plan(order, offsets, longest, canonical, segmentation, roles, whole, number)
    kept: _Plan = plan.cache[key]
    return kept


class _Teacher:
    """Probabilities of listed positions, ``(U, V_t)``."""

    def __init__(self, source: Predictions | TopKLogprobs, temperature: float) -> None:
        self.temperature = temperature
        self.vocabulary = int(source.shape[2])
        self.rows: RowSource | None = None
        self.own = source if isinstance(source, Composite) and source._reads else None
        if self.own is not None:
            self.dtype = compute_dtype(arrays_of(source)[0].dtype)
        elif isinstance(source, TopKLogprobs):
            self.ids, self.log_probs, self.missing = tempered(source, temperature)
            self.dtype = self.log_probs.dtype
        else:
            layout = SourceLayout(source)
            self.rows = layout.rows(tuple(None if x is None else x.detach() for x in layout.tensors))
            self.dtype = self.rows.dtype

    def at(self, b: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities, and the mass of tokens that are not known."""
        read = None
        if self.own is not None:
            read = self.own._logits_at(b, j)
        elif self.rows is not None:
            read = self.rows.read((b, j))
        if read is not None:
            logits = read.to(self.dtype)
            return (logits / self.temperature).softmax(-1), logits.new_zeros(len(b))
        ids = self.ids[b, j]
        probs = self.log_probs[b, j].exp().masked_fill(ids < 0, 0)
        dense = probs.new_zeros((len(b), self.vocabulary)).scatter_add_(1, ids.clamp(min=0), probs)
        return dense, self.missing[b, j]


@torch.no_grad()
def text_targets(
    teacher: Predictions | TopKLogprobs,
    text: TextPositions,
    student_mask: Tensor,
    teacher_mask: Tensor,
    *,
    k: int,
    temperature: float,
    min_served: float,
) -> TextTargets:
    """Targets of the k likeliest student tokens at each position."""
    device = arrays_of(teacher)[0].device
    plan, source = _on_device(text.plan, device), _Teacher(teacher, temperature)
    vocabulary = text.plan.student_vocab_size
    k = min(k, vocabulary)
    shape = tuple(student_mask.shape)
    ids = torch.full((*shape, k), -1, device=device)
    log_probs = torch.full((*shape, k), -torch.inf, dtype=source.dtype, device=device)
    rest, served = torch.zeros((2, *shape), dtype=source.dtype, device=device)
    b, rows = _valid(text, student_mask, teacher_mask)
    chain = _chains(source, text.teacher_ids, b, rows, vocabulary)
    first = text.teacher_ids.long()[b, rows[:, 1] + 1] if len(rows) else b
    consistent = text.plan.reading == "canonical"
    for some, key, of in _blocks(b, rows[:, 1], teacher_mask.shape[1], _room(source, vocabulary, device)):
        t, missing = source.at(key // teacher_mask.shape[1], key % teacher_mask.shape[1])
        mass, there = _carried(t, of, rows[some], first[some], chain[some], plan, vocabulary, consistent)
        total = mass.sum(-1, dtype=torch.float64)
        share = (total / (there + missing[of])).nan_to_num(0, 0, 0)
        top, index = mass.topk(k)
        kept = (share >= min_served) & (total > 0)
        listed = top > 0
        here = (b[some], rows[some, 0])
        ids[here] = index.masked_fill(~(listed & kept[:, None]), -1)
        log_probs[here] = (
            (top.double() / total[:, None]).log().masked_fill(~(listed & kept[:, None]), -torch.inf)
        ).to(source.dtype)
        left = ((total - top.double().sum(-1)) / total).clamp(min=0)
        everything = (mass > 0).sum(-1) <= k
        rest[here] = left.masked_fill(everything | ~kept, 0).to(source.dtype)
        served[here] = share.masked_fill(~kept, 0).to(source.dtype)
    return TextTargets(ids, log_probs, rest, served, vocabulary, temperature)


def _valid(text: TextPositions, student_mask: Tensor, teacher_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sequence and row of every text position that counts on both sides."""
    rows = text.rows.long()
    if 0 in (rows.shape[1], student_mask.shape[1], teacher_mask.shape[1]):
        return rows.new_zeros(0), rows.new_zeros((0, rows.shape[2]))
    real = (rows[..., 0] >= 0) & (rows[..., 1] >= 0)
    i, j = rows[..., 0].clamp(min=0), rows[..., 1].clamp(min=0)
    real &= student_mask.gather(1, i) & teacher_mask.gather(1, j)
    b = torch.arange(len(rows), device=rows.device)[:, None].expand_as(real)
    return b[real], rows[real]


def _room(source: _Teacher, vocabulary: int, device: torch.device) -> int:
    """Number of teacher positions in a block."""
    budget = HOST_BLOCK_BYTES if device.type == "cpu" else DEVICE_BLOCK_BYTES
    return max(1, budget // ((2 * source.vocabulary + vocabulary) * source.dtype.itemsize))


def _blocks(b: Tensor, j: Tensor, length: int, room: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows in blocks of so many teacher positions: their index, these positions, and which is whose."""
    keys, of = torch.unique(b * length + j, return_inverse=True)
    order = of.argsort(stable=True)
    edges = torch.searchsorted(of[order], torch.arange(0, len(keys) + room, room, device=b.device)).tolist()
    for n, start in enumerate(range(0, len(keys), room)):
        some = order[edges[n] : edges[n + 1]]
        yield some, keys[start : start + room], of[some] - start


def _ragged(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """All numbers of some ranges one after the other, and which range each is of."""
    lengths = last - first
    of = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    starts = lengths.cumsum(0) - lengths
    return torch.arange(len(of), device=of.device) - starts[of] + first[of], of


def _carried(
    t: Tensor,
    of: Tensor,
    rows: Tensor,
    first: Tensor,
    chain: Tensor,
    plan: _Plan,
    vocabulary: int,
    consistent: bool,
) -> tuple[Tensor, Tensor]:
    """Mass of each student token, ``(R, V_s)``, and what of the teacher's is there, ``(R,)``."""
    depth, start, low, high, borders, following = (rows[:, n] for n in range(2, 8))
    weights = t[:, plan.order]
    mass = t.new_zeros((len(rows), vocabulary + 1))
    there = t.new_zeros(len(rows), dtype=torch.float64)
    # Token that follows the teacher's token of the text, where the student's own tokenization says so.
    own_first = torch.full_like(first, -1)
    at_border = (depth == 0).nonzero().flatten()
    if len(at_border):
        whole = weights if len(at_border) == len(of) == len(t) else weights[of[at_border]]
        mass[at_border] = mass[at_border].scatter_add_(1, plan.whole.expand_as(whole), whole)
        there[at_border] = whole.sum(1, dtype=torch.float64)
        if len(plan.roles):
            special = t[of[at_border]][:, plan.roles[:, 0]]
            mass[at_border] = mass[at_border].index_add_(1, plan.roles[:, 1], special)
            there[at_border] += special.sum(1, dtype=torch.float64)
    inside = (depth > 0).nonzero().flatten()
    if len(inside):
        n, r = _ragged(start[inside], high[inside])
        row = inside[r]
        w = weights[of[row], n]
        there.index_add_(0, row, w.double())
        goes_on = n >= low[row]
        n, row, w = n[goes_on], row[goes_on], w[goes_on]
        entry = plan.offsets[n] + depth[row]
        follows = plan.longest[entry]
        if consistent:
            own = plan.canonical[entry]
            bits = plan.segmentation[n] & ((2 << depth[row].clamp(max=61)) - 2)
            agrees = (borders[row] >= 0) & (own >= 0) & (bits == borders[row])
            sums = there.new_zeros((2, len(rows)))
            sums[0].index_add_(0, row, w.double())
            sums[1].index_add_(0, row, w.double() * agrees)
            by_own = sums[1] > LEAST_CONSISTENT * sums[0]
            follows = torch.where(by_own[row], torch.where(agrees, own, vocabulary), follows)
            is_first = n == plan.number[first[row]]
            own_first[row[is_first]] = follows[is_first]
            own_first[by_own & (own_first < 0)] = vocabulary
        mass.view(-1).index_add_(0, row * (vocabulary + 1) + follows, w)
    chained = (rows[:, 8] > 1).nonzero().flatten()
    if len(chained):
        u, target = own_first[chained], following[chained]
        number = plan.number[first[chained]]
        at_start = depth[chained] == 0
        u = torch.where(at_start, plan.whole[number], u)
        u = torch.where(u < 0, plan.longest[plan.offsets[number] + depth[chained]], u)
        # What begins with the whole chain is followed by the token that the text has, not by a shorter one.
        most = torch.where(u == vocabulary, torch.inf, mass[chained, u])
        moved = torch.minimum(chain[chained], most)
        mass[chained, u] -= moved
        mass[chained, target] += moved
    return mass[:, :vocabulary], there


def _chains(source: _Teacher, teacher_ids: Tensor, b: Tensor, rows: Tensor, vocabulary: int) -> Tensor:
    """Probability of the teacher's tokens that the student's next token reaches into, ``(R,)``."""
    result = torch.ones(len(rows), dtype=source.dtype, device=rows.device)
    chained = (rows[:, 8] > 1).nonzero().flatten()
    if not len(chained):
        return result
    j, r = _ragged(rows[chained, 1], rows[chained, 1] + rows[chained, 8])
    log_chain = torch.zeros(len(chained), dtype=torch.float64, device=rows.device)
    length = teacher_ids.shape[1]
    for some, key, of in _blocks(b[chained][r], j, length, _room(source, vocabulary, rows.device)):
        t, _ = source.at(key // length, key % length)
        token = teacher_ids.long()[b[chained][r][some], j[some] + 1]
        log_chain.index_add_(0, r[some], t[of, token].double().log())
    result[chained] = log_chain.exp().to(source.dtype)
    return result


def text_terms(log_probs: Tensor, targets: TextTargets, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """HAD and SL of each sequence over listed tokens and a rest, and the student's mass on the listed.

    The mask tells which positions have a target.
    """
    dtype = compute_dtype(log_probs.dtype)
    log_s = log_probs.to(dtype)
    q = targets.log_probs.to(dtype).exp()
    rest_q = targets.rest.to(dtype)
    s = log_s.exp()
    listed = s.sum(-1)
    rest_s = 1 - listed
    had = (q - s).abs().sum(-1) + (rest_q - rest_s.clamp(min=0)).abs()
    # A rest below the rounding of the sum tells nothing.
    log_rest = torch.where(rest_q > 0, rest_s, 1).clamp(min=torch.finfo(dtype).eps).log()
    sl = -(q * log_s.masked_fill(q == 0, 0)).sum(-1) - rest_q * log_rest
    return tuple(torch.where(mask, x, 0).sum(1) for x in (had, sl, listed))  # type: ignore[return-value]
