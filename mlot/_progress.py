"""What commands show while they last: bars on a terminal, lines elsewhere; needs rich."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter:
    """Progress bars on a terminal; elsewhere lines, which appear on a terminal as well, above the bars.

    Args:
        console: where they go.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (
            TextColumn("{task.description:<33}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)

    def say(self, message: str) -> None:
        """Print a line."""
        self.console.print(message, soft_wrap=True, highlight=False, markup=False)


class Counter:
    """A bar that counts things; where there is no terminal, a line at each tenth of them.

    Args:
        reporter: where it is shown.
        name: what is done, at the left of the bar.
        things: what is counted, in the lines.
    """

    def __init__(self, reporter: Reporter, name: str, things: str) -> None:
        self._reporter, self._things, self._tenths = reporter, things, -1
        self._task = reporter.progress.add_task(name, total=None)

    def __call__(self, done: int, total: int) -> None:
        """Show how many of how many are done."""
        self._reporter.progress.update(self._task, completed=done, total=total)
        if not self._reporter.console.is_terminal and 10 * done // total > self._tenths:
            self._tenths = 10 * done // total
            self._reporter.say(f"{done} of {total} {self._things}")
