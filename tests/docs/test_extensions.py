"""The extensions of the documentation: completeness, inventories, links to tests, the page of benchmarks."""

import json
import pkgutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import mlot

pytest.importorskip("sphinx", reason="`make docs` installs it")
EXTENSIONS = Path(__file__).resolve().parents[2] / "docs" / "_ext"


@pytest.fixture(autouse=True)
def found_by_import() -> Iterator[None]:
    sys.path.insert(0, str(EXTENSIONS))
    try:
        yield
    finally:
        sys.path.remove(str(EXTENSIONS))


def load(name: str) -> ModuleType:
    return __import__(name)


# -- completeness ----------------------------------------------------------------------------------------------------


def test_public_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a few modules; the build looks at all."""
    interface = load("interface")
    found = [
        pkgutil.ModuleInfo(None, f"mlot.{name}", False) for name in ("nn", "_checks", "distill.__main__")
    ]
    monkeypatch.setattr(interface.pkgutil, "walk_packages", lambda *_: iter(found))
    names = interface.public_names()
    assert names["mlot.sinkhorn"] is mlot.sinkhorn
    assert {"mlot.nn.ULDLoss", "mlot.nn.ULDLoss.terms", "mlot.Traces.k", "mlot.Traces.load"} <= set(names)
    assert not any(
        part.startswith("_") for name in names for part in name.split(".") if part != "__version__"
    )


def test_a_name_without_a_page_is_found() -> None:
    interface = load("interface")
    names = {"mlot.had": mlot.had, "mlot.sl": mlot.sl, "mlot.other.had": mlot.had}
    assert interface.undocumented(names, {"mlot.had": "page", "mlot.sl": "page"}) == []
    assert interface.undocumented(names, {"mlot.had": "page"}) == [
        "mlot.sl: public, and no page describes it"
    ]


def test_a_name_without_a_docstring_is_found() -> None:
    def silent() -> None: ...

    problems = load("interface").undocumented({"mlot.silent": silent}, {"mlot.silent": "page"})
    assert problems == ["mlot.silent: public, and has no docstring"]


def test_equal_constants_are_not_one_name() -> None:
    problems = load("interface").undocumented({"mlot.a": 1, "mlot.b": 1}, {"mlot.a": "page"})
    assert problems == ["mlot.b: public, and no page describes it"]


# -- inventories -----------------------------------------------------------------------------------------------------


def test_inventory(tmp_path: Path) -> None:
    from sphinx.util.inventory import InventoryFile

    inventories = load("local_inventories")
    path = tmp_path / "numpy.txt"
    path.write_text(
        "# comment\nhttps://numpy.org/doc/\nnumpy.ndarray class a.html#numpy.ndarray np.ndarray ndarray\n"
    )
    encoded = inventories.encode(inventories.read(path))
    assert zlib.decompress(encoded.split(b"zlib.\n", 1)[1]).count(b"\n") == 3
    entries = InventoryFile.loads(encoded, uri="https://numpy.org/doc").data["py:class"]
    assert {name: item.uri for name, item in entries.items()} == dict.fromkeys(
        ("numpy.ndarray", "np.ndarray", "ndarray"), "https://numpy.org/doc/a.html#numpy.ndarray"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "address"),
        ("numpy.ndarray class a.html\n", "address"),
        ("https://numpy.org/\nnumpy.ndarray class\n", "a name, a type and an address"),
        ("https://numpy.org/\na class a.html b\nb class b.html\n", "more than once: b"),
    ],
)
def test_bad_inventory(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "numpy.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load("local_inventories").read(path)


def test_inventories_name_what_exists() -> None:
    """Objects of installed packages can be imported under the names that are listed."""
    import importlib

    for path in sorted((EXTENSIONS.parent / "_inventories").glob("*.txt")):
        for listed in load("local_inventories").read(path).objects:
            parts = listed.name.split(".")
            for cut in range(len(parts), -1, -1):
                module = ".".join(parts[:cut]) or "builtins"
                try:
                    value = importlib.import_module(module)
                except ImportError:
                    continue
                for part in parts[cut:]:
                    value = getattr(value, part)
                break


# -- tests that are shown --------------------------------------------------------------------------------------------


def test_lines_of_functions(tmp_path: Path) -> None:
    path = tmp_path / "test_it.py"
    path.write_text(
        "import pytest\n\n@pytest.mark.skip\n@other\ndef test_a():\n    pass\n\ndef test_b(): pass\n"
    )
    assert load("shown_tests").functions(path) == {"test_a": 3, "test_b": 8}


# -- benchmarks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def benchmark_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    module = load("benchmark_results")
    monkeypatch.setattr(module, "_DOCS", tmp_path / "docs")
    monkeypatch.setattr(module, "_MADE", tmp_path / "docs" / "_drawn" / "benchmarks")
    return module


def test_reports_without_figures(benchmark_results: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "study"
    folder.mkdir(parents=True)
    (folder / "study.md").write_text(
        "# What helps\n\n## A table\n\n| a |\n|---|\n\n![A line\nthat rises](line.png)\n"
    )
    (folder / "line.png").write_bytes(b"png")
    page = benchmark_results.page(tmp_path / "results")
    assert page.startswith("## What helps\n\nFrom `benchmarks/results/study/study.md`.")
    assert "\n### A table\n" in page
    assert ":alt: A line that rises" in page
    assert (tmp_path / "docs/_drawn/benchmarks/study-line.png").read_bytes() == b"png"


def test_reports_with_figures(benchmark_results: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "cpu"
    folder.mkdir(parents=True)
    (folder / "loss.md").write_text(
        "# loss\n\nSettings: b 1\n\nMeasured on: x\n\n## One\n\n| a |\n|---|\n\n- a note\n"
    )
    rows = [
        {"name": "ours", "seconds": [1.0], "point": {}},
        {"name": "theirs", "seconds": [2.0], "point": {}},
    ]
    (folder / "loss.json").write_text(json.dumps({"rows": rows}))
    page = benchmark_results.page(tmp_path / "results")
    assert "## The loss, forward and backward (cpu)" in page
    assert "{drawn} benchmark_figures.py bars ../results/cpu/loss.json" in page
    assert "ours; theirs" in page
    assert (
        page.index("**Settings:**")
        < page.index("- a note")
        < page.index("{dropdown}")
        < page.index("**One**")
    )


def test_no_results(benchmark_results: ModuleType, tmp_path: Path) -> None:
    assert "make bench" in benchmark_results.page(tmp_path)
