"""A model's output head in training: where it is, and how to take hidden states in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from mlot._hf.heads import HeadShape, declared_shapes, evaluating, try_head
from mlot.sources import LinearHead

Result = TypeVar("Result")

#: What PEFT's modules have that add something to the product with the weight of the module inside of them.
_ADAPTERS = ("base_layer", "token_adapter")


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


def head_shape(model: nn.Module, name: str) -> HeadShape:
    """Find what a model does to its logits, and verify it on one input.

    Args:
        model: a causal language model, wrapped or not.
        name: ``"student"`` or ``"teacher"``, for messages.

    Raises:
        ValueError: the model's head is more than a linear map with a scale and a soft cap, has an adapter on
            it, or is not there to be read.
    """
    option = {"student": "use_linear_head", "teacher": "use_teacher_linear_head"}[name]
    inner = language_model(model)
    embedding = output_embedding(model)
    expected = f"{option}: expected a {name} whose head is a linear map"
    if embedding is None:
        raise ValueError(f"{expected}, got {type(inner).__name__} without an output embedding")
    if any(hasattr(embedding, name) for name in _ADAPTERS):
        # A trial of values does not show a fresh adapter, which adds 0 until it is trained.
        raise ValueError(
            f"{expected}, got one with an adapter on it (expected {option}=False, an adapter on other "
            "modules alone, or one that merge_and_unload() has merged)"
        )
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise ValueError(f"{expected}, got {type(embedding).__name__} in {type(inner).__name__}")
    if any(tensor.device.type == "meta" for tensor in (*inner.parameters(), *inner.buffers())):
        # Weights that are not here yet, as on the ranks that receive them later: the configuration must do.
        return declared_shapes(inner)[0]
    inputs = inner.get_input_embeddings().weight  # type: ignore[operator]
    ids = torch.arange(4, device=inputs.device)[None] % inputs.shape[0]
    with evaluating(inner):
        trial = try_head(inner, embedding, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    if trial is not None:
        if not trial.output.isfinite().all():
            # Weights that were never set, for the same reason.
            return declared_shapes(inner)[0]
        shape = trial.shape(inner, embedding)
        if shape is not None:
            return shape
    raise ValueError(
        f"{expected} with the scale and the soft cap of its configuration, got {type(inner).__name__}, whose "
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
