"""The plan from the text in the loss: targets in the student's own tokens, and the terms between both."""

from __future__ import annotations

from typing import Any, cast

from mlot import _arguments, _checks
from mlot._composite import Composite
from mlot._resolve import type_name
from mlot._result import Evidence, MultiLevelOTResult
from mlot._typing import Array, Reduction
from mlot.backends.base import Backend
from mlot.config import MultiLevelOTConfig
from mlot.divergences import reduce_sums, sequence_transport, weighted
from mlot.sources import Predictions, Source
from mlot.text import TextPlan, TextPositions, TextTargets
from mlot.topk import TopKLogprobs
from mlot.traces import Traces

#: Share of the teacher's mass at a place in the text that must be carried over for a position to count.
MIN_SERVED = 0.01


def text_targets(
    teacher: Source,
    text: TextPositions,
    *,
    student_mask: Array,
    teacher_mask: Array | None = None,
    k: int = 256,
    temperature: float = 1.0,
    min_served: float = MIN_SERVED,
    backend: str | None = None,
) -> TextTargets:
    r"""Carry a teacher's predictions over to the student's tokens, by the text that both read.

    Let student position :math:`i` have read the text up to a byte inside the teacher's token that position
    :math:`j` predicts, and :math:`c` be what of that token has been read. With the bytes
    :math:`\beta(v)` of teacher token :math:`v` and the student token :math:`\mathrm{nxt}(w)` that the bytes
    :math:`w` begin with,

    .. math:: q_i(u) = \frac{\sum_v t_j(v)\,[c \text{ is a proper prefix of } \beta(v),\
              \mathrm{nxt}(\beta(v)[|c|:]) = u]}
              {\sum_v t_j(v)\,[c \text{ is a proper prefix of } \beta(v)]}.

    Where the student's next token :math:`u^*` spans the teacher's tokens :math:`v_1 \dots v_r`, the product
    of their probabilities is moved from :math:`\mathrm{nxt}(\beta(v_1)[|c|:])` to :math:`u^*`. Tokens that
    are no continuation are conditioned away; special tokens correspond by role.

    With the plan's ``reading="canonical"`` a teacher token counts inside itself only if the student's own
    tokenization of it has the borders that the student's tokens so far have, for after these no other can
    follow; where next to nothing is left (1 % of the mass), and where that tokenization is not known, the
    longest token is taken.

    Args:
        teacher: logits ``(B, T_t, V_t)``, a `LinearHead`, or `TopKLogprobs`, of which a token that is not
            listed counts as mass that is not carried.
        text: the text positions; see `mlot.align.text_positions`.
        student_mask: positions of the student whose prediction counts, ``(B, T_s)`` booleans.
        teacher_mask: positions of the teacher that may be read, ``(B, T_t)``; ``None`` means all.
        k: number of tokens that are listed at each position, cut to the student's vocabulary; what others
            have is kept as one number.
        temperature: of the teacher's probabilities.
        min_served: positions at which a smaller share of the teacher's mass is carried over have no target.
        backend: name of a backend; ``None`` finds it from the type of the arrays.

    Returns:
        `TextTargets`, constants for differentiation.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range.

    The teacher's probability of a string is a sum over all tokenizations of it; this takes those that begin
    with one token of the teacher, and the one of the text for strings longer than any.

    >>> import numpy as np, mlot
    >>> from mlot.align import TokenBytes, VocabularyMap, text_positions
    >>> vocabulary = VocabularyMap.from_bytes([b"a", b"b", None], [b"ab", b"a", b"b", None])
    >>> student = TokenBytes([2, 0, 1], [0, 0, 1], [0, 1, 2], [True, False, False], 2)
    >>> teacher = TokenBytes([3, 0], [0, 0], [0, 2], [True, False], 2)
    >>> rows = text_positions(student, teacher, "ab", vocabulary)[None]
    >>> text = mlot.TextPositions(rows, teacher.ids[None], vocabulary.plan())
    >>> logits = np.log([[[0.5, 0.2, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]]])
    >>> targets = mlot.text_targets(logits, text, student_mask=np.array([[True, True, False]]), k=2)
    >>> targets.ids, np.exp(targets.log_probs).round(3)  # "ab" and "a" begin with "a"; then "ab" is left
    (array([[[ 0,  1],
            [ 1, -1],
            [-1, -1]]]), array([[[0.778, 0.222],
            [1.   , 0.   ],
            [0.   , 0.   ]]]))
    """
    _checks.count("k", k)
    _checks.divisor("temperature", temperature)
    _checks.number("min_served", min_served, allow_zero=True)
    arguments = _text_arguments(teacher, text, student_mask=student_mask, teacher_mask=teacher_mask)
    xp, values = _arguments.resolve(arguments, backend)
    return _targets(xp, text.plan, values, k, temperature, float(min_served))


def _targets(
    xp: Backend, plan: TextPlan, values: list[Any], k: int, temperature: float, min_served: float
) -> TextTargets:
    """Targets from the values of `_text_arguments`."""
    teacher, rows, ids, student_mask, teacher_mask = values
    teacher_mask = _arguments.source_and_mask(xp, "teacher", teacher, "teacher_mask", teacher_mask)
    if len(student_mask.shape) != 2:
        raise ValueError(f"student_mask: expected (B, T_s), got shape {tuple(student_mask.shape)}")
    if xp.kind(student_mask) != "bool":
        raise TypeError(f"student_mask: expected booleans, got {student_mask.dtype}")
    text = checked_text(xp, TextPositions(rows, ids, plan), student_mask, teacher)
    return xp.text_targets(
        cast(Predictions, teacher),
        text,
        student_mask,
        teacher_mask,
        k=k,
        temperature=temperature,
        min_served=min_served,
    )


def text_sides(
    student: Any,
    teacher: Any,
    student_mask: Array | None,
    teacher_mask: Array | None,
    pairs: Any,
    text: TextPositions | None,
    config: MultiLevelOTConfig,
    backend: str | None,
) -> tuple[Backend, Source, TextTargets, Array]:
    """Check what is compared by the text; return the student, the targets and the student's mask."""
    if not (isinstance(student, Composite) and student._reads):
        _arguments.whole_source("student", student, "the tokens of its targets are read")
    if pairs is not None:
        raise ValueError("pairs: expected None with matching='text', since the text gives them, got pairs")
    if isinstance(teacher, TextTargets):
        if text is not None or teacher_mask is not None:
            name = "text" if text is not None else "teacher_mask"
            raise ValueError(f"{name}: expected None beside targets that are made already")
        arguments = {"student": student, "teacher": teacher, "student_mask": student_mask}
        xp, (student, teacher, student_mask) = _arguments.resolve(arguments, backend)
        student_mask = _arguments.source_and_mask(xp, "student", student, "student_mask", student_mask)
        _arguments.source_and_mask(xp, "teacher", teacher, "teacher_mask", None)
        require_targets(config, teacher, "teacher")
        return xp, student, teacher, student_mask
    if text is None:
        raise ValueError("text: expected TextPositions with matching='text', or a teacher of TextTargets")
    arguments = {"student": student, "student_mask": student_mask}
    others = _text_arguments(teacher, text, teacher_mask=teacher_mask)
    xp, (student, student_mask, *values) = _arguments.resolve(arguments | others, backend)
    student_mask = _arguments.source_and_mask(xp, "student", student, "student_mask", student_mask)
    values.insert(3, student_mask)
    k = text.plan.student_vocab_size if config.k is None else config.k
    return xp, student, _targets(xp, text.plan, values, k, config.temperature, MIN_SERVED), student_mask


def require_no_text(teacher: Any, text: Any) -> None:
    """Refuse what only the plan from the text can use."""
    if isinstance(teacher, TextTargets):
        raise TypeError("teacher: TextTargets need matching='text'")
    if text is not None:
        raise ValueError("text: expected None unless matching is 'text'")


def require_targets(config: MultiLevelOTConfig, source: Any, name: str) -> None:
    """Require targets with the plan from the text, and none without."""
    if (config.matching == "text") != isinstance(source, TextTargets):
        wanted = "TextTargets" if config.matching == "text" else "another source than TextTargets"
        raise TypeError(
            f"{name}: expected {wanted} with matching={config.matching!r}, got {type_name(source)}"
        )
    if isinstance(source, TextTargets) and source.temperature != config.temperature:
        raise ValueError(
            f"{name}: expected targets at temperature {config.temperature}, got {source.temperature}"
        )


def _text_arguments(teacher: Any, text: Any, **others: Any) -> dict[str, Any]:
    """Arguments by name, those of the text after the teacher."""
    require_text(text)
    if isinstance(teacher, Traces | TextTargets):
        raise TypeError(
            "teacher: expected logits, a LinearHead or TopKLogprobs, since every token counts, "
            f"got {type_name(teacher)}"
        )
    return {"teacher": teacher, "text.rows": text.rows, "text.teacher_ids": text.teacher_ids, **others}


def require_text(text: Any, name: str = "text") -> None:
    """Require text positions."""
    if not isinstance(text, TextPositions):
        raise TypeError(f"{name}: expected TextPositions, got {type_name(text)}")


def checked_text(
    xp: Backend, text: TextPositions, student_mask: Array, teacher: Source, name: str = "text"
) -> TextPositions:
    """Require text positions that fit the masks, the teacher and their own plan."""
    rows, ids, plan = text.rows, text.teacher_ids, text.plan
    for field, array in ((f"{name}.rows", rows), (f"{name}.teacher_ids", ids)):
        if xp.kind(array) != "integer":
            raise TypeError(f"{field}: expected integers, got {array.dtype}")
    batch, length = student_mask.shape
    if rows.shape[0] != batch or batch != teacher.shape[0]:
        raise ValueError(f"{name}.rows: expected a batch of {teacher.shape[0]}, got {rows.shape[0]}")
    if tuple(ids.shape) != tuple(teacher.shape[:2]):
        raise ValueError(
            f"{name}.teacher_ids: expected {tuple(teacher.shape[:2])}, as teacher, got {tuple(ids.shape)}"
        )
    if teacher.shape[2] < plan.teacher_vocab_size:
        raise ValueError(
            f"{name}.plan: expected a teacher of at least {plan.teacher_vocab_size} tokens, "
            f"got {teacher.shape[2]}"
        )
    tops = (length, ids.shape[1], None, len(plan), len(plan), len(plan) + 1, None, plan.student_vocab_size)
    if rows.shape[0] and rows.shape[1]:
        for column, top in enumerate(tops):
            if top is None:
                continue
            low, high = int(rows[:, :, column].min()), int(rows[:, :, column].max())
            if low < -1 or high >= max(top, 1 if column in (3, 4) else top):
                raise ValueError(
                    f"{name}.rows[..., {column}]: expected numbers below {top}, or -1 for no row, "
                    f"got {low if low < -1 else high}"
                )
    if rows.shape[0] and rows.shape[1]:
        at_border = rows[:, :, 2] == 0
        last = int((rows[:, :, 6] * at_border).max())
        if last > len(plan.ends):
            raise ValueError(f"{name}.rows[..., 6]: expected at most {len(plan.ends)} at depth 0, got {last}")
    return text


def text_loss(
    xp: Backend,
    student: Source,
    targets: TextTargets,
    student_mask: Array,
    config: MultiLevelOTConfig,
    reduction: Reduction,
    num_items: float | Array | None,
    return_plan: bool,
) -> MultiLevelOTResult:
    """The loss between a student and targets, from checked arguments."""
    if student.shape[2] < targets.vocab_size:
        raise ValueError(
            f"student: expected the {targets.vocab_size} tokens of the targets at least, "
            f"got {student.shape[2]}"
        )
    if tuple(student.shape[:2]) != tuple(targets.shape[:2]):
        raise ValueError(
            f"teacher: expected targets at the student's positions, {tuple(student.shape[:2])}, "
            f"got {tuple(targets.shape[:2])}"
        )
    has_target = student_mask & (targets.served > 0)
    counts, positions = xp.count_positions(has_target), xp.count_positions(student_mask)
    nothing = counts * float("nan")
    sd, error, plan = nothing, nothing, None
    columns, teacher_traces = targets.ids.sum(1)[:, :0], None
    extra: tuple[float, ...] = ()
    if config.sd_weight:
        teacher_traces = _heaviest(xp, targets, has_target, config)
        columns = teacher_traces.columns
        extra = tuple({config.sequence_temperature} - {config.temperature})
    had, sl, listed, student_traces = xp.text_terms(
        cast(Predictions, student),
        targets,
        has_target,
        columns,
        student_mask,
        temperature=config.temperature,
        extra_temperatures=extra,
    )
    if teacher_traces is not None:
        sd, transport = sequence_transport(
            xp,
            student_traces,
            teacher_traces,
            temperature=config.sequence_temperature,
            kind=config.sequence_cost,
            epsilon=config.epsilon,
            n_iter=config.n_iter,
            tol=config.tol,
        )
        error, plan = xp.stop_gradient(transport.marginal_error), transport.plan if return_plan else None
    rest = (targets.rest * has_target).sum(1)
    served = (targets.served * has_target).sum(1) / counts.clip(1)
    had, sl = (reduce_sums(term, counts, reduction, num_items) for term in (had, sl))
    sd = reduce_sums(sd, positions, reduction, num_items)
    terms = ((config.had_weight, had), (config.sl_weight, sl), (config.sd_weight, sd))
    return MultiLevelOTResult(
        weighted(terms),
        had,
        sl,
        sd,
        columns,
        columns,
        plan,
        _evidence=Evidence(
            xp,
            counts,
            (counts - rest)[:, None],
            xp.stop_gradient(listed)[:, None],
            counts,
            counts,
            error,
            served,
        ),
    )


def _heaviest(xp: Backend, targets: TextTargets, mask: Array, config: MultiLevelOTConfig) -> Traces:
    """Traces of the targets' heaviest columns; what is not listed is as concentrated as it can be."""
    listed = TopKLogprobs.trusted(
        targets.ids, targets.log_probs, vocab_size=targets.vocab_size, temperature=targets.temperature
    )
    k = targets.vocab_size if config.k is None else min(config.k, targets.vocab_size)
    extra = tuple({config.sequence_temperature} - {config.temperature})
    return xp.select_sparse(listed, mask, k=k, temperature=config.temperature, extra_temperatures=extra)
