"""A source whose vocabulary is sharded over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from mlot import _arguments, _checks
from mlot._composite import Composite, arrays_of
from mlot.backends.torch.read import Reading, Request, traces_of
from mlot.backends.torch.rows import SourceLayout
from mlot.backends.torch.statistics import Settings
from mlot.distributed import _read
from mlot.distributed._fsdp import is_dtensor
from mlot.distributed._partition import VocabularyPartition, agree_on_sizes, rank_in
from mlot.sources import LinearHead
from mlot.traces import Traces

if TYPE_CHECKING:
    from mlot._arrays import ArrayOperations


@dataclass(frozen=True, eq=False)
class VocabShard(Composite):
    r"""Predictions over a vocabulary of which every process of a group holds some columns.

    A source for `mlot.select`, `mlot.multi_level_ot` and `mlot.nn.MultiLevelOTLoss`, for the student, the
    teacher, or both. The columns of the processes follow each other in the order of their ranks; shards may
    differ in width. With :math:`z^{(r)}` the logits of rank r, :math:`m = \max_r \max_v z^{(r)}_v`,

    .. math:: \log\sum_v e^{z_v/\tau} = m/\tau + \log \sum_r \sum_v e^{(z^{(r)}_v - m)/\tau},

    one all-reduce for the maximum and one for the sums at all temperatures. Column masses need no exchange;
    the k heaviest columns of each shard are gathered and merged, ties by lower index of the whole vocabulary,
    and the kept logits are summed over the processes. What is selected is the same on every process, to the
    last bit, and so is everything after it.

    **Calls.** Every process of the group makes the same calls in the same order, with the same masks, labels,
    pairs and settings, and with gradients wanted of the same things, as for any collective operation.

    **Gradients.** Every process computes the whole loss and calls ``backward`` on it; the loss is neither
    divided by the size of the group nor reduced over it. A process then has the gradient of its own columns:
    of its logits, or of its weight and bias. The gradient of a head's hidden states, which all processes hold
    alike, is summed over the group, so that all have the whole one. Hidden states must therefore be given
    before any operation that sums gradients over the same group itself.

    **Communication**, in numbers, per sequence of T positions: a pass sends T maxima, T sums for each
    temperature, k masses and k indices of a selection, T logits for each column kept or token listed, and
    3 T more where logits are standardised. Its way back sends T D for hidden states of width D, in the type
    computed in, and T where logits are standardised. A criterion with cross-entropy is one pass, or two where
    logits are standardised. Nothing of the vocabulary's size is sent.

    Args:
        local: logits ``(B, T, V_r)`` of this rank's columns, or a `mlot.LinearHead` whose weight ``(V_r, D)``
            has its rows.
        group: process group that shares the vocabulary; ``None`` means all processes.
        sizes: the widths of all shards in the order of ranks, if known. ``None`` asks the other processes,
            which also checks that all hold the same batch, and waits for the device.

    Raises:
        TypeError: ``local`` is of the wrong kind.
        ValueError: there is no process group, this process is not in it, the shapes of the processes do not
            fit together, or ``sizes`` does not fit the group or ``local``.
    """

    local: Tensor | LinearHead
    group: Any = None
    sizes: Sequence[int] | None = None
    _partition: VocabularyPartition = field(init=False, repr=False)

    _whole: ClassVar[bool] = False
    _reads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for leaf in arrays_of(self.local):
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    "local: expected a torch tensor (B, T, V) or a LinearHead of such, "
                    f"got {type(leaf).__name__}"
                )
            if is_dtensor(leaf):
                raise TypeError("local: expected a plain tensor, got a DTensor; see VocabShard.from_dtensor")
            if not leaf.is_floating_point():
                raise TypeError(f"local: expected floating-point numbers, got {leaf.dtype}")
        if isinstance(self.local, Composite) and not isinstance(self.local, LinearHead):
            raise TypeError(f"local: expected logits or a LinearHead, got {type(self.local).__name__}")
        if len(self.local.shape) != 3:
            raise ValueError(f"local: expected logits (B, T, V), got shape {tuple(self.local.shape)}")
        if self.sizes is None:
            first = arrays_of(self.local)[0]
            batch, length, width = self.local.shape
            partition = agree_on_sizes((batch, length, width), first.dtype, first.device, self.group)
        else:
            partition = self._partition_by_sizes()
        object.__setattr__(self, "sizes", partition.sizes)
        object.__setattr__(self, "_partition", partition)

    def _partition_by_sizes(self) -> VocabularyPartition:
        rank, world = rank_in(self.group)
        sizes = self.sizes
        assert sizes is not None
        if isinstance(sizes, str) or not isinstance(sizes, Sequence):
            raise TypeError(f"sizes: expected integers, one for each rank, got {type(sizes).__name__}")
        for size in sizes:
            _checks.count("sizes", size, least=0)
        if len(sizes) != world:
            raise ValueError(f"sizes: expected {world} of them, the size of the group, got {len(sizes)}")
        if sizes[rank] != self.local.shape[2]:
            raise ValueError(
                f"sizes: expected {self.local.shape[2]}, the width of local, for rank {rank}, "
                f"got {sizes[rank]}"
            )
        return VocabularyPartition(self.group, rank, tuple(sizes))

    @staticmethod
    def from_dtensor(logits: Tensor) -> VocabShard:
        """Make the source of logits that are a DTensor, sharded along the vocabulary.

        Dimensions of the device mesh over which the logits are not sharded by vocabulary may shard the batch
        or replicate it; the vocabulary is that of the other dimension's group.

        Args:
            logits: ``(B, T, V)``, a DTensor.

        Raises:
            TypeError: ``logits`` is no DTensor.
            ValueError: it is not three-dimensional, or not sharded along the vocabulary by exactly one
                dimension of the mesh, or only partially reduced.
        """
        if not is_dtensor(logits):
            raise TypeError(f"logits: expected a DTensor, got {type(logits).__name__}")
        if logits.dim() != 3:
            raise ValueError(f"logits: expected (B, T, V), got shape {tuple(logits.shape)}")
        placements = logits.placements  # type: ignore[attr-defined]
        along = [n for n, placement in enumerate(placements) if placement.is_shard(2)]
        if len(along) != 1 or any(p.is_partial() or p.is_shard(1) for p in placements):
            raise ValueError(
                f"logits: expected Shard(2) once, else Shard(0) or Replicate, got placements {placements}"
            )
        group = logits.device_mesh.get_group(along[0])  # type: ignore[attr-defined]
        return VocabShard(logits.to_local(), group)  # type: ignore[attr-defined]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(B, T, V)``, with the whole vocabulary."""
        batch, length, _ = self.local.shape
        return int(batch), int(length), self._partition.vocabulary

    def map(self, function: Callable[[Any], Any]) -> VocabShard:
        """Return the same with ``function`` applied to every array of this process."""
        local = self.local.map(function) if isinstance(self.local, LinearHead) else function(self.local)
        return VocabShard(local, self.group, self.sizes)

    def take(
        self,
        columns: Tensor,
        mask: Tensor | None = None,
        *,
        temperature: float = 1.0,
        extra_temperatures: tuple[float, ...] = (2.0,),
        standardize: bool = False,
    ) -> Traces:
        """Traces of given columns, differentiable as those of `mlot.select`.

        Args:
            columns: columns of the whole vocabulary, ``(B, k)`` integers, the same on every process.
            mask: positions whose prediction counts, ``(B, T)`` booleans; ``None`` means all.
            temperature: temperature of the probabilities.
            extra_temperatures: further temperatures that the traces shall serve.
            standardize: divide the logits of each position by their standard deviation + 1e-4.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind, shape or range.
        """
        _checks.flag("standardize", standardize)
        extra = _checks.temperatures(temperature, extra_temperatures)
        settings = Settings(temperature, _without(temperature, extra), standardize)
        xp, (source, given_mask, columns) = _arguments.resolve(
            {"source": self, "mask": mask, "columns": columns}, None
        )
        mask = _arguments.source_and_mask(xp, "source", source, "mask", given_mask)
        _arguments.columns("columns", columns, xp, source)
        reading = self._read(mask, settings, Request(None, columns, None))
        return traces_of(reading, mask, self.shape[2], settings)

    # -- what the library asks of a source ---------------------------------------------------------------

    def _arrays(self) -> list[Any]:
        return arrays_of(self.local)

    def _check(self, xp: ArrayOperations, name: str) -> None:
        if xp.name != "torch":
            raise TypeError(f"{name}: a VocabShard needs the torch backend, got backend {xp.name!r}")

    def _read(self, mask: Tensor, settings: Settings, request: Request) -> Reading:
        reading: Reading = _read.read(SourceLayout(self.local), self._partition, mask, settings, request)
        return reading

    def _logits_at(self, b: Tensor, t: Tensor) -> Tensor:
        layout = SourceLayout(self.local)
        rows = layout.rows(tuple(None if x is None else x.detach() for x in layout.tensors))
        return self._partition.gather(rows.read((b, t)).to(rows.dtype), self._partition.sizes)


def _without(temperature: float, extra: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(t for t in dict.fromkeys(extra) if t != temperature)
