"""A model's output head: where it is, what it does to logits, and how to take hidden states in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from mlot.sources import LinearHead

Result = TypeVar("Result")

#: Largest output of a head that a model is tried on.
_LARGEST = 200.0

#: Names in configurations of a factor on the logits, and whether it mostly divides.
_SCALES = (
    ("logit_scale", False),
    ("logits_scaling", True),
    ("lm_head_multiplier", False),
    ("output_multiplier", False),
)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside what data parallelism, sharding and compilation put around it."""
    return cast(nn.Module, extract_model_from_parallel(model, keep_torch_compile=False))


def language_model(model: nn.Module) -> nn.Module:
    """The causal language model inside of everything, adapters such as PEFT's included."""
    inner = unwrapped(model)
    base = getattr(inner, "get_base_model", None)
    return cast(nn.Module, base()) if callable(base) else inner


def output_embedding(model: nn.Module) -> nn.Module | None:
    """The module that makes logits of hidden states; ``None`` where the model does not say."""
    getter = getattr(language_model(model), "get_output_embeddings", None)
    return cast("nn.Module | None", getter()) if callable(getter) else None


def text_config(model: nn.Module) -> Any:
    """Configuration of a model, or of its part that reads text; ``None`` where there is none."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


@dataclass(frozen=True)
class HeadShape:
    """What a model does to the product of hidden states and output embedding, as `mlot.LinearHead` has it.

    Attributes:
        softcap: bound on the logits' magnitude, or ``None``.
        scale: factor on the logits, or ``None``.
    """

    softcap: float | None = None
    scale: float | None = None

    def of(self, hidden: Tensor, embedding: nn.Module) -> LinearHead:
        """The head of some hidden states."""
        weight, bias = cast(Tensor, embedding.weight), cast("Tensor | None", getattr(embedding, "bias", None))
        return LinearHead(hidden.to(weight.device), weight, bias, self.softcap, self.scale)


def head_shape(model: nn.Module, name: str) -> HeadShape:
    """Find what a model does to its logits, and verify it on one input.

    Args:
        model: a causal language model, wrapped or not.
        name: ``"student"`` or ``"teacher"``, for messages.

    Raises:
        ValueError: the model's head is more than a linear map with a scale and a soft cap, or is not there to
            be read.
    """
    option = {"student": "use_linear_head", "teacher": "use_teacher_linear_head"}[name]
    found = language_model(model)
    embedding = output_embedding(model)
    expected = f"{option}: expected a {name} whose head is a linear map"
    if embedding is None:
        raise ValueError(f"{expected}, got {type(found).__name__} without an output embedding")
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise ValueError(f"{expected}, got {type(embedding).__name__} in {type(found).__name__}")
    shapes = _declared(found)
    if any(tensor.device.type == "meta" for tensor in (*found.parameters(), *found.buffers())):
        # Weights that are not here yet, as on the ranks that receive them later: the configuration must do.
        return shapes[0]
    tried = _probe(found, embedding)
    if not tried.output.isfinite().all():
        # Weights that were never set, for the same reason.
        return shapes[0]
    if _linear(tried, embedding):
        for shape in shapes:
            if _agrees(shape, tried):
                return shape
    raise ValueError(
        f"{expected} with the scale and the soft cap of its configuration, got {type(found).__name__}, whose "
        "logits differ from that"
    )


@torch.no_grad()
def hidden_states(model: nn.Module, inputs: dict[str, Any], shape: HeadShape) -> LinearHead:
    """Run a model without a gradient and without forming its logits."""
    embedding = output_embedding(model)
    assert embedding is not None
    with _passing(embedding) as seen:
        model(**inputs)
    return shape.of(seen[0], embedding)


def through_head(
    model: nn.Module, inputs: dict[str, Any], shape: HeadShape, function: Callable[[LinearHead], Result]
) -> Result:
    """Run a model up to its hidden states, and a function of the head on them, as the model's own forward.

    The function runs inside of what is wrapped around the model, so that data parallelism sees a loss that
    depends on the head's weights, and sharded ones are there to be read.

    Args:
        model: the model, wrapped or not.
        inputs: its inputs.
        shape: of its head.
        function: gives a dictionary of tensors or a tensor.

    Returns:
        What the function did.
    """
    inner, embedding = unwrapped(model), output_embedding(model)
    assert embedding is not None
    forward = inner.forward

    def to_the_end(**given: Any) -> Result:
        with _passing(embedding) as seen:
            forward(**given)
        return function(shape.of(seen[0], embedding))

    with _replaced(inner, to_the_end):
        return cast(Result, model(**inputs))


@contextmanager
def _passing(embedding: nn.Module) -> Iterator[list[Tensor]]:
    """Let a head hand on the hidden states that it gets, and keep them."""
    seen: list[Tensor] = []

    def keep(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.append(hidden)
        return hidden

    with _replaced(embedding, keep):
        yield seen


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's forward for a while; others may have replaced it before."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def _declared(model: nn.Module) -> list[HeadShape]:
    """What the configuration may mean, the most likely first."""
    text = text_config(model)
    softcap = getattr(text, "final_logit_softcapping", None)
    scales = [
        1 / factor if divides else float(factor)
        for name, divides in _SCALES
        if isinstance(factor := getattr(text, name, None), int | float) and factor
    ]
    scales += [1 / scale for scale in scales]
    caps = [None] if softcap is None else [float(softcap), None]
    return [HeadShape(cap, scale) for cap in caps for scale in (*scales, None)]


@dataclass(frozen=True, eq=False)
class _Probe:
    """One run of a model whose head's output was replaced.

    Attributes:
        hidden: what the head got.
        output: what it made of that.
        known: what was put in place of that.
        logits: what the model made of this.
    """

    hidden: Tensor
    output: Tensor
    known: Tensor
    logits: Tensor


@torch.no_grad()
def _probe(model: nn.Module, embedding: nn.Module) -> _Probe:
    """Run a model on a few tokens, numbers large enough to show a soft cap in place of its head's output."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def replace(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        known = torch.linspace(-_LARGEST, _LARGEST, output.numel(), device=output.device)
        seen.append((given[0], output, known.to(output.dtype).view_as(output)))
        return seen[-1][2]

    hook = embedding.register_forward_hook(replace)
    training = model.training
    model.eval()
    inputs = model.get_input_embeddings().weight  # type: ignore[operator]
    ids = torch.arange(4, device=inputs.device)[None] % inputs.shape[0]
    try:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    finally:
        hook.remove()
        model.train(training)
    return _Probe(*seen[0], logits)


def _linear(tried: _Probe, embedding: nn.Module) -> bool:
    """Whether a head is the linear map of its weight and bias."""
    head = HeadShape().of(tried.hidden, embedding)
    bias = None if head.bias is None else head.bias.double()
    expected = nn.functional.linear(head.hidden.double(), head.weight.double(), bias)
    if expected.shape != tried.output.shape:
        return False
    # A float32 product of many numbers is off by more than its last bit.
    return _equal(tried.output, expected, max(4 * torch.finfo(tried.output.dtype).eps, 1e-4))


def _agrees(shape: HeadShape, tried: _Probe) -> bool:
    """Whether scale and soft cap are what a model does to its head's output."""
    expected = tried.known.double()
    if shape.scale is not None:
        expected = expected * shape.scale
    if shape.softcap is not None:
        expected = shape.softcap * torch.tanh(expected / shape.softcap)
    same = tried.logits.shape == expected.shape
    return same and _equal(tried.logits, expected, 8 * torch.finfo(tried.logits.dtype).eps)


def _equal(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether numbers agree up to a share of the largest."""
    error = (found.double() - expected.to(found.device)).abs().max()
    return bool(error <= tolerance * expected.abs().max())
