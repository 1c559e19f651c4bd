"""A page with what the student wrote: one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from mlot._storage import write_atomically

#: Answers that are shown at most, the latest.
_MOST = 500

_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>What the student wrote</title><style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
article { border-top: 1px solid #8888; padding: 0.6rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0.2rem 0; unicode-bidi: plaintext; }
.prompt, small { opacity: 0.65; }
</style></head><body><h1>What the student wrote</h1>
"""


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The records of a file of answers, one a line; texts may hold other characters that end lines."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


class AnswersPage(TrainerCallback):
    """Writes the page beside the file of answers, with each checkpoint and at the end.

    Args:
        path: the file of answers.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint was written."""
        if args.should_save and self._path.exists():
            records = read_answers(self._path)
            write_atomically(self._path.with_suffix(".html"), page(records).encode())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Training has ended."""
        self.on_save(args, state, control)


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """The page of some answers, the latest first."""
    count = len(records)
    shown = f"{count:,} answers" + (f", of which the last {_MOST} are shown" if count > _MOST else "")
    totals = ", ".join(f"{sum(map(marked, records))} {name}" for name, marked in _MARKS.items())
    articles = "".join(map(_article, reversed(records[-_MOST:])))
    return f"{_HEAD}<p>{shown}: {totals}.</p>\n{articles}</body></html>\n"


_MARKS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "without an end": lambda record: not record["ended"],
    "tokenised otherwise than sampled": lambda record: bool(record["changed"]),
    "left out": lambda record: bool(record["left_out"]),
}


def _article(record: Mapping[str, Any]) -> str:
    marks = [f"step {record['step'] + 1}", f"{len(record['tokens'])} tokens"]
    marks += [name for name, marked in _MARKS.items() if marked(record)]
    prompt, answer = escape(_shown(record["prompt"])), escape(record["answer"])
    top = f"<article><small>{', '.join(marks)}</small>"
    return f'{top}<pre class="prompt">{prompt}</pre><pre>{answer}</pre></article>\n'


def _shown(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)
