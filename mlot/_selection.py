"""Selection: the heaviest columns of whatever a model's predictions come as."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from mlot import _arguments, _checks
from mlot._typing import Array
from mlot.backends.base import Backend
from mlot.sources import Predictions, Source
from mlot.topk import TopKLogprobs
from mlot.traces import Traces


def select(
    source: Source,
    mask: Array | None = None,
    *,
    k: int | None,
    temperature: float = 1.0,
    extra_temperatures: tuple[float, ...] = (2.0,),
    standardize: bool = False,
    backend: str | None = None,
) -> Traces:
    r"""Keep the :math:`k` columns with the largest probability mass over each sequence.

    Equations (10) and (12) of the paper: with :math:`t(i) = \mathrm{softmax}(z(i)/\tau)`, the columns
    :math:`l` with the largest :math:`\sum_i t_l(i)` over the valid positions :math:`i`; ties go to the lower
    index.

    Args:
        source: dense logits ``(B, T, V)``, a `LinearHead`, a `mlot.distributed.VocabShard`, `TopKLogprobs`,
            or traces (of which the first ``k`` are kept).
        mask: positions whose prediction counts, ``(B, T)`` booleans; ``None`` means all. Traces bring their
            own, and of `TopKLogprobs` positions without an entry do not count.
        k: columns to keep, cut to :math:`V`; ``None`` keeps all.
        temperature: temperature of the probabilities.
        extra_temperatures: further temperatures that the traces shall serve. The default is the sequence
            temperature of the paper.
        standardize: divide the logits of each position by their (unbiased) standard deviation + 1e-4, to
            which logits of minus infinity do not count.
        backend: name of a backend; ``None`` finds it from the type of the arrays.

    Returns:
        `Traces`, differentiable with respect to the source where the backend has gradients.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range.

    Source: Cui et al., "Multi-Level Optimal Transport for Universal Cross-Tokenizer Knowledge Distillation on
    Language Models", AAAI 2025.

    >>> import numpy as np, mlot
    >>> logits = np.log([[[0.1, 0.6, 0.3], [0.2, 0.5, 0.3]]])
    >>> traces = mlot.select(logits, k=2)
    >>> traces.columns
    array([[1, 2]])
    >>> np.exp(traces.log_probs).round(3)
    array([[[0.6, 0.3],
            [0.5, 0.3]]])
    """
    _checks.count("k", k, allow_none=True)
    temperatures = _checks.temperatures(temperature, extra_temperatures)
    _checks.flag("standardize", standardize)
    xp, (source, mask) = _arguments.resolve({"source": source, "mask": mask}, backend)
    mask = _arguments.source_and_mask(xp, "source", source, "mask", mask)
    return select_columns(xp, source, mask, k, temperature, temperatures, standardize)


def select_columns(
    xp: Backend,
    source: Source,
    mask: Array,
    k: int | None,
    temperature: float,
    extra_temperatures: tuple[float, ...],
    standardize: bool,
    name: str = "source",
) -> Traces:
    """Select from checked arguments."""
    vocabulary = int(source.shape[2])
    k = vocabulary if k is None else min(k, vocabulary)
    extra = tuple(t for t in dict.fromkeys(extra_temperatures) if t != temperature)
    if isinstance(source, Traces):
        check_traces(source, k, temperature, extra, standardize, name)
        return source if source.k == k else _first_columns(source, k)
    if isinstance(source, TopKLogprobs):
        if standardize:
            raise ValueError(
                f"{name}: expected standardize=False, since the deviation of logits cannot be told from "
                "TopKLogprobs, got standardize=True"
            )
        return xp.select_sparse(source, mask, k=k, temperature=temperature, extra_temperatures=extra)
    return xp.select(
        cast(Predictions, source),
        mask,
        k=k,
        temperature=temperature,
        extra_temperatures=extra,
        standardize=standardize,
    )


def _first_columns(traces: Traces, k: int) -> Traces:
    return replace(
        traces,
        columns=traces.columns[:, :k],
        log_probs=traces.log_probs[:, :, :k],
        column_mass=traces.column_mass[:, :k],
    )


def check_traces(
    traces: Traces,
    k: int,
    temperature: float,
    extra_temperatures: tuple[float, ...],
    standardize: bool,
    name: str,
) -> None:
    """Raise `ValueError` unless traces can serve what is asked of them."""
    if traces.k < k:
        raise ValueError(
            f"{name}: expected traces of at least {k} columns, got {traces.k} of {traces.vocab_size}"
        )
    if traces.temperature != temperature:
        raise ValueError(
            f"{name}: expected traces selected at temperature {temperature}, got {traces.temperature}"
        )
    if traces.standardize != standardize:
        raise ValueError(
            f"{name}: expected traces with standardize={standardize}, got standardize={traces.standardize}"
        )
    for extra in extra_temperatures:
        traces.require(extra, name)
