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
from mlot.backends.torch.exponentials import exponential
from mlot.backends.torch.rows import RowSource, Scratch, SourceLayout, compute_dtype
from mlot.backends.torch.topk import tempered
from mlot.sources import Predictions
from mlot.text import TextPlan, TextPositions, TextTargets
from mlot.topk import TopKLogprobs

LEAST_CONSISTENT = 0.01  # as in the reference
#: Bytes of probabilities and sums in one block, on the host and on accelerators.
HOST_BLOCK_BYTES = 1 << 22
GROUP = 8  # values of a group among which the largest are sought
DEVICE_BLOCK_BYTES = 1 << 28


class _Plan(NamedTuple):
    """A plan's arrays as tensors, with student tokens by their column in sums of mass.

    Column 0 takes what is no text, column 1 text that no token of the student follows; then come the tokens
    that follow a whole token of the teacher, and then all others. Most rows need no more than the first.
    """

    order: Tensor
    offsets: Tensor
    longest: Tensor
    canonical: Tensor  #: -1 where the student's own tokenization has no border, or is not known
    segmentation: Tensor
    whole: Tensor  #: column for each teacher id of which nothing has been read, ``(V_t,)``
    ends: Tensor  #: teacher id and columns of its role and in place of this, ``(E, 3)``
    beside: Tensor  #: other teacher ids in the column of its role, ``(E, M)``, -1 where there are fewer
    number: Tensor  #: of each teacher id, ``(V_t,)``, -1 where it is no text
    column: Tensor  #: of each student token, ``(V_s,)``
    token: Tensor  #: of each column, ``(2 + V_s,)``, -1 for the first two
    narrow: int  #: number of columns up to the last that follows a whole token

    @property
    def wide(self) -> int:
        """Number of all columns."""
        return len(self.token)


_NO_TEXT, _NOTHING_FOLLOWS = 0, 1


def _on_device(plan: TextPlan, device: torch.device) -> _Plan:
    key = ("torch", str(device))
    if key not in plan.cache:
        plan.cache[key] = _Plan(
            *(x.to(device) if isinstance(x, Tensor) else x for x in _by_column(plan))  # type: ignore[arg-type]
        )
    kept: _Plan = plan.cache[key]
    return kept


def _by_column(plan: TextPlan) -> _Plan:
    order, offsets, longest, canonical, segmentation, roles, ends = (
        torch.from_numpy(array.astype("int64"))
        for array in (
            plan.order,
            plan.offsets,
            plan.longest,
            plan.canonical,
            plan.segmentation,
            plan.roles.reshape(-1, 2),
            plan.ends.reshape(-1, 2),
        )
    )
    first = offsets[:-1]
    follows = longest[first]
    if plan.reading == "canonical":
        follows = torch.where(canonical[first] >= 0, canonical[first], follows)
    is_whole = torch.zeros(plan.student_vocab_size, dtype=torch.bool)
    is_whole[follows[follows >= 0]] = True
    is_whole[roles[:, 1]] = True
    is_whole[ends[:, 1]] = True
    token = torch.cat([torch.tensor([-1, -1]), (~is_whole).to(torch.int8).argsort(stable=True)])
    column = torch.empty_like(token[2:])
    column[token[2:]] = torch.arange(2, len(token))
    whole = torch.full((plan.teacher_vocab_size,), _NO_TEXT)
    whole[order] = torch.where(follows < 0, _NOTHING_FOLLOWS, column[follows.clamp(min=0)])
    whole[roles[:, 0]] = column[roles[:, 1]]
    there = [(whole == whole[n]).nonzero().flatten() for n in ends[:, 0]]
    beside = [ids[ids != n] for ids, n in zip(there, ends[:, 0], strict=True)]
    number = torch.full((plan.teacher_vocab_size,), -1)
    number[order] = torch.arange(len(order))
    return _Plan(
        order,
        offsets,
        torch.where(longest < 0, _NOTHING_FOLLOWS, column[longest.clamp(min=0)]),
        torch.where(canonical < 0, -1, column[canonical.clamp(min=0)]),
        segmentation,
        whole,
        torch.stack([ends[:, 0], whole[ends[:, 0]], column[ends[:, 1]]], 1),
        torch.nn.utils.rnn.pad_sequence([torch.zeros(0).long(), *beside], batch_first=True, padding_value=-1)[
            1:
        ],
        number,
        column,
        token,
        2 + int(is_whole.sum()),
    )


class _Teacher:
    """What a teacher gives its tokens at listed positions."""

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

    def at(self, b: Tensor, j: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights ``(U, V_t)``, until the next call; their sum with unknown tokens; the share of these."""
        logits = None
        if self.own is not None:
            logits = self.own._logits_at(b, j)
        elif self.rows is not None:
            logits = self.rows.read((b, j))
        if logits is not None:
            weights = logits.to(self.dtype)  # which nobody else holds
            exponential(weights, weights.amax(-1, keepdim=True), None, self.temperature, weights)
            return weights, weights.sum(-1), weights.new_zeros(len(b))
        ids = self.ids[b, j]
        probs = self.log_probs[b, j].exp().masked_fill(ids < 0, 0)
        dense = probs.new_zeros((len(b), self.vocabulary)).scatter_add_(1, ids.clamp(min=0), probs)
        return dense, probs.new_ones(len(b)), self.missing[b, j]


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
    shape, length = tuple(student_mask.shape), teacher_mask.shape[1]
    ids = torch.full((*shape, k), -1, device=device)
    log_probs = torch.full((*shape, k), -torch.inf, dtype=source.dtype, device=device)
    rest, served = torch.zeros((2, *shape), dtype=source.dtype, device=device)
    b, rows = _valid(text, student_mask, teacher_mask)
    chain = _chains(source, text.teacher_ids, b, rows)
    first = text.teacher_ids.long()[b, rows[:, 1] + 1] if len(rows) else b
    consistent = text.plan.reading == "canonical"
    scratch = Scratch(source.dtype, device)
    plain = (rows[:, 2] == 0) & (rows[:, 8] <= 1)
    for group, width in ((plain, plan.narrow), (~plain, plan.wide)):
        listed = group.nonzero().flatten()
        for block, key, of in _blocks(b[listed], rows[listed, 1], length, _room(source, width, device)):
            some = listed[block]
            weights, total, missing = source.at(key // length, key % length)
            weights = weights[:, : len(plan.whole)]  # what is wider than its tokenizer has no text there
            here = chain[some] * total[of]
            mass = _carried(weights, of, rows[some], first[some], here, plan, width, consistent, scratch)
            there = mass[:, 1:].sum(-1)
            top, index = _largest(mass[:, 2:], min(k, width - 2))
            left = mass[:, 2:].scatter_(1, index, 0).sum(-1)
            carried = top.sum(-1) + left
            share = (carried / (there + (missing * total)[of])).nan_to_num(0, 0, 0)
            kept = (share >= min_served) & (carried > 0)
            position = (b[some], rows[some, 0])
            unlisted = ~((top > 0) & kept[:, None])
            ids[(*position, slice(0, top.shape[1]))] = plan.token[index + 2].masked_fill_(unlisted, -1)
            q = (top / carried[:, None]).log_().masked_fill_(unlisted, -torch.inf)
            log_probs[(*position, slice(0, top.shape[1]))] = q
            rest[position] = (left / carried).masked_fill_(~kept, 0)
            served[position] = share.masked_fill_(~kept, 0)
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


def _room(source: _Teacher, width: int, device: torch.device) -> int:
    """Number of teacher positions in a block."""
    budget = HOST_BLOCK_BYTES if device.type == "cpu" else DEVICE_BLOCK_BYTES
    return max(1, budget // ((source.vocabulary + width) * source.dtype.itemsize))


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
    weights: Tensor,
    of: Tensor,
    rows: Tensor,
    first: Tensor,
    chain: Tensor,
    plan: _Plan,
    width: int,
    consistent: bool,
    scratch: Scratch,
) -> Tensor:
    """Mass of each column, ``(R, width)``."""
    depth, start, low, high, borders, following = (rows[:, n] for n in range(2, 8))
    mass = scratch((len(rows), width)).zero_()
    # Column that follows the teacher's token of the text, where the student's own tokenization says so.
    own_first = torch.full_like(first, -1)
    at_border = (depth == 0).nonzero().flatten()
    if len(at_border) == len(weights):  # each position for one row, in order
        mass.scatter_add_(1, plan.whole.expand_as(weights), weights)
    elif len(at_border):
        whole = weights[of[at_border]]
        mass[at_border] = mass[at_border].scatter_add_(1, plan.whole.expand_as(whole), whole)
    own_end = ((depth == 0) & (borders > 0)).nonzero().flatten()
    if len(own_end):
        ends, others = plan.ends[borders[own_end] - 1], plan.beside[borders[own_end] - 1]
        of_others = weights[of[own_end, None], others.clamp(min=0)].masked_fill(others < 0, 0)
        mass[own_end, ends[:, 1]] = of_others.sum(-1)
        mass[own_end, ends[:, 2]] += weights[of[own_end], ends[:, 0]]
    inside = (depth > 0).nonzero().flatten()
    if len(inside):
        n, r = _ragged(start[inside], high[inside])
        row = inside[r]
        w = weights[of[row], plan.order[n]]
        goes_on = n >= low[row]
        entry = plan.offsets[n] + torch.where(goes_on, depth[row], 0)
        follows = plan.longest[entry]
        if consistent:
            own = plan.canonical[entry]
            bits = plan.segmentation[n] & ((2 << depth[row].clamp(max=62)) - 2)
            agrees = goes_on & (borders[row] >= 0) & (own >= 0) & (bits == borders[row])
            sums = mass.new_zeros((2, len(rows)), dtype=torch.float64)
            sums[0].index_add_(0, row, (w * goes_on).double())
            sums[1].index_add_(0, row, (w * agrees).double())
            by_own = sums[1] > LEAST_CONSISTENT * sums[0]
            follows = torch.where(by_own[row], torch.where(agrees, own, _NOTHING_FOLLOWS), follows)
            is_first = goes_on & (n == plan.number[first[row]])
            own_first[row[is_first]] = follows[is_first]
            own_first[by_own & (own_first < 0)] = _NOTHING_FOLLOWS
        follows = torch.where(goes_on, follows, _NOTHING_FOLLOWS)
        mass.view(-1).index_add_(0, row * width + follows, w)
    chained = (rows[:, 8] > 1).nonzero().flatten()
    if len(chained):
        u, target = own_first[chained], plan.column[following[chained]]
        u = torch.where(depth[chained] == 0, plan.whole[first[chained]], u)
        longest = plan.longest[plan.offsets[plan.number[first[chained]]] + depth[chained]]
        u = torch.where(u < 0, longest, u)
        # What begins with the whole chain is followed by the token that the text has, not by a shorter one.
        most = torch.where(u == _NOTHING_FOLLOWS, torch.inf, mass[chained, u])
        moved = torch.minimum(chain[chained], most)
        mass[chained, u] -= moved
        mass[chained, target] += moved
    return mass


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As ``topk`` of each row: the k largest values lie in the k groups with the largest maxima."""
    width, groups = values.shape[1], values.shape[1] // GROUP
    if groups < 2 * k:
        return tuple(values.topk(k))  # type: ignore[return-value]
    grouped = values[:, : groups * GROUP].view(len(values), GROUP, groups)
    best = grouped.amax(1).topk(k, sorted=False).indices[:, None]
    member = torch.arange(GROUP, device=values.device)[:, None] * groups
    index = torch.cat(
        [
            (best + member).flatten(1),
            torch.arange(groups * GROUP, width, device=values.device).expand(len(values), -1),
        ],
        1,
    )
    top, place = values.gather(1, index).topk(k)
    return top, index.gather(1, place)


def _chains(source: _Teacher, teacher_ids: Tensor, b: Tensor, rows: Tensor) -> Tensor:
    """Probability of the teacher's tokens that the student's next token reaches into, ``(R,)``."""
    result = torch.ones(len(rows), dtype=source.dtype, device=rows.device)
    chained = (rows[:, 8] > 1).nonzero().flatten()
    if not len(chained):
        return result
    j, r = _ragged(rows[chained, 1], rows[chained, 1] + rows[chained, 8])
    log_chain = torch.zeros(len(chained), dtype=torch.float64, device=rows.device)
    length = teacher_ids.shape[1]
    for some, key, of in _blocks(b[chained][r], j, length, _room(source, 0, rows.device)):
        weights, total, _ = source.at(key // length, key % length)
        token = teacher_ids.long()[b[chained][r][some], j[some] + 1]
        probability = weights[of, token].double() / total[of].double()
        log_chain.index_add_(0, r[some], probability.log())
    result[chained] = log_chain.exp().to(source.dtype)
    return result


def text_terms(
    log_probs: Tensor, log_rest: Tensor, targets: TextTargets, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """HAD and SL of each sequence over listed tokens and a rest, and the student's mass on the listed.

    The mask tells which positions have a target.
    """
    dtype = compute_dtype(log_probs.dtype)
    log_s, log_rest = log_probs.to(dtype), log_rest.to(dtype)
    q, rest_q = targets.log_probs.to(dtype).exp(), targets.rest.to(dtype)
    s = log_s.exp()
    had = (q - s).abs().sum(-1) + (rest_q - log_rest.exp()).abs()
    sl = -(q * log_s.masked_fill(q == 0, 0)).sum(-1) - rest_q * log_rest.masked_fill(rest_q == 0, 0)
    return tuple(torch.where(mask, x, 0).sum(1) for x in (had, sl, s.sum(-1)))  # type: ignore[return-value]
