"""Code on the pages of the documentation runs: blocks of a page in order, in one namespace, in an empty folder.

A block after a line ``% needs: something`` needs what is not here (a server, a GPU). It is compiled, and what it names
of mlot exists. README's blocks run in `test_readme`, docstrings by ``--doctest-modules``, the gallery when it is built.
"""

import ast
import doctest
import importlib
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mlot import _registry as registry

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(
    r"(?:^% needs: (?P<needs>[^\n]+)\n\n?)?^```(?:\{code-block\} )?(?P<language>python|pycon)\n(?P<code>.*?)^```$",
    flags=re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    language: str
    code: str
    line: int
    needs: str | None


def blocks(text: str) -> list[Block]:
    return [
        Block(found["language"], found["code"], text.count("\n", 0, found.start("code")) + 1, found["needs"])
        for found in BLOCK.finditer(text)
    ]


def run(page: str, found: list[Block]) -> None:
    """Run the blocks of a page; a failure names its line there."""
    namespace: dict[str, object] = {"__name__": f"page_{Path(page).stem}"}
    module = ModuleType(str(namespace["__name__"]))
    sys.modules[module.__name__] = module  # classes of a page can be pickled, and found by dataclasses
    module.__dict__.update(namespace)
    try:
        for block in found:
            padding = "\n" * (block.line - 1)
            if block.language == "pycon":
                test = doctest.DocTestParser().get_doctest(
                    block.code, module.__dict__, page, page, block.line - 1
                )
                runner = doctest.DebugRunner(verbose=False)
                runner.run(test, clear_globs=False)
                module.__dict__.update(test.globs)
            elif block.needs is None:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    exec(compile(padding + block.code, page, "exec"), module.__dict__)
            else:
                tree = ast.parse(padding + block.code, page)
                for name in sorted(named(tree)):
                    assert exists(name), f"{page}: names {name}, which does not exist"
    finally:
        del sys.modules[module.__name__]


def named(tree: ast.AST) -> set[str]:
    """Dotted names of this library that code names, whether imported or reached by attributes."""
    aliases: dict[str, str] = {}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "mlot":
                    found.add(name.name)
                    aliases[name.asname or "mlot"] = name.name if name.asname else "mlot"
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mlot":
            for name in node.names:
                found.add(f"{node.module}.{name.name}")
                aliases[name.asname or name.name] = f"{node.module}.{name.name}"
    aliases.setdefault("mlot", "mlot")
    for node in ast.walk(tree):
        path: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            path.append(inner.attr)
            inner = inner.value
        if path and isinstance(inner, ast.Name) and inner.id in aliases:
            found.add(".".join([aliases[inner.id], *reversed(path)]))
    return found


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or what attributes of one lead to."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


def pages() -> Iterator[Path]:
    for path in sorted(DOCS.rglob("*.md")):
        inner = path.relative_to(DOCS).parts
        if inner[0] not in ("_build", "_drawn", "examples", "README.md") and blocks(path.read_text()):
            yield path


@pytest.mark.parametrize("page", [path.relative_to(DOCS).as_posix() for path in pages()])
def test_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for known in ("_specs", "_loaded"):  # a page registers backends of its own
        monkeypatch.setattr(registry, known, dict(getattr(registry, known)))
    precision = torch.get_default_dtype()
    try:
        run(page, blocks((DOCS / page).read_text()))
    finally:
        torch.set_default_dtype(precision)


def test_every_block_of_code_is_seen() -> None:
    for path in pages():
        text = path.read_text()
        opened = len(re.findall(r"^ *(?:```+|~~~+|:::+) *(?:\{code-block\} *)?py", text, flags=re.MULTILINE))
        assert len(blocks(text)) == opened, path


def test_all_guides_show_code() -> None:
    shown = {path.relative_to(DOCS).as_posix() for path in pages()}
    guides = {path.relative_to(DOCS).as_posix() for path in (DOCS / "guides").glob("*.md")}
    assert guides - shown == {"guides/index.md"}


def test_what_runs_and_what_does_not() -> None:
    text = "```python\nx = 1\n```\n\n% needs: a server\n\n```python\nmlot.sinkhorn(y)\n```\n\n```pycon\n>>> x\n1\n```\n"
    first, second, third = blocks(text)
    assert (first.needs, second.needs, third.language) == (None, "a server", "pycon")
    run("page.md", [first, second, third])
    with pytest.raises(AssertionError, match="mlot.no_such_name"):
        run("page.md", [Block("python", "mlot.no_such_name()", 1, "a server")])
    with pytest.raises(SyntaxError):
        run("page.md", [Block("python", "mlot.(", 1, "a server")])
    with pytest.raises(doctest.DocTestFailure):
        run("page.md", [Block("python", "x = 1", 1, None), Block("pycon", ">>> x\n2\n", 3, None)])
    with pytest.raises(ZeroDivisionError):
        run("page.md", [Block("python", "1 / 0", 1, None)])


def test_names_of_the_library_are_found() -> None:
    code = (
        "import mlot.nn as nn\nfrom mlot import align as a\nnn.ULDLoss(a.pairs, mlot.Traces.load)\nother.name"
    )
    assert named(ast.parse(code)) >= {
        "mlot.nn",
        "mlot.align",
        "mlot.nn.ULDLoss",
        "mlot.align.pairs",
        "mlot.Traces.load",
    }
    assert exists("mlot.Traces.load")
    assert exists("mlot.nn.ULDLoss.terms")
    assert not exists("mlot.Traces.lode")
    assert not exists("mlot.nothing.at_all")
