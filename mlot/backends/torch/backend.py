"""The training backend: torch, batched, differentiable, on the host and on accelerators.

Computes in float32 for lower precisions and in float64 for float64, whatever autocast says. Nothing waits for
the device but what needs the host: the optimal assignment, exact transport, a tolerance, given pairs, targets
from the text, and ULD for the length of a list.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlot._composite import arrays_of
from mlot._typing import ArrayKind, CostKind, HardMatching
from mlot.backends.base import Backend, Transport
from mlot.backends.torch import ops as torch_ops
from mlot.backends.torch import read as torch_read
from mlot.backends.torch import rows as torch_rows
from mlot.backends.torch import text as torch_text
from mlot.backends.torch import topk as torch_topk
from mlot.backends.torch import uld_kernels
from mlot.backends.torch.costs import PairwiseL1, log_cost
from mlot.backends.torch.read import Request
from mlot.backends.torch.rows import SourceLayout, compute_dtype
from mlot.backends.torch.statistics import Settings
from mlot.backends.torch.transport import SAFE_EXPONENT, Sinkhorn, exact_plan, where_used
from mlot.backends.torch.uld import Uld
from mlot.sources import Predictions
from mlot.text import TextPositions, TextTargets
from mlot.topk import TopKLogprobs
from mlot.traces import Traces

F = TypeVar("F", bound=Callable[..., Any])


def _full_precision(method: F) -> F:
    """Switch autocast off inside an operation: it would round what is meant to be float32."""

    @wraps(method)
    def wrapped(self: TorchBackend, first: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type=arrays_of(first)[0].device.type, enabled=False):
            return method(self, first, *args, **kwargs)

    return wrapped  # type: ignore[return-value]


class TorchBackend(Backend):
    """Torch tensors in and out."""

    name = "torch"

    def kind(self, array: Tensor) -> ArrayKind:
        if array.is_floating_point():
            return "float" if array.dtype.itemsize > 1 else "other"  # torch computes with no float8
        if array.dtype == torch.bool:
            return "bool"
        return "other" if array.is_complex() else "integer"

    def device(self, array: Tensor) -> str:
        return str(array.device)

    def convert(self, array: Any, name: str) -> Tensor:
        if isinstance(array, Tensor):
            return array
        if not hasattr(array, "shape"):
            raise TypeError(f"{name}: expected an array, got {type(array).__name__}")
        return torch.as_tensor(np.asarray(array))

    def from_numpy(self, array: NDArray[Any], device: Any = None) -> Tensor:
        tensor = torch.from_numpy(array.copy())
        return tensor if device is None else tensor.to(torch.device(device))

    def to_numpy(self, array: Tensor) -> NDArray[Any]:
        array = array.detach().cpu()
        return array.float().numpy() if array.dtype == torch.bfloat16 else array.numpy()

    def stop_gradient(self, array: Tensor) -> Tensor:
        return array.detach()

    # -- masks and pairs ---------------------------------------------------------------------------------

    def full_mask(self, source: Predictions) -> Tensor:
        return torch.ones(source.shape[:2], dtype=torch.bool, device=arrays_of(source)[0].device)

    def mask_from_labels(self, labels: Tensor, ignore_index: int) -> Tensor:
        mask = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
        mask[:, :-1] = labels[:, 1:] != ignore_index
        return mask

    def index_pairs(self, student_mask: Tensor, teacher_mask: Tensor) -> Tensor:
        width = min(student_mask.shape[1], teacher_mask.shape[1])
        sides = [_valid_first(mask)[:, :width] for mask in (student_mask, teacher_mask)]
        shorter = torch.minimum(student_mask.sum(1), teacher_mask.sum(1))
        real = torch.arange(width, device=student_mask.device) < shorter[:, None]
        return torch.where(real[..., None], torch.stack(sides, -1), -1)

    def restrict_pairs(self, pairs: Tensor, student_mask: Tensor, teacher_mask: Tensor) -> Tensor:
        pairs = pairs.long()
        if 0 in (pairs.shape[1], student_mask.shape[1], teacher_mask.shape[1]):
            return torch.full_like(pairs, -1)
        real = (pairs >= 0).all(-1)
        student, teacher = pairs.clamp(min=0).unbind(-1)
        real &= student_mask.gather(1, student) & teacher_mask.gather(1, teacher)
        return torch.where(real[..., None], pairs, -1)

    def count_pairs(self, pairs: Tensor) -> Tensor:
        return (pairs[:, :, 0] >= 0).sum(1).float()

    def count_positions(self, mask: Tensor) -> Tensor:
        return mask.sum(1).float()

    # -- selection ---------------------------------------------------------------------------------------

    @_full_precision
    def select(
        self,
        source: Predictions,
        mask: Tensor,
        *,
        k: int,
        temperature: float,
        extra_temperatures: tuple[float, ...],
        standardize: bool,
    ) -> Traces:
        settings = Settings(temperature, extra_temperatures, standardize)
        reading = torch_ops.read(source, mask, settings, Request(k, None, None))
        return torch_read.traces_of(reading, mask, int(source.shape[2]), settings)

    @_full_precision
    def select_sparse(
        self,
        source: TopKLogprobs,
        mask: Tensor,
        *,
        k: int,
        temperature: float,
        extra_temperatures: tuple[float, ...],
    ) -> Traces:
        return torch_topk.sparse_traces(source, mask, k, temperature, extra_temperatures)

    @_full_precision
    def take(
        self,
        source: Predictions,
        columns: Tensor,
        mask: Tensor,
        *,
        temperature: float,
        extra_temperatures: tuple[float, ...],
        standardize: bool,
    ) -> Traces:
        settings = Settings(temperature, extra_temperatures, standardize)
        reading = torch_ops.read(source, mask, settings, Request(None, columns, None))
        return torch_read.traces_of(reading, mask, int(source.shape[2]), settings)

    def keep(self, traces: Traces, index: Tensor) -> Traces:
        along = index[:, None, :].expand(-1, traces.log_probs.shape[1], -1)
        return Traces(
            traces.columns.gather(1, index),
            traces.log_probs.gather(2, along),
            traces.log_normalizers,
            traces.column_mass.gather(1, index),
            traces.mask,
            traces.vocab_size,
            traces.temperature,
            traces.extra_temperatures,
            traces.standardize,
        )

    # -- costs, matching, transport ----------------------------------------------------------------------

    @_full_precision
    def token_cost(
        self, student: Traces, teacher: Traces, pairs: Tensor, *, kind: CostKind, temperature: float | None
    ) -> Tensor:
        s, t = _paired(student.at(temperature), teacher.at(temperature), pairs)
        if kind == "log":
            return log_cost(s.mT, t.exp().mT)
        return _pairwise_l1(t.exp().mT, s.exp().mT)

    @torch.no_grad()
    @_full_precision
    def assign(self, cost: Tensor, *, method: HardMatching) -> Tensor:
        batch, rows, _ = cost.shape
        if method == "rank":
            return torch.arange(rows, device=cost.device).expand(batch, -1).contiguous()
        if method == "optimal":
            return torch_ops.assign(_tie_broken(_finite(cost).double()))
        left = _finite(cost).clone()
        chosen = torch.empty((batch, rows), dtype=torch.long, device=cost.device)
        for row in range(rows):
            chosen[:, row] = left[:, row].argmin(1)
            left.scatter_(2, chosen[:, row, None, None].expand(-1, rows, 1), torch.inf)
        return chosen

    @_full_precision
    def sequence_cost(
        self,
        student: Traces,
        teacher: Traces,
        *,
        kind: CostKind,
        temperature: float | None,
        coupling: Tensor | None = None,
    ) -> Tensor:
        s, t = _promoted(student.at(temperature), teacher.at(temperature))
        t = t.exp()
        if coupling is not None:
            mixed = torch.bmm(s.exp(), coupling.to(s.dtype).mT)
            s = torch.where(student.mask[..., None], mixed, 1).log()
        cost = log_cost(s, t) if kind == "log" else _pairwise_l1(t, s.exp())
        return cost.masked_fill(~(teacher.mask[:, :, None] & student.mask[:, None, :]), 0)

    def marginals(self, student_mask: Tensor, teacher_mask: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        dtype = compute_dtype(like.dtype)
        both = (student_mask.any(1) & teacher_mask.any(1))[:, None]

        def uniform(mask: Tensor) -> Tensor:
            return (mask & both).to(dtype) / mask.sum(1, keepdim=True).clamp(min=1)

        return uniform(teacher_mask), uniform(student_mask)

    @_full_precision
    def sinkhorn(
        self,
        cost: Tensor,
        a: Tensor,
        b: Tensor,
        *,
        epsilon: float,
        n_iter: int,
        tol: float | None,
        cost_bound: float | None,
    ) -> Transport:
        dtype = compute_dtype(cost.dtype)
        look = torch_rows.can_look(cost.device) and not torch.compiler.is_compiling()
        if cost_bound is None and cost.numel() and look:
            cost_bound = float(cost.detach().abs().amax())
        safe = cost_bound is not None and cost_bound <= SAFE_EXPONENT * epsilon
        outputs = Sinkhorn.apply(  # type: ignore[no-untyped-call]
            cost.to(dtype), a.to(dtype), b.to(dtype), epsilon, n_iter, tol, safe
        )
        return Transport(*outputs)

    @_full_precision
    def emd(self, cost: Tensor, a: Tensor, b: Tensor) -> Transport:
        for name, weights in (("a", a), ("b", b)):
            if weights.requires_grad:
                raise TypeError(f"{name}: exact transport has no gradient for weights; pass {name}.detach()")
        cost = cost.to(compute_dtype(cost.dtype))
        plan = exact_plan(cost, a, b)
        error = (plan.sum(2) - a).abs().sum(1) + (plan.sum(1) - b).abs().sum(1)
        rounds = torch.zeros(len(cost), dtype=torch.long, device=cost.device)
        return Transport(plan, (plan * where_used(cost, plan)).sum((1, 2)), error, rounds)

    # -- divergences -------------------------------------------------------------------------------------

    @_full_precision
    def had(self, student: Traces, teacher: Traces, pairs: Tensor) -> Tensor:
        s, t = _paired(student.log_probs, teacher.log_probs, pairs)
        return (t.exp() - s.exp()).abs().sum((1, 2))

    @_full_precision
    def sl(self, student: Traces, teacher: Traces, pairs: Tensor) -> Tensor:
        s, t = _paired(student.log_probs, teacher.log_probs, pairs)
        t = t.exp()
        # No mass, be it none or less than the type can hold, asks nothing, not even of what is impossible.
        return -(t * s.masked_fill(t == 0, 0)).sum((1, 2))

    @_full_precision
    def uld(
        self,
        student: Predictions,
        teacher: Predictions,
        student_mask: Tensor,
        teacher_mask: Tensor,
        pairs: Tensor,
    ) -> Tensor:
        real = pairs[:, :, 0] >= 0
        batch = torch.arange(len(pairs), device=pairs.device)[:, None].expand_as(real)
        b, i, j = batch.flatten(), pairs[:, :, 0].flatten(), pairs[:, :, 1].flatten()
        valid = real.flatten()
        if torch_rows.can_look(valid.device):  # elsewhere nobody waits to learn which pairs are real
            b, i, j, valid = b[valid], i[valid], j[valid], valid[valid]
        elif 0 in (student.shape[1], teacher.shape[1]):
            b, i, j, valid = b[:0], i[:0], j[:0], valid[:0]
        layouts = SourceLayout(student), SourceLayout(teacher)
        # What was made in inference mode cannot be saved for the way back.
        tensors = tuple(
            x.clone() if x is not None and x.is_inference() else x
            for x in (*layouts[0].tensors, *layouts[1].tensors)
        )
        index = (b, i.clamp(min=0), j.clamp(min=0))
        distances: Tensor
        if uld_kernels.serve(student, teacher):
            distances = uld_kernels.UldByKernels.apply(valid, index, *tensors)  # type: ignore[no-untyped-call]
        else:
            distances = Uld.apply(  # type: ignore[no-untyped-call]
                layouts[0].without_tensors(), layouts[1].without_tensors(), valid, index, *tensors
            )
        return distances.new_zeros(len(pairs)).index_add(0, b, distances)

    # -- the plan from the text --------------------------------------------------------------------------

    @_full_precision
    def text_targets(
        self,
        teacher: Predictions | TopKLogprobs,
        text: TextPositions,
        student_mask: Tensor,
        teacher_mask: Tensor,
        *,
        k: int,
        temperature: float,
        min_served: float,
    ) -> TextTargets:
        return torch_text.text_targets(
            teacher, text, student_mask, teacher_mask, k=k, temperature=temperature, min_served=min_served
        )

    @_full_precision
    def text_terms(
        self,
        student: Predictions,
        targets: TextTargets,
        has_target: Tensor,
        columns: Tensor,
        mask: Tensor,
        *,
        temperature: float,
        extra_temperatures: tuple[float, ...],
    ) -> tuple[Tensor, Tensor, Tensor, Traces]:
        settings = Settings(temperature, extra_temperatures, False)
        request = Request(None, columns, targets.ids, without=int(targets.ids.shape[2]))
        reading = torch_ops.read(student, mask, settings, request)
        log_probs = torch_read.listed_log_probs(reading, targets.ids, has_target, temperature, 0)
        log_rest = torch_read.unlisted_log_probs(reading, settings)
        terms = torch_text.text_terms(log_probs, log_rest, targets, has_target)
        return *terms, torch_read.traces_of(reading, mask, int(student.shape[2]), settings)

    def inner(self, plan: Tensor, cost: Tensor) -> Tensor:
        return (plan * cost.masked_fill(plan == 0, 0)).flatten(1).sum(1)


def _valid_first(mask: Tensor) -> Tensor:
    """Positions of each sequence, the valid ones first and in order."""
    return (~mask).to(torch.int8).sort(dim=1, stable=True).indices


def _paired(student: Tensor, teacher: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities at both ends of each pair, ``(B, P, k)``; minus infinity where there is none."""
    real = pairs[:, :, :1] >= 0
    sides = []
    for side, values in enumerate((student, teacher)):
        index = pairs[:, :, side : side + 1].clamp(min=0).expand(-1, -1, values.shape[2])
        if values.shape[1] == 0:
            sides.append(values.new_full(index.shape, -torch.inf))
            continue
        sides.append(values.gather(1, index).masked_fill(~real, -torch.inf))
    return _promoted(*sides)


def _promoted(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the type to compute in."""
    dtype = torch.promote_types(compute_dtype(x.dtype), compute_dtype(y.dtype))
    return x.to(dtype), y.to(dtype)


def _pairwise_l1(x: Tensor, y: Tensor) -> Tensor:
    return PairwiseL1.apply(x, y)  # type: ignore[no-any-return, no-untyped-call]


def _tie_broken(cost: Tensor) -> Tensor:
    """Cost that prefers, among equally cheap matchings, the one nearest to the order of columns.

    Over few positions L1 costs tie on whole regions, and rounding must not choose.
    """
    if cost.numel() == 0:
        return cost
    row, column = (torch.arange(n, device=cost.device, dtype=cost.dtype).sqrt() for n in cost.shape[1:])
    return cost + 1e-12 * cost.abs().amax((1, 2), keepdim=True) * (row[:, None] - column).square()


def _finite(cost: Tensor) -> Tensor:
    """Cost with infinities replaced by a number that outweighs everything finite."""
    finite = torch.isfinite(cost)
    bound = torch.where(finite, cost.abs(), 0).sum((1, 2), keepdim=True) + 1
    return torch.where(finite, cost, bound)
