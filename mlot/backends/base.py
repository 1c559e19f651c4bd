"""What a backend is: the operations it provides. Whole operations, not an array shim."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from mlot._arrays import ArrayOperations
from mlot._typing import Array, CostKind, HardMatching
from mlot.sources import Predictions
from mlot.text import TextPositions, TextTargets
from mlot.topk import TopKLogprobs
from mlot.traces import Traces

__all__ = ["Backend", "Transport"]


class Transport(NamedTuple):
    """What a transport solver found, batched: plan, value and how well the marginals are met."""

    plan: Array  #: ``(B, T_t, T_s)``
    value: Array  #: ``(B,)``, the cost of the plan
    marginal_error: Array  #: ``(B,)``, L1 distance of the plan's marginals from those asked for
    n_iter: Array  #: ``(B,)`` integers, rounds done


class Backend(ArrayOperations):
    """Operations on batches of arrays of one kind. Arguments arrive checked.

    Between operations the library uses of an array only ``shape``, ``dtype``, slicing, arithmetic and
    comparison with its like and with numbers, ``abs()``, ``swapaxes``, the reductions ``sum``, ``min``,
    ``max``, ``argmax``, ``any``, ``all`` and ``clip``, and ``bool()``, ``int()`` and ``float()`` of a scalar.

    In what follows ``B`` counts sequences, ``T`` positions, ``P`` pairs. ``pairs`` are integers
    ``(B, P, 2)``, each ``[student position, teacher position]``, with ``[-1, -1]`` where there is none;
    positions in them are valid on both sides. A sequence without pairs or without valid positions has
    divergence 0 and a zero gradient. What a mask excludes must not influence any result, whatever it holds.
    """

    # -- masks and pairs ---------------------------------------------------------------------------------

    @abstractmethod
    def mask_from_labels(self, labels: Array, ignore_index: int) -> Array:
        """Positions ``t`` of ``(B, T)`` labels for which ``labels[t + 1]`` is not ``ignore_index``."""

    @abstractmethod
    def index_pairs(self, student_mask: Array, teacher_mask: Array) -> Array:
        """Pair the i-th valid student position with the i-th valid teacher position."""

    @abstractmethod
    def restrict_pairs(self, pairs: Array, student_mask: Array, teacher_mask: Array) -> Array:
        """Replace by ``[-1, -1]`` every pair with a negative entry or a position outside its mask."""

    @abstractmethod
    def count_pairs(self, pairs: Array) -> Array:
        """Number of pairs in each sequence, ``(B,)``, in a floating type."""

    @abstractmethod
    def count_positions(self, mask: Array) -> Array:
        """Number of valid positions in each sequence, ``(B,)``, in a floating type."""

    # -- selection ---------------------------------------------------------------------------------------

    @abstractmethod
    def select(
        self,
        source: Predictions,
        mask: Array,
        *,
        k: int,
        temperature: float,
        extra_temperatures: tuple[float, ...],
        standardize: bool,
    ) -> Traces:
        """Equations (10), (12): traces of the ``k`` heaviest columns. The source is never `Traces` here."""

    @abstractmethod
    def select_sparse(
        self,
        source: TopKLogprobs,
        mask: Array,
        *,
        k: int,
        temperature: float,
        extra_temperatures: tuple[float, ...],
    ) -> Traces:
        """Equations (10), (12) from the likeliest columns of each position; see `mlot.TopKLogprobs`.

        A missing mass of at most ``min(64 eps, 4 eps + 1e-4)`` counts as none, ``eps`` being the rounding
        unit of the log-probabilities' type. A constant for differentiation. No array has more than the order
        of ``B T (K + k) + B V`` entries.
        """

    @abstractmethod
    def take(
        self,
        source: Predictions,
        columns: Array,
        mask: Array,
        *,
        temperature: float,
        extra_temperatures: tuple[float, ...],
        standardize: bool,
    ) -> Traces:
        """Traces of given columns ``(B, k)`` of a source."""

    @abstractmethod
    def keep(self, traces: Traces, index: Array) -> Traces:
        """Traces of the kept columns that ``index`` ``(B, k')`` points at, in its order."""

    # -- costs, matching, transport ----------------------------------------------------------------------

    @abstractmethod
    def token_cost(
        self, student: Traces, teacher: Traces, pairs: Array, *, kind: CostKind, temperature: float | None
    ) -> Array:
        """Cost ``(B, k_t, k_s)`` between whole columns, summed over the pairs."""

    @abstractmethod
    def assign(self, cost: Array, *, method: HardMatching) -> Array:
        """Column ``(B, R)`` that each row of a cost ``(B, R, S)``, R <= S, is matched with; injective."""

    @abstractmethod
    def sequence_cost(
        self,
        student: Traces,
        teacher: Traces,
        *,
        kind: CostKind,
        temperature: float | None,
        coupling: Array | None = None,
    ) -> Array:
        """Cost ``(B, T_t, T_s)`` between positions over matched columns; 0 where either is masked out.

        With a ``coupling`` ``(B, k_t, k_s)``, the student's columns are first mixed by it.
        """

    @abstractmethod
    def marginals(self, student_mask: Array, teacher_mask: Array, like: Array) -> tuple[Array, Array]:
        """Uniform weights over valid positions: teacher ``(B, T_t)``, student ``(B, T_s)``.

        In the type that a computation on ``like`` has. Both are zero for a sequence that has no valid
        position on one of the sides.
        """

    @abstractmethod
    def sinkhorn(
        self,
        cost: Array,
        a: Array,
        b: Array,
        *,
        epsilon: float,
        n_iter: int,
        tol: float | None,
        cost_bound: float | None,
    ) -> Transport:
        """Equations (17)-(20): the plan after ``n_iter`` rounds of rows, then columns.

        Rows with ``a = 0`` and columns with ``b = 0`` take no mass. With ``tol`` a sequence stops at the
        first round whose marginal error is at most that. ``cost_bound`` bounds the entries of the cost, if
        known.
        """

    @abstractmethod
    def emd(self, cost: Array, a: Array, b: Array) -> Transport:
        """Exact optimal transport; ``n_iter`` is zero."""

    # -- divergences, (B,), literal sums -----------------------------------------------------------------

    @abstractmethod
    def had(self, student: Traces, teacher: Traces, pairs: Array) -> Array:
        """Equation (14) on matched traces."""

    @abstractmethod
    def sl(self, student: Traces, teacher: Traces, pairs: Array) -> Array:
        """Equation (16) on matched traces; zero teacher mass contributes exactly 0."""

    @abstractmethod
    def uld(
        self,
        student: Predictions,
        teacher: Predictions,
        student_mask: Array,
        teacher_mask: Array,
        pairs: Array,
    ) -> Array:
        """L1 distance of the descending probabilities of the two full vocabularies, over the pairs."""

    # -- the plan from the text --------------------------------------------------------------------------

    @abstractmethod
    def text_targets(
        self,
        teacher: Predictions | TopKLogprobs,
        text: TextPositions,
        student_mask: Array,
        teacher_mask: Array,
        *,
        k: int,
        temperature: float,
        min_served: float,
    ) -> TextTargets:
        """What the teacher says in the student's tokens; see `mlot.text_targets`. A constant."""

    @abstractmethod
    def text_terms(
        self,
        student: Predictions,
        targets: TextTargets,
        has_target: Array,
        columns: Array,
        mask: Array,
        *,
        temperature: float,
        extra_temperatures: tuple[float, ...],
    ) -> tuple[Array, Array, Array, Traces]:
        """HAD, SL and the student's mass on the listed tokens, ``(B,)`` each, and traces of given columns.

        The first three are sums over the positions that have a target, at ``temperature``; what is not
        listed counts as one token, whose probability is the rest on either side. The traces, as of `take`,
        come from the same pass over the student.
        """

    @abstractmethod
    def inner(self, plan: Array, cost: Array) -> Array:
        """Sum of plan times cost over all but the first axis; zero mass contributes exactly 0."""
