"""MultiLevelOT: the loss."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np

from mlot import _arguments, _checks
from mlot._result import Evidence, MatchEvidence, MultiLevelOTResult
from mlot._selection import select_columns
from mlot._typing import Array, Reduction
from mlot.backends.base import Backend
from mlot.config import MultiLevelOTConfig, checked_config
from mlot.divergences import check_reduction, reduce_sums, sequence_transport, weighted
from mlot.matching import default_pool
from mlot.sources import Predictions, Source
from mlot.targets import require_no_text, text_loss, text_sides
from mlot.text import TextPositions
from mlot.traces import Traces


def multi_level_ot(
    student: Source,
    teacher: Source,
    *,
    student_mask: Array | None = None,
    teacher_mask: Array | None = None,
    pairs: Array | None = None,
    config: MultiLevelOTConfig | None = None,
    reduction: Reduction = "mean",
    num_items: float | Array | None = None,
    backend: str | None = None,
    return_plan: bool = False,
    text: TextPositions | None = None,
    student_columns: Array | None = None,
) -> MultiLevelOTResult:
    r"""Multi-level optimal transport between the predictions of two models (eqs. 10-20).

    .. math:: \mathcal L = w_\mathrm{HAD}\,\mathrm{HAD} + \beta\,\mathrm{SL} + \gamma\,\mathrm{SD}

    The teacher's k heaviest columns of each sequence are selected and matched with columns of the student;
    HAD and SL compare the matched traces at paired positions, SD transports whole positions. With
    ``matching="text"`` the teacher is carried over to the student's tokens instead (`text_targets`), and the
    three terms are between these targets and the student: HAD and SL at every position that has a target,
    over the listed tokens and one for the rest; SD on the k columns with the largest mass under the targets.

    Gradients flow to the student (and to a teacher that requires grad) through every term, the truncated
    Sinkhorn included; the selected columns and the matching are constants. The gradient is the true one
    wherever the selection and the matching are locally constant.

    Args:
        student: logits ``(B, T_s, V_s)``, a `LinearHead`, a `mlot.distributed.VocabShard`, or `Traces` of at
            least ``config.pool`` columns.
        teacher: logits ``(B, T_t, V_t)``, a `LinearHead`, a `mlot.distributed.VocabShard`,
            `TopKLogprobs`, or `Traces` of at least ``config.k`` columns; with ``matching="text"`` logits, a
            `LinearHead`, `TopKLogprobs` or `TextTargets`.
        student_mask: positions whose prediction counts, ``(B, T_s)`` booleans (see `mask_from_labels`);
            ``None`` means all.
        teacher_mask: the same for the teacher, ``(B, T_t)``.
        pairs: ``(B, P, 2)`` integers ``[student position, teacher position]``, padded by -1. ``None`` pairs
            the i-th valid position of one with the i-th of the other. Pairs whose positions are masked out
            are left out.
        config: settings; ``None`` means the paper's.
        reduction: ``"none"``: the literal sums of each sequence, ``(B,)``; ``"sum"``: their sum; ``"mean"``:
            each term divided by the number of positions it sums over in the batch, pairs for HAD and SL, the
            student's valid positions for SD.
        num_items: with ``"mean"``, the number to divide every term by instead: the positions of a whole
            accumulated or distributed batch.
        backend: name of a backend; ``None`` finds it from the type of the arrays.
        return_plan: keep the transport plan in the result.
        text: with ``matching="text"``, where the student reads in the teacher's tokens; ``None`` if
            ``teacher`` is `TextTargets` made before.
        student_columns: a matching to use in place of one that is computed, ``(B, k)`` integers: the
            student's column for each of the teacher's k heaviest, in the order of `mlot.select`. Columns may
            repeat; those of the teacher that have no partner are left out by giving `Traces` without them.

    Returns:
        `MultiLevelOTResult`. A sequence that has no pairs, or no valid position on one of the sides, adds
        exactly 0 to the terms concerned, and no gradient.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range.

    Source: Cui et al., "Multi-Level Optimal Transport for Universal Cross-Tokenizer Knowledge Distillation on
    Language Models", AAAI 2025, arXiv 2412.14528.

    >>> import numpy as np, mlot
    >>> rng = np.random.default_rng(0)
    >>> student, teacher = rng.normal(size=(2, 5, 30)), rng.normal(size=(2, 7, 40))
    >>> result = mlot.multi_level_ot(student, teacher, config=mlot.MultiLevelOTConfig(k=8))
    >>> bool(np.isclose(result.loss, result.had + 0.1 * result.sl + 0.1 * result.sd))
    True
    """
    config = checked_config(config)
    check_reduction(reduction, num_items)
    _checks.flag("return_plan", return_plan)
    _arguments.student_source("student", student)
    if student_columns is not None:
        _require_no_plan(config, student)
    if config.matching == "text":
        xp, student, targets, student_mask = text_sides(
            student, teacher, student_mask, teacher_mask, pairs, text, config, backend
        )
        return text_loss(xp, student, targets, student_mask, config, reduction, num_items, return_plan)
    require_no_text(teacher, text)
    xp, student, teacher, student_mask, teacher_mask, pairs = _arguments.compared(
        student, teacher, student_mask, teacher_mask, pairs, backend
    )
    if student_columns is not None:
        _, (student_columns, _) = _arguments.resolve(
            {"student_columns": student_columns, "student": student}, backend
        )
        return _given_loss(
            xp,
            student,
            teacher,
            student_mask,
            teacher_mask,
            pairs,
            student_columns,
            config,
            reduction,
            num_items,
            return_plan,
        )
    k, pool = columns_of(config, student, teacher)
    student_traces = traces_of(xp, student, student_mask, pool, config, "student")
    teacher_traces = traces_of(xp, teacher, teacher_mask, k, config, "teacher")
    return loss_of(xp, student_traces, teacher_traces, pairs, config, reduction, num_items, return_plan)


def _require_no_plan(config: MultiLevelOTConfig, student: Source) -> None:
    """Refuse what leaves no room for a given matching."""
    if config.matching in ("text", "sinkhorn"):
        raise ValueError(
            f"student_columns: expected None with matching={config.matching!r}, which matches no columns one "
            "to one, got columns"
        )
    if isinstance(student, Traces):
        raise TypeError(
            "student: expected logits or a LinearHead with student_columns, which are read, got Traces"
        )


def _given_loss(
    xp: Backend,
    student: Source,
    teacher: Source,
    student_mask: Array,
    teacher_mask: Array,
    pairs: Array,
    student_columns: Array,
    config: MultiLevelOTConfig,
    reduction: Reduction,
    num_items: float | Array | None,
    return_plan: bool,
) -> MultiLevelOTResult:
    """The loss with a matching that was given."""
    _arguments.columns("student_columns", student_columns, xp, student)
    k = int(student_columns.shape[1])
    if k > teacher.shape[2]:
        raise ValueError(
            f"student_columns: expected at most {teacher.shape[2]} columns, the teacher's, got {k}"
        )
    teacher_traces = traces_of(xp, teacher, teacher_mask, k, config, "teacher")
    student_traces = xp.take(
        cast(Predictions, student),
        student_columns,
        student_mask,
        temperature=config.temperature,
        extra_temperatures=tuple({config.sequence_temperature} - {config.temperature}),
        standardize=config.standardize,
    )
    in_order = replace(config, matching="rank")
    return loss_of(xp, student_traces, teacher_traces, pairs, in_order, reduction, num_items, return_plan)


def traces_of(
    xp: Backend, source: Source, mask: Array, k: int, config: MultiLevelOTConfig, name: str
) -> Traces:
    extra = (config.sequence_temperature,)
    return select_columns(xp, source, mask, k, config.temperature, extra, config.standardize, name)


def columns_of(config: MultiLevelOTConfig, student: Source, teacher: Source) -> tuple[int, int]:
    """Number of teacher columns and of student columns to select."""
    k = min(student.shape[2], teacher.shape[2], config.k if config.k is not None else student.shape[2])
    if config.matching in ("rank", "sinkhorn"):
        return k, k
    pool = max(default_pool(k) if config.pool is None else config.pool, k)
    return k, min(pool, student.shape[2])


def loss_of(
    xp: Backend,
    student: Traces,
    teacher: Traces,
    pairs: Array,
    config: MultiLevelOTConfig,
    reduction: Reduction,
    num_items: float | Array | None,
    return_plan: bool,
) -> MultiLevelOTResult:
    evidence, coupling = None, None
    if config.matching in ("optimal", "greedy"):
        student, evidence = match(xp, student, teacher, pairs, config)
    if config.matching == "sinkhorn":
        coupling, had, sl = _soft_terms(xp, student, teacher, pairs, config)
    else:
        had, sl = xp.had(student, teacher, pairs), xp.sl(student, teacher, pairs)
    sd, transport = sequence_transport(
        xp,
        student,
        teacher,
        temperature=config.sequence_temperature,
        kind=config.sequence_cost,
        epsilon=config.epsilon,
        n_iter=config.n_iter,
        tol=config.tol,
        coupling=coupling,
    )
    pair_counts, positions = xp.count_pairs(pairs), xp.count_positions(student.mask)
    had = reduce_sums(had, pair_counts, reduction, num_items)
    sl = reduce_sums(sl, pair_counts, reduction, num_items)
    sd = reduce_sums(sd, positions, reduction, num_items)
    return MultiLevelOTResult(
        weighted(((config.had_weight, had), (config.sl_weight, sl), (config.sd_weight, sd))),
        had,
        sl,
        sd,
        teacher.columns,
        student.columns,
        transport.plan if return_plan else None,
        coupling,
        _evidence=Evidence(
            xp,
            pair_counts,
            xp.stop_gradient(teacher.column_mass),
            xp.stop_gradient(student.column_mass),
            xp.count_positions(teacher.mask),
            positions,
            xp.stop_gradient(transport.marginal_error),
            positions * float("nan"),
            evidence,
        ),
    )


def match(
    xp: Backend, student: Traces, teacher: Traces, pairs: Array, config: MultiLevelOTConfig
) -> tuple[Traces, MatchEvidence | None]:
    """Student traces with a column for each of the teacher's, chosen among the pooled ones."""
    fixed_student, fixed_teacher = student.map(xp.stop_gradient), teacher.map(xp.stop_gradient)
    cost = xp.token_cost(fixed_student, fixed_teacher, pairs, kind=config.token_cost, temperature=None)
    index = xp.assign(cost, method="greedy" if config.matching == "greedy" else "optimal")
    evidence = None
    if config.matching == "optimal" and config.token_cost == "l1":
        lightest = fixed_student.column_mass[:, -1]
        whole = student.k == student.vocab_size
        outside = lightest * 0 - np.inf if whole else lightest
        evidence = MatchEvidence(cost, index, fixed_teacher.log_probs, pairs, outside)
    return xp.keep(student, index), evidence


def _soft_terms(
    xp: Backend, student: Traces, teacher: Traces, pairs: Array, config: MultiLevelOTConfig
) -> tuple[Array, Array, Array]:
    """Coupling between columns by Sinkhorn, and HAD and SL under it; a permutation gives the hard terms."""
    cost = xp.token_cost(student, teacher, pairs, kind=config.token_cost, temperature=None)
    everything = xp.full_mask(cost)
    a, b = xp.marginals(everything, everything, cost)
    transport = xp.sinkhorn(
        cost, a, b, epsilon=config.epsilon, n_iter=config.n_iter, tol=config.tol, cost_bound=None
    )
    coupling = teacher.k * transport.plan
    absolute = (
        cost
        if config.token_cost == "l1"
        else xp.token_cost(student, teacher, pairs, kind="l1", temperature=None)
    )
    logarithmic = (
        cost
        if config.token_cost == "log"
        else xp.token_cost(student, teacher, pairs, kind="log", temperature=None)
    )
    return coupling, xp.inner(coupling, absolute), xp.inner(coupling, logarithmic)
