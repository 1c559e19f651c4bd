"""The likelihood of spans of text."""

from __future__ import annotations

from mlot._typing import Array, Reduction
from mlot.baselines import _plain as plain
from mlot.baselines._given import Given
from mlot.text import TextPositions


def span_likelihood(
    student: Array,
    teacher: Array,
    text: TextPositions,
    *,
    temperature: float = 100.0,
    student_mask: Array | None = None,
    teacher_mask: Array | None = None,
    reduction: Reduction = "mean",
    num_items: float | Array | None = None,
    backend: str | None = None,
) -> Array:
    r"""Compare how likely both models hold each span of the text between two places that both have reached.

    A span :math:`c` lies between consecutive positions that have read the same bytes. With the chain rule
    :math:`\log p_s(c) = \sum_i \log s_i(x_{i+1})` over the student's tokens of it, :math:`\log p_t(c)` over
    the teacher's, and :math:`a = p_t(c)^{1/\tau}, b = p_s(c)^{1/\tau}`,

    .. math:: \sum_c \Bigl[a \log \frac{a}{b} + (1 - a) \log \frac{1 - a}{1 - b}\Bigr].

    Spans of which a position is masked out, or the student's token is not known from the text positions, are
    left out, as is what follows the last shared position.

    Args:
        student: logits ``(B, T_s, V_s)``.
        teacher: logits ``(B, T_t, V_t)``.
        text: the text positions.
        temperature: :math:`\tau`, of the likelihoods of spans; those of tokens are taken at 1.
        student_mask: positions of the student whose prediction counts, ``(B, T_s)`` booleans; ``None``: all.
        teacher_mask: the same for the teacher, ``(B, T_t)``.
        reduction: ``"none"``: the sums above, ``(B,)``; ``"sum"``; ``"mean"``: divided by the number of
            spans.
        num_items: with ``"mean"``, the number to divide by instead.
        backend: name of a backend; ``None`` finds it from the type of the arrays.

    Returns:
        ``(B,)`` or a scalar.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range.

    Source: approximate likelihood matching (ALM), Minixhofer et al., arXiv 2503.20083, with the binary KL
    divergence; its choice among spans by how much their tokenizations bias them is left out.
    """
    given = Given.of(
        student, teacher, text, student_mask, teacher_mask, temperature, reduction, num_items, backend
    )
    spans = given.spans()
    number = len(spans.sequence)
    likelihoods = [
        given.sums(given.log_probs(source, where), where[3], number) / temperature
        for source, where in ((given.student, spans.student), (given.teacher, spans.teacher))
    ]
    smallest = 1e-10  # the distance from a probability of one below which nothing is told
    log_b, log_a = (each.clip(None, -smallest) for each in likelihoods)
    log_a = given.xp.stop_gradient(log_a)
    a = plain.exp(log_a)
    terms = a * (log_a - log_b) - plain.expm1(log_a) * (
        plain.log(-plain.expm1(log_a)) - plain.log(-plain.expm1(log_b))
    )
    return given.reduced(terms, spans.sequence, reduction, num_items)
