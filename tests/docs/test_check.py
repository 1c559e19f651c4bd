"""The check of the built pages finds what it looks for; Chromium, where it is installed, is asked as well."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
GOOD = '<img src="a.png" alt="A line that rises"><a href="#here" id="here">here</a><a href="https://example.org">out</a>'


@pytest.fixture(scope="module")
def check() -> Iterator[ModuleType]:
    sys.path[:0] = [str(DOCS), str(DOCS / "_ext")]
    try:
        yield __import__("check")
    finally:
        del sys.path[:2]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "other.html").write_text('<p id="place">')
    (tmp_path / "style.css").write_text('p { background: url("a.png") }')
    return tmp_path


def problems(check: ModuleType, site: Path, body: str) -> list[str]:
    (site / "index.html").write_text(f"<!doctype html><html><body>{body}</body></html>")
    return list(check.check_files(site.resolve()))


def test_a_good_page(check: ModuleType, site: Path) -> None:
    more = '<a href="other.html#place"></a><link rel="stylesheet" href="style.css"><script src="data:,"></script>'
    assert problems(check, site, GOOD + more) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('<script src="https://example.org/a.js"></script>', "from elsewhere"),
        ('<script src="//example.org/a.js"></script>', "from elsewhere"),
        ('<link rel="stylesheet" href="https://example.org/a.css">', "from elsewhere"),
        ('<link rel="preload icon" href="https://example.org/a.woff">', "from elsewhere"),
        ('<img alt="A line that rises" src="http://example.org/a.png">', "from elsewhere"),
        ('<img alt="A line that rises" srcset="a.png 1x, http://example.org/a.png 2x">', "from elsewhere"),
        ("<style>@import 'https://example.org/a.css';</style>", "from elsewhere"),
        ('<p style="background: url(https://example.org/a.png)">', "from elsewhere"),
        ('<script src="missing.js"></script>', "not there"),
        ('<img src="a.png">', "no text"),
        ('<img src="a.png" alt="">', "no text"),
        ('<img src="a.png" alt="a.png">', "no text"),
        ('<a href="missing.html"></a>', "not there"),
        ('<a href="other.html#nowhere"></a>', "no such place"),
        ('<a href="../../outside.html"></a>', "not there"),
    ],
)
def test_what_is_wrong_is_found(check: ModuleType, site: Path, body: str, message: str) -> None:
    (found,) = problems(check, site, body)
    assert found.startswith("index.html: ")
    assert message in found


def test_styles_are_read(check: ModuleType, site: Path) -> None:
    (site / "style.css").write_text("@font-face { src: url('https://example.org/a.woff') }")
    (found,) = problems(check, site, GOOD)
    assert found == "style.css: loads https://example.org/a.woff from elsewhere"


def test_no_pages(check: ModuleType, tmp_path: Path) -> None:
    (found,) = check.check_files(tmp_path)
    assert "no pages" in found


def test_without_chromium(
    check: ModuleType, site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (site / "index.html").write_text(GOOD)
    monkeypatch.setattr(check.chromium, "find", lambda: None)
    monkeypatch.delenv("CI", raising=False)
    assert check.main([str(site)]) == 0
    assert "not installed" in capsys.readouterr().err
    monkeypatch.setenv("CI", "true")
    assert check.main([str(site)]) == 1
    assert "not installed" in capsys.readouterr().out


MATHJAX = """<script>window.MathJax = {startup: {promise: Promise.resolve()}};</script>"""


def test_browser(check: ModuleType, site: Path) -> None:
    """One start of Chromium looks at all that can be wrong."""
    executable = check.chromium.find()
    if executable is None:
        pytest.skip("Chromium is not installed")
    pages = {
        "good": MATHJAX + '<span class="math"><mjx-container>x</mjx-container></span>',
        "error": MATHJAX
        + '<span class="math"><mjx-container><mjx-merror title="bad">x</mjx-merror></mjx-container></span>',
        "unset": MATHJAX + '<span class="math">\\(x\\)</span>',
        "raw": MATHJAX + '<span class="math"><mjx-container>x</mjx-container> \\(y\\)</span>',
        "absent": '<span class="math">\\(x\\)</span>',
        "elsewhere": "<script>fetch('http://192.0.2.1/a').catch(() => 0)</script>",
        "missing": '<img src="missing.png" alt="A line that rises">',
        "thrown": "<script>throw new Error('out of order')</script>",
        "wide": '<div style="width: 900px">wide</div>',
    }
    head = '<!doctype html><meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
    for name, body in pages.items():
        (site / f"{name}.html").write_text(head + body)
    with check.served(site) as base, check.chromium.running(executable) as browser:
        browser.look(width=check.PHONE, height=800)
        found = {
            name: list(check.check_page(browser, base, f"{name}.html", "math" in body))
            for name, body in pages.items()
        }
    assert found["good"] == []
    assert found["error"] == ["error.html: a formula failed: bad"]
    assert any("was not set" in problem for problem in found["unset"])
    assert found["raw"] == ["raw.html: TeX is left: x \\(y\\)"]
    assert "did not start" in found["absent"][0]
    assert any("asked for http://192.0.2.1/a" in problem for problem in found["elsewhere"])
    assert any("answered 404" in problem for problem in found["missing"])
    assert any("out of order" in problem for problem in found["thrown"])
    assert (
        found["wide"] == ["wide.html: is 900 pixels wide on a screen of 390"] or "wide on" in found["wide"][0]
    )


def test_continuous_integration_has_chromium(check: ModuleType) -> None:
    if os.environ.get("CI") != "true":
        pytest.skip("not in continuous integration")
    assert check.chromium.find() is not None
