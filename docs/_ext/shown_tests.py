"""Role ``test``: a test by its file and name, linked to its source on these pages.

    {test}`core/test_invariants.py::test_bounds`

It is an error if there is no such test. What the role shows is the test's name in words. Where a page names a
test in full, as code (``tests/core/test_invariants.py::test_bounds``), that is linked, too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxRole

TESTS = Path(__file__).resolve().parents[2] / "tests"
_PAGES = "_tests"


class Test(SphinxRole):
    """Refer to a test."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the reference."""
        file, _, name = self.text.partition("::")
        path = TESTS / file
        if not path.is_file() or name not in functions(path):
            message = self.inliner.reporter.error(f"test: there is no {self.text}", line=self.lineno)
            return [self.inliner.problematic(self.rawtext, self.rawtext, message)], [message]
        words = name.removeprefix("test_").replace("_", " ")
        return [_reference(self.env, path, name, nodes.Text(words))], []


def _reference(env: BuildEnvironment, path: Path, name: str, shown: nodes.Node) -> nodes.reference:
    pages: dict[str, set[str]] = env.__dict__.setdefault("mlot_shown_tests", {})
    file = path.relative_to(TESTS)
    pages.setdefault(env.docname, set()).add(file.as_posix())
    target = f"{_PAGES}/{file.with_suffix('').as_posix()}"
    address = f"{env.app.builder.get_relative_uri(env.docname, target)}#{name}"
    reference = nodes.reference("", "", refuri=address, internal=True)
    reference += shown
    return reference


def _link_code(app: Sphinx, doctree: nodes.document) -> None:
    for literal in list(doctree.findall(nodes.literal)):
        file, _, name = literal.astext().partition("::")
        path = TESTS / file.removeprefix("tests/")
        if file.startswith("tests/") and name.isidentifier() and path.is_file() and name in functions(path):
            literal.replace_self(_reference(app.env, path, name, literal.deepcopy()))


def _forget(app: Sphinx, env: BuildEnvironment, page: str) -> None:
    env.__dict__.get("mlot_shown_tests", {}).pop(page, None)


def functions(path: Path) -> dict[str, int]:
    """Name and first line of every function of a file."""
    tree = ast.parse(path.read_text())
    return {
        node.name: min([node.lineno, *(d.lineno for d in node.decorator_list)])
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }


def _pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """One page with the source of each file that is referred to."""
    pages: dict[str, set[str]] = app.env.__dict__.get("mlot_shown_tests", {})
    for file in sorted(set().union(*pages.values())):
        path = TESTS / file
        lines = app.builder.highlighter.highlight_block(path.read_text(), "python").splitlines()
        head, marker, first = lines[0].partition("<pre>")
        lines[0] = first
        for name, line in functions(path).items():
            lines[line - 1] = f'<span id="{name}"></span>{lines[line - 1]}'
        body = "\n".join([f"<h1>tests/{file}</h1>", f"{head}{marker}{lines[0]}", *lines[1:]])
        yield f"{_PAGES}/{file.removesuffix('.py')}", {"title": f"tests/{file}", "body": body}, "page.html"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.add_role("test", Test())
    app.connect("html-collect-pages", _pages)
    app.connect("doctree-read", _link_code)
    app.connect("env-purge-doc", _forget)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
