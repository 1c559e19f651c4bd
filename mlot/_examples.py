"""Examples in files: the one reader of the trainer, saved teachers and the command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

#: What an example may hold, as the messages say it.
FORMS = "text, prompt and completion, or messages"
TOKENISED_FORMS = "text, prompt and completion, messages, or input_ids with labels or mask"
#: What of an example is read; anything else in it is passed over.
_READ = ("text", "prompt", "completion", "messages", "tools", "chat_template_kwargs")

_JSON_LINES, _PARQUET = (".jsonl", ".ndjson"), (".parquet", ".pq")


@dataclass(frozen=True, eq=False)
class Example:
    """An example of a file.

    Attributes:
        content: what the file has, as `mlot.training.DistillationCollator` takes it.
        where: the file, and where in it, as messages say it.
    """

    content: Mapping[str, Any]
    where: str

    @property
    def plain(self) -> bool:
        """Whether it is a text and nothing else, which may be cut like any other."""
        return "text" in self.content and not {"messages", "input_ids"} & set(self.content)

    @cached_property
    def text(self) -> str:
        """What there is to learn: the text, the completion, or what the assistant says."""
        if self.plain:
            return str(self.content["text"])
        learnt = self.content.get("messages", self.content.get("completion", ""))
        if isinstance(learnt, str):
            return learnt
        said = [each.get("content") for each in learnt if each.get("role") == "assistant"]
        return "\n".join(each for each in said if isinstance(each, str))

    @cached_property
    def identity(self) -> str:
        """What of it is read, in one spelling; equal examples have equal ones."""
        read = {name: self.content[name] for name in _READ if name in self.content}
        return json.dumps(read, ensure_ascii=False, sort_keys=True, default=str)


def check_example(value: Any, *, tokenised: bool = False) -> Mapping[str, Any]:
    """Require one of the forms of an example; what is said in conversations is for templates to judge.

    Args:
        value: the example.
        tokenised: whether token ids are an example, too.

    Returns:
        The example.

    Raises:
        TypeError, ValueError: it has none of the forms, a part is of the wrong kind, or no valid Unicode.
    """
    forms = TOKENISED_FORMS if tokenised else FORMS
    if not isinstance(value, Mapping):
        raise TypeError(f"expected an object with {forms}, got {type(value).__name__}")
    if tokenised and "input_ids" in value:
        return _check_tokens(value)
    if "messages" in value:
        _require_messages("messages", value["messages"], "a list of messages")
    elif "prompt" in value and "completion" in value:
        if not (isinstance(value["prompt"], str) and isinstance(value["completion"], str)):
            for name in ("prompt", "completion"):
                _require_messages(name, value[name], "a string like its counterpart, or a list of messages")
    elif "text" not in value:
        raise ValueError(
            f"expected an object with {forms}, got one with {', '.join(sorted(map(str, value))) or 'nothing'}"
        )
    elif not isinstance(value["text"], str):
        raise TypeError(f"text: expected a string, got {type(value['text']).__name__}")
    try:
        Example(value, "").identity.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"expected valid Unicode, got a lone surrogate: {error}") from error
    return value


def read_examples(
    paths: Sequence[str | Path],
    name: str,
    *,
    cut: Callable[[str], list[str]] = lambda text: [text],
    tokenised: bool = False,
) -> list[Example]:
    """Read the examples of some files.

    Files are told by their names: JSON lines (``.jsonl``, ``.ndjson``), parquet, and text, which ``cut``
    divides into examples. A folder holds a data set that the datasets library saved to disk, or files of
    these kinds; what is neither may be the id of a data set that the cache of Hugging Face has. Of several
    files in a folder those that are called ``train`` are read, if there are such.

    Args:
        paths: of the files.
        name: of the argument or option that gave them, for messages.
        cut: divides a text into examples.
        tokenised: whether token ids are examples, too.

    Raises:
        ValueError: there is no such file, it cannot be read, or an example has none of the forms; the message
            says which.
    """
    collected = []
    for path in paths:
        examples = list(_examples_of(Path(path), name, cut, tokenised))
        if not examples:
            raise ValueError(f"{name}: expected some text, but {str(path)!r} is empty")
        collected += examples
    return collected


def read_rows(*paths: str | Path) -> list[Mapping[str, Any]]:
    """Read files of examples for a trainer or its collator, as the commands do.

    Args:
        paths: JSON lines (``.jsonl``, ``.ndjson``), parquet, or text, of which a file is one example; the
            folder of a data set that the datasets library saved to disk; the id of a data set in the cache.

    Returns:
        Mappings with text, prompt and completion, or messages.

    Raises:
        ValueError: a file cannot be read, or an example has none of these; the message says which.
    """
    return [example.content for example in read_examples(paths, "paths")]


def _examples_of(
    path: Path, name: str, cut: Callable[[str], list[str]], tokenised: bool
) -> Iterator[Example]:
    suffix, shown = path.suffix.lower(), f"{name}: {str(path)!r}"
    rows: Iterable[tuple[int | str, Any]]
    if not path.is_file():
        folder = path if path.is_dir() else _cached(path, name)
        if not ({"state.json", "dataset_dict.json"} & {each.name for each in folder.iterdir()}):
            for each in _files_in(folder, name):
                yield from _examples_of(each, name, cut, tokenised)
            return
        unit, rows = "row", enumerate(_saved_dataset(folder, shown))
    elif suffix in _PARQUET:
        unit, rows = "row", enumerate(_parquet(path, shown))
    elif suffix in _JSON_LINES:
        unit, rows = "line", _json_lines(path, name)
    else:
        text = _text(path, shown)
        unit, rows = "text", enumerate({"text": part} for part in (cut(text) if text.strip() else ()))
    for number, row in rows:
        where = f"{name}: {unit} {number} of {str(path)!r}"
        try:
            yield Example(check_example(row, tokenised=tokenised), where)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error


def _text(path: Path, shown: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown.replace(': ', ': expected UTF-8, but ', 1)} is not: {error}") from error
    except OSError as error:
        raise ValueError(f"{shown}: {error.strerror}") from error


def _json_lines(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    """Values of a file with one in each line, and the lines' numbers from 1; blank lines are skipped."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{name}: line {number} of {str(path)!r}"
            try:
                yield number, json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: expected UTF-8: {error}") from error
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: expected JSON: {error}") from error


def _parquet(path: Path, shown: str) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ValueError(f"{shown}: reading parquet needs pyarrow; pip install pyarrow") from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from map(_without_none, batch.to_pylist())
    except (ArrowException, OSError) as error:
        raise ValueError(f"{shown}: expected parquet: {str(error).partition(chr(10))[0]}") from error


def _saved_dataset(folder: Path, shown: str) -> Iterator[dict[str, Any]]:
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError as error:
        raise ValueError(f"{shown}: reading a data set needs datasets; pip install datasets") from error
    try:
        dataset: Any = load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise ValueError(f"{shown}: expected a data set that was saved to disk: {error}") from error
    if isinstance(dataset, DatasetDict):
        raise ValueError(f"{shown} has several splits; expected the folder of one of {', '.join(dataset)}")
    return map(_without_none, dataset)


def _without_none(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table, in which columns that an example does not have are None."""
    return {name: value for name, value in row.items() if value is not None}


def _files_in(folder: Path, name: str) -> list[Path]:
    suffixes = {*_JSON_LINES, *_PARQUET, ".txt"}
    files = sorted(each for each in folder.rglob("*") if each.suffix.lower() in suffixes)
    if not files:
        raise ValueError(f"{name}: expected a data set or files of text in {str(folder)!r}, found none")
    training = [each for each in files if "train" in str(each.relative_to(folder))]
    return training or files


def _cached(path: Path, name: str) -> Path:
    """Folder of a data set in the cache of Hugging Face."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        try:
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(str(path), repo_type="dataset", local_files_only=True))
        except (ImportError, OSError, ValueError):
            pass
    raise ValueError(f"{name}: expected a file, found none at {str(path)!r}")


def _require_messages(name: str, value: Any, wanted: str) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name}: expected {wanted}, got {type(value).__name__}")
    for each in value:
        if not isinstance(each, Mapping):
            raise TypeError(f"{name}: expected {wanted}, got one of {type(each).__name__}")


def _check_tokens(value: Mapping[str, Any]) -> Mapping[str, Any]:
    ids = value["input_ids"]
    if not _all_of(int, ids):
        raise TypeError(f"input_ids: expected a list of integers, got {str(ids)[:40]}")
    for name, item_type, wanted in (("labels", int, "integers"), ("mask", bool, "booleans")):
        if name in value:
            if not _all_of(item_type, value[name]) or len(value[name]) != len(ids):
                raise ValueError(f"expected as many {wanted} in {name} as there are input_ids, {len(ids)}")
            return {"input_ids": ids, name: value[name]}
    return {"input_ids": ids, "mask": [True] * max(len(ids) - 1, 0) + [False] * bool(ids)}


def _all_of(item_type: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(each) is item_type for each in values)
