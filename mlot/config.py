"""Settings of the loss."""

from __future__ import annotations

from dataclasses import dataclass

from mlot import _checks
from mlot._typing import CostKind, Matching


@dataclass(frozen=True)
class MultiLevelOTConfig:
    r"""Settings of MultiLevelOT; the defaults are the paper's.

    .. math:: \mathcal L = w_\mathrm{HAD}\,\mathrm{HAD} + \beta\,\mathrm{SL} + \gamma\,\mathrm{SD}

    which is the bracket of eq. (21); cross-entropy and its weight :math:`\alpha` belong to
    `mlot.nn.MultiLevelOTLoss`.

    Args:
        k: columns kept of each model, cut to the narrower vocabulary; ``None`` keeps all, which rank
            matching and the plan from the text alone can.
        matching: ``"optimal"`` (eq. 11), ``"greedy"``, ``"rank"`` (by mass, no assignment); ``"sinkhorn"``, a
            soft plan between the k heaviest columns of each model in place of the map; or ``"text"``, the
            plan that the bytes of the tokens give (see `mlot.text_targets`), where ``k`` is the number of
            tokens that are listed at each position.
        pool: number of the student's heaviest columns that are candidates for a match; ``None`` means
            :math:`\max(8k, 256)`.
        temperature: of the token level.
        sequence_temperature: of the sequence level.
        standardize: divide the logits of each position by their standard deviation + 1e-4 first; logits of
            minus infinity do not count to it.
        had_weight: weight of HAD.
        sl_weight: :math:`\beta`, weight of SL.
        sd_weight: :math:`\gamma`, weight of SD.
        epsilon: :math:`\lambda`, entropic regularisation of Sinkhorn.
        n_iter: :math:`N`, Sinkhorn rounds.
        tol: stop a sequence's Sinkhorn at this marginal error; ``None`` does all rounds.
        token_cost: cost that the matching minimises, ``"l1"`` or ``"log"``.
        sequence_cost: cost between positions, ``"l1"`` or ``"log"``.

    Raises:
        TypeError, ValueError: a setting is of the wrong kind or out of range.

    >>> import mlot
    >>> mlot.MultiLevelOTConfig(k=0)
    Traceback (most recent call last):
        ...
    ValueError: k: expected an integer >= 1 or None, got 0
    """

    k: int | None = 50
    matching: Matching = "optimal"
    pool: int | None = None
    temperature: float = 1.0
    sequence_temperature: float = 2.0
    standardize: bool = False
    had_weight: float = 1.0
    sl_weight: float = 0.1
    sd_weight: float = 0.1
    epsilon: float = 0.1
    n_iter: int = 20
    tol: float | None = None
    token_cost: CostKind = "l1"
    sequence_cost: CostKind = "l1"

    @staticmethod
    def paper() -> MultiLevelOTConfig:
        """The paper's settings, which are the defaults."""
        return MultiLevelOTConfig()

    @staticmethod
    def text() -> MultiLevelOTConfig:
        r"""The plan from the text: the 256 likeliest tokens of each position, and :math:`\mathrm{SL}` alone.

        With targets :math:`q` that do not depend on the student, SL is
        :math:`\mathrm{KL}(q \| s)` up to a constant. `mlot.nn.MultiLevelOTLoss` weighs it by 1.
        """
        return MultiLevelOTConfig(k=256, matching="text", had_weight=0.0, sl_weight=1.0, sd_weight=0.0)

    def __post_init__(self) -> None:
        _checks.count("k", self.k, allow_none=True)
        _checks.choice("matching", self.matching, ("optimal", "greedy", "rank", "sinkhorn", "text"))
        _checks.count("pool", self.pool, allow_none=True)
        if self.k is None and self.matching not in ("rank", "text"):
            raise ValueError(
                "k: expected a number, since only matching='rank' and 'text' take None, "
                f"got {self.matching!r}"
            )
        if self.pool is not None and self.k is not None and self.pool < self.k:
            raise ValueError(f"pool: expected at least k = {self.k} candidates, got {self.pool}")
        _checks.divisor("temperature", self.temperature)
        _checks.divisor("sequence_temperature", self.sequence_temperature)
        _checks.flag("standardize", self.standardize)
        if self.standardize and self.matching == "text":
            raise ValueError("standardize: expected False with matching='text', got True")
        for name in ("had_weight", "sl_weight", "sd_weight"):
            _checks.number(name, getattr(self, name), allow_zero=True)
        if self.had_weight == self.sl_weight == self.sd_weight == 0:
            raise ValueError("had_weight: expected a positive had_weight, sl_weight or sd_weight, got all 0")
        _checks.divisor("epsilon", self.epsilon)
        _checks.count("n_iter", self.n_iter)
        _checks.number("tol", self.tol, allow_none=True, allow_zero=True)
        _checks.choice("token_cost", self.token_cost, ("l1", "log"))
        _checks.choice("sequence_cost", self.sequence_cost, ("l1", "log"))


def default_alpha(config: MultiLevelOTConfig) -> float:
    """Weight of the loss against cross-entropy, where none is given."""
    return 1.0 if config.matching == "text" else 0.15


def checked_config(value: MultiLevelOTConfig | None, name: str = "config") -> MultiLevelOTConfig:
    """Require settings; ``None`` means the paper's."""
    if value is None:
        return MultiLevelOTConfig()
    if not isinstance(value, MultiLevelOTConfig):
        raise TypeError(f"{name}: expected a MultiLevelOTConfig or None, got {type(value).__name__}")
    return value
