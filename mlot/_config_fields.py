"""Settings of the loss as fields of arguments that a shell can give, made from `mlot.MultiLevelOTConfig`."""

from __future__ import annotations

import re
from dataclasses import field, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mlot.config import MultiLevelOTConfig

#: Default of settings that may be ``None``.
PRESET = "preset"
#: How a shell says ``None``.
_NONE = ("none", "null")


@cache
def documented_settings(documented: type = MultiLevelOTConfig) -> dict[str, str]:
    """What the section ``Args`` of a docstring says of each name, each as one line."""
    section = re.search(r"\n    Args:\n(.*?)\n\n", (documented.__doc__ or "") + "\n\n", re.DOTALL)
    entries = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def setting_help(name: str) -> str:
    """What a setting of the loss means, in plain text and as a sentence."""
    text = re.sub(
        r":math:`(.*?)`", lambda match: match[1].replace("\\", ""), documented_settings().get(name, "")
    )
    text = text.replace("``", "").replace("`", "").replace("%", "%%")
    return text[:1].upper() + text[1:]


def setting_fields() -> list[tuple[str, Any, Any]]:
    """Name, type and field of every setting of the loss, for ``dataclasses.make_dataclass``.

    The default of each is the preset's that ``matching`` names, see `preset_of`: ``None`` stands for it, or
    ``"preset"`` where ``None`` is a value. Those take strings, so that ``HfArgumentParser`` lets ``none``
    pass; see `from_shell`.
    """
    made = []
    for name, (types, optional) in setting_types().items():
        default = MultiLevelOTConfig.__dataclass_fields__[name].default
        annotation: Any = types[0]
        if optional:
            annotation, default = Union[(*types, str, NoneType)], PRESET
        elif types[0] is not bool:  # flags have no third value, and are the same in every preset
            annotation, default = Union[types[0], None], None  # noqa: UP007
        made.append((name, annotation, field(default=default, metadata={"help": setting_help(name)})))
    return made


def preset_of(matching: str | None) -> MultiLevelOTConfig:
    """Settings that are the defaults with a matching: the text's plan has its own, others the paper's."""
    return MultiLevelOTConfig.text() if matching == "text" else MultiLevelOTConfig.paper()


def settings_of(given: Any) -> dict[str, Any]:
    """The settings of the loss among some arguments, those of the preset where none was given."""
    preset = preset_of(given.matching)
    values = {name: from_shell(name, getattr(given, name)) for name in setting_types()}
    return {
        name: getattr(preset, name)
        if value == PRESET or (value is None and not setting_types()[name][1])
        else value
        for name, value in values.items()
    }


def setting_types() -> dict[str, tuple[tuple[Any, ...], bool]]:
    """For each setting of the loss its types but ``None``, and whether it may be ``None``."""
    known = {}
    hints = get_type_hints(MultiLevelOTConfig)
    for each in fields(MultiLevelOTConfig):
        hint = hints[each.name]
        members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        types = tuple(member for member in members if member is not NoneType)
        if each.init and all(
            each_type in (int, float, str, bool) or get_origin(each_type) is Literal for each_type in types
        ):
            known[each.name] = types, NoneType in members
    return known


def from_shell(name: str, value: Any) -> Any:
    """A setting as it is, or made of the word that a shell gave for one that may be ``None``.

    Raises:
        ValueError: the word is neither ``none`` nor a number.
    """
    types, optional = setting_types()[name]
    if not optional or not isinstance(value, str) or str in types:
        return value
    if value == PRESET:
        return value
    if value.lower() in _NONE:
        return None
    for each_type in types:
        if each_type in (int, float):
            try:
                return each_type(value)
            except ValueError as error:
                wanted = "an integer" if each_type is int else "a number"
                raise ValueError(f"{name}: expected {wanted} or none, got {value!r}") from error
    return value
