"""Chromium without a window, spoken to by its DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # as root, in containers, it does not start otherwise; it opens our own pages alone
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--mute-audio",
    "--no-first-run",
    "--remote-debugging-pipe",
)

#: Chromium's DevTools read from descriptor 3 and write to 4.
_STARTER = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class ChromiumError(RuntimeError):
    """Chromium did not do what it was asked for."""


def find() -> str | None:
    """Path of an installed Chromium; ``None`` if there is none."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


class Browser:
    """A running Chromium with one page."""

    def __init__(self, process: subprocess.Popen[bytes], write: int, read: int) -> None:
        self._process, self._write, self._read = process, write, read
        self._buffer = b""
        self._count = 0
        self._events: list[dict[str, Any]] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; what happens meanwhile is kept for `events`.

        Raises:
            ChromiumError: the command failed, or there was no answer in time.
        """
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        number = self._count
        while True:
            answer = self._receive(time.monotonic() + 60)
            if answer.get("id") != number:
                continue
            if "error" in answer:
                raise ChromiumError(f"{method}: {answer['error'].get('message')}")
            result: dict[str, Any] = answer["result"]
            return result

    def events(self, name: str) -> list[dict[str, Any]]:
        """Parameters of the events of a name since the last `open`."""
        return [event["params"] for event in self._events if event["method"] == name]

    def open(self, address: str) -> None:
        """Load a page, and wait until it is loaded."""
        self._events.clear()
        failure = self.call("Page.navigate", url=address).get("errorText")
        if failure:
            raise ChromiumError(f"{address}: {failure}")
        self.wait(lambda: bool(self.events("Page.loadEventFired")), f"{address} to load")

    def wait(self, done: Callable[[], bool], what: str, seconds: float = 60) -> None:
        """Take in events until something is so.

        Raises:
            ChromiumError: it was not so in time.
        """
        deadline = time.monotonic() + seconds
        while not done():
            try:
                self._receive(min(deadline, time.monotonic() + 0.05))
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise ChromiumError(f"waited {seconds:.0f} s for {what}") from None

    def evaluate(self, script: str) -> Any:
        """Value of a JavaScript expression in the page; promises are waited for.

        Raises:
            ChromiumError: the script raised an exception.
        """
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            raise ChromiumError(details.get("exception", {}).get("description") or details["text"])
        return found["result"].get("value")

    def look(self, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Set the size of the page, and whether the reader wants ``"light"`` or ``"dark"`` colours."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write what the page looks like as PNG."""
        options: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            options["clip"] = {"x": 0, "y": 0, "scale": 1, "width": size["width"], "height": size["height"]}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **options)["data"]))

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise TimeoutError("Chromium said nothing")
            found = os.read(self._read, 1 << 20)
            if not found:
                raise ChromiumError("Chromium ended")
            self._buffer += found
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self._events.append(message)
        return message

    def __enter__(self) -> Self:
        return self


def _above_standard(descriptor: int) -> int:
    """Move a descriptor out of the way of 3 and 4."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10)
    os.close(descriptor)
    return moved


@contextmanager
def running(executable: str, *, only: str = "127.0.0.1") -> Iterator[Browser]:
    """Start Chromium so that it finds no host but one, and end it afterwards.

    Args:
        executable: as `find` returns it.
        only: the host that it may reach.

    Raises:
        ChromiumError: it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="mlot-chromium-") as profile:
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        hosts = f"--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE {only}"
        command = [executable, *_FLAGS, hosts, f"--user-data-dir={profile}", "about:blank"]
        its_ends = [_above_standard(end) for end in (to_read, from_write)]
        process = subprocess.Popen(
            [sys.executable, "-IS", "-c", _STARTER, *map(str, its_ends), *command],
            pass_fds=its_ends,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for end in its_ends:
            os.close(end)
        try:
            yield Browser(process, to_write, from_read)
        finally:
            os.close(to_write)
            os.close(from_read)
            try:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(timeout=10)
            except ProcessLookupError:
                pass
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            time.sleep(0.2)  # its helpers write to the profile until they have ended, too
            shutil.rmtree(profile, ignore_errors=True)
