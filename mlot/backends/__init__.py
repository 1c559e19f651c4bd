"""Backends: the numerical work behind the public interface, one package of array operations each."""

from typing import cast

from mlot import _registry
from mlot._registry import BackendSpec, available_backends, register_backend
from mlot.backends.base import Backend

__all__ = ["Backend", "BackendSpec", "available_backends", "get_backend", "register_backend"]


def get_backend(name: str) -> Backend:
    """Load a backend by name.

    Args:
        name: one of `available_backends`.

    Raises:
        TypeError: ``name`` is no string, or what the record points at is no backend.
        ValueError: no backend of that name is registered.
        ImportError: the backend needs a package that is not installed.
    """
    return cast(Backend, _registry.get_backend(name))
