"""The interface as these pages describe it: complete, or the build fails.

Public are the names in the ``__all__`` of every module whose dotted name has no underscore at the start of a
part, and of the classes among them the methods and properties that they define. Each needs an entry on these
pages, under any of its names, and a docstring. The check runs after the pages were read.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.inspect import stringify_signature

_log = logging.getLogger(__name__)
_ROOT = "mlot"
_COMMANDS = "__main__"  # importing it would run the command
_TORCHS_OWN = ("extra_repr",)  # what torch calls when a module is printed
_OPTIONAL = ("mlot.backends.torch.triton_kernels",)  # needs triton, which only the tests install


def public_modules() -> Iterator[ModuleType]:
    """Every public module that says what it offers by an ``__all__``."""
    root = importlib.import_module(_ROOT)
    yield root
    for found in pkgutil.walk_packages(root.__path__, f"{_ROOT}."):
        parts = found.name.split(".")
        if any(part.startswith("_") for part in parts) or parts[-1] == _COMMANDS:
            continue
        if found.name in _OPTIONAL:
            continue
        try:
            module = importlib.import_module(found.name)
        except Exception as error:
            _log.warning("interface: %s cannot be imported: %s", found.name, error, type="interface")
            continue
        if hasattr(module, "__all__"):
            yield module


def public_names() -> dict[str, Any]:
    """Dotted name and object of everything public, methods and properties of classes included."""
    names: dict[str, Any] = {}
    for module in public_modules():
        for name in module.__all__:
            value = getattr(module, name)
            names[f"{module.__name__}.{name}"] = value
            if inspect.isclass(value):
                names.update(
                    (f"{module.__name__}.{name}.{member}", getattr(value, member))
                    for member in _members(value)
                )
    return names


def _members(cls: type) -> Iterator[str]:
    kinds = (staticmethod, classmethod, property)
    for name, value in vars(cls).items():
        if name in _TORCHS_OWN:
            continue
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, kinds)):
            yield name


def undocumented(names: Mapping[str, Any], described: Mapping[str, str]) -> list[str]:
    """Names that no page describes.

    Args:
        names: dotted name and object of everything public.
        described: dotted name and page of everything that the pages describe.

    Returns:
        One sentence for each public object without an entry, or without a docstring.
    """
    known = {id(names[name]) for name in described if name in names and _has_identity(names[name])}
    problems = []
    for name, value in names.items():
        if name.rpartition(".")[2] in described:
            continue  # a type alias, described under the name that signatures have for it
        if name not in described and id(value) not in known:
            problems.append(f"{name}: public, and no page describes it")
        elif _has_identity(value) and not inspect.getdoc(value):
            problems.append(f"{name}: public, and has no docstring")
    return problems


def _has_identity(value: Any) -> bool:
    """Whether an object is the same under any name; a constant such as a string need not be."""
    return inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, property)


def _check(app: Sphinx, env: BuildEnvironment) -> None:
    described = {name: entry.docname for name, entry in env.domains.python_domain.objects.items()}
    for problem in undocumented(public_names(), described):
        _log.warning("interface: %s", problem, type="interface")


def _as_written(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str, str | None] | None:
    """Signature as the source writes it: its names for types, and no private field of a dataclass."""
    if signature is None or not callable(thing):
        return None
    try:
        written = inspect.signature(thing)
    except (TypeError, ValueError):
        return None
    parameters = [_shown(p) for p in written.parameters.values() if not p.name.startswith("_")]
    if inspect.isclass(thing) and is_dataclass(thing):
        parameters = _own(thing, parameters)
    if what == "method" and parameters and parameters[0].name == "self":
        del parameters[0]
    result = written.return_annotation
    if what in ("class", "exception") or result is inspect.Signature.empty:
        result = None
    plain = written.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    return stringify_signature(plain), result if result is None or isinstance(
        result, str
    ) else result.__name__


class _Made:
    """Stands for a default that is made anew for each object."""

    def __repr__(self) -> str:
        return "..."


def _shown(parameter: inspect.Parameter) -> inspect.Parameter:
    if repr(parameter.default) == "<factory>":
        return parameter.replace(default=_Made())
    return parameter


def _own(cls: type, parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """Parameters of a dataclass; those of a base outside of the library stand together as ``**inherited``."""
    foreign = {
        field.name
        for base in cls.__mro__[1:]
        if is_dataclass(base) and not base.__module__.startswith(_ROOT)
        for field in fields(base)
    }
    own = [p for p in parameters if p.name not in foreign or p.name in vars(cls).get("__annotations__", {})]
    if len(own) == len(parameters):
        return parameters
    kept = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    return [*kept, inspect.Parameter("inherited", inspect.Parameter.VAR_KEYWORD)]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("env-check-consistency", _check)
    app.connect("autodoc-process-signature", _as_written)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
