"""Backends: the numerical work behind the public interface, one package of array operations each."""

from mlot.backends.base import Backend, BackendSpec, available_backends, get_backend, register_backend

__all__ = ["Backend", "BackendSpec", "available_backends", "get_backend", "register_backend"]
