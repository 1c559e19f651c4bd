"""Check the built pages: ``python docs/check.py``, after ``make docs``.

Of every page: nothing is loaded from elsewhere (scripts, styles, fonts, pictures), every picture has a text,
every link within these pages leads somewhere. In headless Chromium, every page is opened at the width of a
phone: MathJax set every formula without an error, nothing was asked of another host, nothing failed to load,
no script raised an exception, and the page is not wider than the screen.

Without Chromium the second part is left out, with a message; in continuous integration (``CI=true``) that is
an error.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

import chromium  # noqa: E402

PHONE = 390
_BUILT = HERE / "_build" / "html"
_SHORTEST_TEXT = 8
_LOADING_LINKS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "manifest", "preconnect"}
_IN_STYLES = re.compile(r"""@import\s+["']([^"']+)|url\(\s*["']?([^"')]+)""")
_FORMULAS = """(async () => {
  if (!window.MathJax || !MathJax.startup) return {ready: false};
  await MathJax.startup.promise;
  const spots = [...document.querySelectorAll('.math')].filter(e => !e.closest('mjx-container'));
  const text = e => e.textContent.trim().slice(0, 80);
  return {
    ready: true,
    formulas: spots.length,
    unset: spots.filter(e => !e.querySelector('mjx-container')).map(text),
    failed: [...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map(
      e => e.getAttribute('data-mjx-error') || e.getAttribute('title') || text(e)),
    raw: spots.filter(e => /\\\\\\(|\\\\\\[/.test(
      [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join(''))).map(text),
  };
})()"""


@dataclass
class Page(HTMLParser):
    """What a page loads, shows and links to."""

    loaded: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    pictures: list[tuple[str, str | None]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    styles: list[str] = field(default_factory=list)
    has_maths: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag brings."""
        found = {name: value or "" for name, value in attrs}
        self._in_style = tag == "style"
        self.names.update(found[name] for name in ("id", "name") if found.get(name))
        self.has_maths |= "math" in found.get("class", "").split()
        if "style" in found:
            self.styles.append(found["style"])
        if tag == "a" and "href" in found:
            self.linked.append(found["href"])
        elif tag == "link" and _LOADING_LINKS & set(found.get("rel", "").split()):
            self.loaded.append(found.get("href", ""))
        elif tag in ("script", "img", "iframe", "audio", "video", "source", "embed", "track"):
            if "src" in found:
                self.loaded.append(found["src"])
            for choice in found.get("srcset", "").split(","):
                self.loaded += choice.split()[:1]
        elif tag == "object":
            self.loaded.append(found.get("data", ""))
        if tag == "img":
            self.pictures.append((found.get("src", ""), dict(attrs).get("alt")))

    def handle_data(self, data: str) -> None:
        """Keep what a ``<style>`` holds."""
        if self._in_style:
            self.styles.append(data)

    def handle_endtag(self, tag: str) -> None:
        """Leave a ``<style>``."""
        self._in_style = False


def read(path: Path) -> Page:
    """Parse a page."""
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def check_files(root: Path) -> Iterator[str]:
    """Problems that can be seen without a browser."""
    pages = {path: read(path) for path in sorted(root.rglob("*.html"))}
    if not pages:
        yield f"{root}: there are no pages; `make docs` builds them"
    for path, page in pages.items():
        name = path.relative_to(root).as_posix()
        for address in page.loaded + [a for style in page.styles for a in _addresses(style)]:
            yield from _loaded(name, address, path.parent)
        for source, text in page.pictures:
            words = " ".join((text or "").split())
            if len(words) < _SHORTEST_TEXT or words in (source, Path(source).name, Path(source).stem):
                yield f"{name}: {source} has no text that says what it shows, got {text!r}"
        for address in page.linked:
            yield from _linked(name, address, path, root, pages)
    for path in sorted(root.rglob("*.css")):
        for address in _addresses(path.read_text(encoding="utf-8")):
            yield from _loaded(path.relative_to(root).as_posix(), address, path.parent)


def _addresses(style: str) -> Iterator[str]:
    for imported, used in _IN_STYLES.findall(style):
        yield (imported or used).strip()


def _loaded(name: str, address: str, folder: Path) -> Iterator[str]:
    parts = urlsplit(address)
    if parts.scheme == "data" or address.startswith("#"):
        return
    if parts.scheme or parts.netloc:
        yield f"{name}: loads {address} from elsewhere"
    elif parts.path and not (folder / unquote(parts.path)).exists():
        yield f"{name}: loads {address}, which is not there"


def _linked(name: str, address: str, path: Path, root: Path, pages: dict[Path, Page]) -> Iterator[str]:
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.exists() or root not in target.parents:
        yield f"{name}: links to {address}, which is not there"
    elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].names:
        yield f"{name}: links to {address}, and that page has no such place"


def unused(root: Path) -> Iterator[str]:
    """Objects of other projects that are listed, and that no page links to."""
    import local_inventories  # needs Sphinx, which the rest does not

    linked = {address for path in root.rglob("*.html") for address in read(path).linked}
    for path in sorted(local_inventories.FOLDER.glob("*.txt")):
        project = local_inventories.read(path)
        for listed in project.objects:
            if project.address + listed.address not in linked:
                yield f"{path.name}: {listed.name} is listed, and no page refers to it"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def served(root: Path) -> Iterator[str]:
    """Address under which a folder is served on this machine."""
    handler = functools.partial(_Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def check_page(browser: chromium.Browser, base: str, name: str, has_maths: bool) -> Iterator[str]:
    """Problems of one page in a browser, at the width of a phone."""
    browser.open(f"{base}/{name}")
    if has_maths:
        found = browser.evaluate(_FORMULAS)
        if not found["ready"]:
            yield f"{name}: has formulas, and MathJax did not start"
        else:
            yield from (f"{name}: a formula failed: {text}" for text in found["failed"])
            yield from (f"{name}: a formula was not set: {text}" for text in found["unset"])
            yield from (f"{name}: TeX is left: {text}" for text in found["raw"])
            if not found["formulas"]:
                yield f"{name}: no formula was found, though the page has some"
    browser.evaluate("document.fonts.ready.then(() => true)")
    for event in browser.events("Network.requestWillBeSent"):
        address = event["request"]["url"]
        if not address.startswith((f"{base}/", "data:", "blob:")):
            yield f"{name}: asked for {address}"
    for event in browser.events("Network.responseReceived"):
        if event["response"]["status"] >= 400 and not event["response"]["url"].endswith("/favicon.ico"):
            yield f"{name}: {event['response']['url']} answered {event['response']['status']}"
    for event in browser.events("Network.loadingFailed"):
        if not event.get("canceled"):
            yield f"{name}: something failed to load: {event['errorText']}"
    for event in browser.events("Runtime.exceptionThrown"):
        details = event["exceptionDetails"]
        yield f"{name}: {details.get('exception', {}).get('description', details['text'])}"
    width = browser.evaluate("document.documentElement.scrollWidth")
    if width > PHONE:
        yield f"{name}: is {width} pixels wide on a screen of {PHONE}"


def check_browser(root: Path, executable: str) -> Iterator[str]:
    """Problems of all pages in Chromium."""
    with served(root) as base, chromium.running(executable) as browser:
        browser.look(width=PHONE, height=844)
        for path in sorted(root.rglob("*.html")):
            yield from check_page(browser, base, path.relative_to(root).as_posix(), read(path).has_maths)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, and say what is wrong; 0 if nothing is."""
    parser = argparse.ArgumentParser(description="Check the built documentation.")
    parser.add_argument("folder", nargs="?", type=Path, default=_BUILT)
    root = parser.parse_args(arguments).folder.resolve()
    start = time.perf_counter()
    pages = len(list(root.rglob("*.html")))
    problems = list(check_files(root))
    executable = chromium.find()
    if executable is not None:
        problems += check_browser(root, executable)
    elif os.environ.get("CI") == "true":
        problems.append("Chromium is not installed, and CI=true: the pages were not looked at")
    else:
        print("Chromium is not installed: the pages were not looked at in a browser", file=sys.stderr)
    for problem in problems:
        print(problem)
    if root == _BUILT:
        for note in unused(root):
            print(f"note: {note}")
    seconds = time.perf_counter() - start
    print(f"{pages} pages, {len(problems)} problems, {seconds:.0f} s")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
