"""Faults that can be planted in a source file: another operator, number or function, a guard taken away.

Each is a change of one function or method. It is planted in a running process by giving the function another
code object, so whoever imported it before gets the fault, too, and nothing is written to disk.
"""

from __future__ import annotations

import ast
import gc
from abc import ABCMeta
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType

from torch.autograd.function import FunctionMeta

_OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
#: Functions and methods that another one of the same arguments can stand for.
_OTHERS = {
    "sum": "mean",
    "mean": "sum",
    "max": "min",
    "min": "max",
    "amax": "amin",
    "amin": "amax",
    "maximum": "minimum",
    "minimum": "maximum",
    "argmax": "argmin",
    "argmin": "argmax",
    "exp": "expm1",
    "exp_": "expm1_",
    "log": "log1p",
    "log_": "log1p_",
    "add_": "sub_",
    "sub_": "add_",
    "mul_": "div_",
    "div_": "mul_",
    "floor": "ceil",
    "ceil": "floor",
    "zeros_like": "ones_like",
    "ones_like": "zeros_like",
    "zeros": "ones",
    "ones": "zeros",
    "log_softmax": "softmax",
    "softmax": "log_softmax",
    "isneginf": "isposinf",
}
#: Methods whose result can stand for what they are called on.
_LEFT_OUT = {
    "masked_fill",
    "masked_fill_",
    "clamp",
    "clamp_",
    "abs",
    "abs_",
    "sqrt_",
    "square",
    "square_",
    "neg_",
    "cumsum",
    "sign",
}
#: Arguments that say in what form something comes, rather than what.
_FORM = {"keepdim", "keepdims", "dtype", "device", "strict", "in_place"}


@dataclass(frozen=True)
class Fault:
    """One fault: where, and what stands there in place of what."""

    file: str
    function: str
    change: str
    plant: Callable[[], None]

    @property
    def name(self) -> str:
        return f"{self.file}::{self.function}: {self.change}"


@dataclass(frozen=True)
class _Change:
    """A change of a tree that can be undone."""

    text: str
    apply: Callable[[], None]
    undo: Callable[[], None]


def faults_of(path: Path, root: Path) -> Iterator[Fault]:
    """Every fault of a file, in the order of its lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    file = str(path.relative_to(root))
    seen: Counter[str] = Counter()
    for name, function in _functions(tree, ""):
        for change in _changes(function):
            seen[name + change.text] += 1
            count = seen[name + change.text]
            text = change.text if count == 1 else f"{change.text} (number {count})"
            yield Fault(file, name, text, partial(_plant, tree, path, name, change))
        if "." in name:
            for decorator in function.decorator_list:
                if ast.unparse(decorator) not in ("staticmethod", "classmethod", "property", "override"):
                    owner, method = name.split(".")
                    text = f"without @{ast.unparse(decorator)}"
                    yield Fault(file, name, text, lambda o=owner, m=method: _undecorate(str(path), o, m))


def _plant(tree: ast.Module, path: Path, name: str, change: _Change) -> None:
    change.apply()
    code = compile(ast.fix_missing_locations(tree), str(path), "exec")
    change.undo()
    _replace(_code_of(code, name))


def _functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef) and not prefix:
            yield from _functions(node, f"{node.name}.")


def _changes(function: ast.FunctionDef) -> Iterator[_Change]:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    for statement in body:
        yield from _within(function, "body", function.body.index(statement), statement)


def _within(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> Iterator[_Change]:
    """Changes of a node and of what is in it; refusals and annotations are left as they are."""
    if isinstance(node, ast.Raise | ast.Assert):
        return
    for other in _replacements(node):
        yield _replacement(parent, field, index, node, other)
    yield from _own(node)
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "args") and not isinstance(node, ast.Call):
            continue
        for place, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.keyword) and child.arg in _FORM:
                continue
            if isinstance(child, ast.AST):
                yield from _within(node, name, place, child)


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What can stand for a node."""
    if isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield node.operand
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        elif isinstance(node.value, int):
            yield ast.Constant(node.value + 1)
        elif isinstance(node.value, float):
            yield ast.Constant(2 * node.value or 1.0)
    elif isinstance(node, ast.If | ast.While):
        yield type(node)(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.With) and all(item.optional_vars is None for item in node.items):
        yield ast.If(ast.Constant(True), node.body, [])
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    elif isinstance(node, ast.Call):
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if isinstance(called, ast.Attribute) and name in _LEFT_OUT:
            if not (isinstance(called.value, ast.Name) and called.value.id in ("np", "torch")):
                yield called.value
            elif len(node.args) == 1:
                yield node.args[0]
        if name in _OTHERS and (isinstance(called, ast.Attribute) or name in ("min", "max")):
            other = (
                ast.Name(_OTHERS[name], ast.Load())
                if isinstance(called, ast.Name)
                else ast.Attribute(called.value, _OTHERS[name], ast.Load())
            )
            yield ast.Call(other, node.args, node.keywords)
        if name == "where" and len(node.args) == 3:
            yield ast.Call(called, [node.args[0], node.args[2], node.args[1]], node.keywords)


def _replacement(parent: ast.AST, field: str, index: int | None, node: ast.AST, other: ast.AST) -> _Change:
    def put(value: ast.AST) -> None:
        if index is None:
            setattr(parent, field, value)
        else:
            getattr(parent, field)[index] = value

    return _Change(f"{_shown(node)} -> {_shown(other)}", lambda: put(other), lambda: put(node))


def _own(node: ast.AST) -> Iterator[_Change]:
    """Changes of a node's operators."""
    operators = getattr(node, "ops", None) or [getattr(node, "op", None)]
    for place, operator in enumerate(operators):
        other = _OPERATORS.get(type(operator))
        if other is None:
            continue

        def put(value: ast.AST, place: int = place) -> None:
            if isinstance(node, ast.Compare):
                node.ops[place] = value
            else:
                node.op = value

        before = _shown(node)
        put(other())
        after = _shown(node)
        put(operator)
        yield _Change(f"{before} -> {after}", partial(put, other()), partial(put, operator))


def _shown(node: ast.AST) -> str:
    """First line of a piece of source, for messages and the list of survivors."""
    return ast.unparse(ast.fix_missing_locations(node)).split("\n")[0]


def _code_of(code: CodeType, name: str) -> CodeType:
    for each in code.co_consts:
        if isinstance(each, CodeType):
            if each.co_qualname == name:
                return each
            if name.startswith(each.co_qualname + "."):
                return _code_of(each, name)
    raise LookupError(name)


def _replace(code: CodeType) -> None:
    """Give every function that was made from this place of the source another code."""
    functions = [
        each
        for each in gc.get_objects()
        if type(each) is FunctionType
        and each.__code__.co_filename == code.co_filename
        and each.__code__.co_qualname == code.co_qualname
    ]
    if not functions:
        raise LookupError(code.co_qualname)
    for function in functions:
        function.__code__ = code


def _undecorate(path: str, owner: str, method: str) -> None:
    """Take the decorators that keep what they wrap off a method."""
    classes = [
        each
        for each in gc.get_objects()
        if type(each) in (type, ABCMeta, FunctionMeta)
        and each.__name__ == owner
        and any(_made_in(value, path) for value in vars(each).values())
    ]
    for each in classes:
        bare = vars(each)[method]
        if isinstance(bare, staticmethod):
            setattr(each, method, staticmethod(bare.__func__.__wrapped__))
        else:
            setattr(each, method, bare.__wrapped__)


def _made_in(value: object, path: str) -> bool:
    function = value.__func__ if isinstance(value, staticmethod) else value
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename == path
