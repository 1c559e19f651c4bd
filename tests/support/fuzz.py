"""``make fuzz``: bytes that others wrote, changed at random, for every reader of such.

A reader may refuse them with an error that names what was wrong, or read them; it may raise nothing else, take
no long time, and take no memory beyond a bound. Half of the files that carry a digest get the right one again
after they were changed, so that what is behind it is reached, too. ``MLOT_FUZZ_SECONDS`` is how long each
reader is tried; what it fails on is written to ``fuzz-failures/``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mlot
from mlot import _storage, serving
from mlot._examples import read_rows
from mlot.align import VocabularyMap, _map_file
from mlot.saved import SavedTeacher
from mlot.saved import _shard as shards
from mlot.saved._manifest import read_manifest
from saved_cases import cases, save

ROOT = Path(__file__).resolve().parents[2]
#: How an error begins that says what was wrong.
NAMED = re.compile(r"^[A-Za-z_]\w*(\.\w+|\[.*?\])*( [\w ]+)?: ", re.DOTALL)
#: Seconds and bytes that reading a few kilobytes may take at most.
LONGEST, LARGEST = 10.0, 2**28
STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, -(10**400), 0.5, -0.5, 1e-320, 1e308,
    float("nan"), float("inf"), -float("inf"), "", "a", "\ud800", "token_id:7", "token_id:x", "bytes:\\xff", "é",
    "1" * 5000, [], {}, [None], [[]], {"": None}, [[-0.1, 5, None]], {"5": -0.1}, b"a".hex(),
)  # fmt: skip
SNIPPETS = (
    b"NaN", b"1e999", b"-1", b"null", b"true", b"[]", b"{}", b"\"\"", b"\xff", b"\x00" * 8, b"\xff" * 8,
    b"[" * 3000, b"9" * 5000, b"{% for a in b %}", b"{{ x.y.z }}", b"{{ 1 / 0 }}", b"{% include 'x' %}",
    b"{{ raise_exception('no') }}", b"\\ud800", b"\r\n", b"{% set x = messages %}", b"{{ range(10**9) }}",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A reader: what it is given to start from, how it reads, and how a digest is put right."""

    seeds: Sequence[bytes]
    read: Callable[[bytes, Path], object]
    signed: Callable[[bytes], bytes] | None = None


def changed_value(rng: random.Random, value: Any) -> Any:
    """The same JSON value with something in it replaced, left out, repeated, or moved."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        copy = value.copy()
        act = rng.random()
        if act < 0.7:
            copy[key] = changed_value(rng, value[key])
        elif act < 0.8:
            del copy[key]
        elif isinstance(copy, list):
            copy.insert(rng.randrange(len(copy) + 1), copy[key])
        else:
            copy[rng.choice([*map(str, STRANGE[:12]), *map(str, keys)])] = copy[key]
        return copy
    return rng.choice(STRANGE)


def changed_bytes(rng: random.Random, data: bytes) -> bytes:
    """The same bytes with some changed, left out, repeated, or put in."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(result) + 1)
        act = rng.randrange(5)
        if act == 0 and place < len(result):
            result[place] ^= 1 << rng.randrange(8)
        elif act == 1 and place < len(result):
            result[place] = rng.randrange(256)
        elif act == 2:
            del result[place : place + rng.choice((1, 4, 40, len(result)))]
        elif act == 3:
            result[place:place] = rng.choice(SNIPPETS)
        else:
            other = rng.randrange(len(result) + 1)
            result[place:place] = result[other : other + rng.choice((1, 8, 64))]
    return bytes(result)


def changed(rng: random.Random, data: bytes) -> bytes:
    """A change of the bytes, or, where they are JSON or begin with a header of JSON, of the values."""
    if rng.random() < 0.6:
        try:
            return json.dumps(changed_value(rng, json.loads(data))).encode()
        except (ValueError, RecursionError):
            pass
        length = int.from_bytes(data[:8], "little")
        try:
            header = json.loads(data[8 : 8 + length])
            if rng.random() < 0.5:
                own = json.loads(header["__metadata__"]["mlot"])
                header["__metadata__"]["mlot"] = json.dumps(changed_value(rng, own))
            else:
                header = changed_value(rng, header)
            text = json.dumps(header).encode()
        except (ValueError, TypeError, KeyError, RecursionError):
            return changed_bytes(rng, data)
        return len(text).to_bytes(8, "little") + text + data[8 + length :]
    return changed_bytes(rng, data)


# -- readers -------------------------------------------------------------------------------------------------


def _resigned(data: bytes, name: str, digest: Callable[[dict[str, Any], dict[str, Any]], str]) -> bytes:
    """The same file with the digest that its content has."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        path = Path(file.name)
        with path.open("rb") as opened:
            layout = _storage.read_layout(opened, len(data))
        arrays = layout.mapped(path, len(data))
        header = dict(layout.metadata)
        header[name] = digest({key: value for key, value in header.items() if key != name}, arrays)
    length = int.from_bytes(data[:8], "little")
    whole = json.loads(data[8 : 8 + length])
    whole["__metadata__"]["mlot"] = json.dumps(header)
    text = json.dumps(whole).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _traces(folder: Path) -> Target:
    rng = np.random.default_rng(0)
    mlot.select(rng.normal(size=(2, 3, 9)), k=4).save(folder / "traces")

    def read(data: bytes, place: Path) -> None:
        (place / "traces").write_bytes(data)
        traces = mlot.Traces.load(place / "traces", backend="numpy")
        traces.at(traces.temperature)

    return Target(
        [(folder / "traces").read_bytes()], read, lambda data: _resigned(data, "digest", _storage._digest)
    )


def _saved(folder: Path, name: str) -> tuple[bytes, Callable[[bytes, Path], None]]:
    saved = save(cases(6), folder / "saved", per_shard=6)
    whole = {path.name: path.read_bytes() for path in saved.folder.iterdir() if path.name != ".lock"}

    def read(data: bytes, place: Path) -> None:
        for other, content in whole.items():
            (place / other).write_bytes(content)
        (place / name).write_bytes(data)
        if name == "manifest.json":
            read_manifest(place)
        opened = SavedTeacher(place)
        try:
            opened.verify()
        except ValueError as error:
            _require_named(error)
        for n in range(min(len(opened), 6)):
            try:
                opened.batch([n])
            except ValueError as error:
                _require_named(error)
        opened.missing(["0" * 32])

    return whole[name], read


def _shards(folder: Path) -> Target:
    seed, read = _saved(folder, "00000.safetensors")
    order = shards.array_names(read_manifest(folder / "saved"))

    def checksum(header: dict[str, Any], arrays: dict[str, Any]) -> str:
        return shards.checksum(header, {name: arrays[name] for name in order})

    return Target([seed], read, lambda data: _resigned(data, "checksum", checksum))


def _manifests(folder: Path) -> Target:
    seed, read = _saved(folder, "manifest.json")
    return Target([seed], read)


def _maps(folder: Path) -> Target:
    path = folder / "map"
    made = VocabularyMap.from_bytes([b"t", b"th", b"e", b" "], [None, b"the", b" t"], roles=[[0, 3]])
    made.save(path)
    head = len(path.read_bytes().partition(b"PK")[0])

    def read(data: bytes, place: Path) -> None:
        (place / "map").write_bytes(data)
        VocabularyMap.load(place / "map").plan()

    def signed(data: bytes) -> bytes:
        name = path.read_bytes()[: head - _map_file._DIGEST]
        return name + _map_file._digest(data[head:]) + data[head:]

    return Target([path.read_bytes()], read, signed)


def _examples(_: Path) -> Target:
    lines = (
        {"text": "one é"},
        {"prompt": "a", "completion": "b"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
    )

    def read(data: bytes, place: Path) -> None:
        (place / "examples.jsonl").write_bytes(data)
        read_rows(place / "examples.jsonl")

    each = [json.dumps(line).encode() for line in lines]
    return Target([*each, b"\n".join(each)], read)


def _templates(_: Path) -> Target:
    from mlot._hf.render import render
    from training_cases import BRACKETS, CHATML, student_tokenizer

    tokenizer = student_tokenizer()
    messages = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "the end"}]

    def read(data: bytes, _: Path) -> None:
        tokenizer.chat_template = data.decode("utf-8", "surrogateescape")
        render({"messages": messages}, [tokenizer], {}, ["teacher"])

    return Target([CHATML.encode(), BRACKETS.encode()], read)


def _served(_: Path) -> Target:
    folder = ROOT / "tests" / "serving" / "responses"
    vocabulary = {"a": 0, "b": 1, " the": 2}

    def read(data: bytes, _: Path) -> None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return  # the client's own parser
        for reader in (
            serving.from_vllm,
            lambda value: serving.from_vllm(value, generated=True),
            serving.from_sglang,
            lambda value: serving.from_openai(value, vocabulary, prompt_lengths=1),
            lambda value: serving.from_openai(value, vocabulary, prompt_lengths=0, k=2),
            lambda value: serving.from_llama_cpp(value, vocabulary),
            lambda value: serving.from_ollama(value, vocabulary),
            lambda value: serving.from_openai(serving.merge_chunks(value), vocabulary, prompt_lengths=1),
        ):
            try:
                reader(value)
            except (TypeError, ValueError) as error:
                _require_named(error)

    top = [
        {"id": 5, "token": "a", "bytes": [97], "logprob": -0.5},
        {"token": "\ufffd", "bytes": [195], "logprob": -2.0},
    ]
    described = [{**each, "top_logprobs": top} for each in top]
    flat = {
        "start_indices": [0, 0, 2],
        "end_indices": [0, 2, 3],
        "token_ids": [5, 7, 6],
        "logprobs": [-0.5, -2.0, -0.25],
        "ranks": [1, 2, 1],
    }
    small = (
        [None, {"5": {"logprob": -0.1, "rank": 1}, "7": -3.0}],
        {"meta_info": {"input_top_logprobs": [None, [[-0.1, 5, None], [-3.0, 7, None]]]}},
        {
            "choices": [
                {"logprobs": {"tokens": ["", "a"], "top_logprobs": [None, {"a": -0.5, "token_id:7": -2.0}]}}
            ]
        },
        {
            "choices": [{"logprobs": {"content": described}}],
            "usage": {"prompt_tokens": 2, "completion_tokens": 1},
        },
        {"completion_probabilities": described, "tokens_evaluated": 3},
        {
            "completion_probabilities": [{"content": "a", "probs": [{"tok_str": "a", "prob": 0.5}]}],
            "tokens_evaluated": 3,
        },
        {"logprobs": described, "prompt_eval_count": 3},
        [{"choices": [{"index": n, "logprobs": {"content": described}}]} for n in (1, 0)],
        {"prompt_logprobs": flat, "outputs": [{"logprobs": flat}]},
        flat,
    )
    seeds = [path.read_bytes() for path in sorted(folder.glob("*.json"))]
    return Target([*seeds, *(json.dumps(each).encode() for each in small)], read)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "served": _served,
    "shards": _shards,
    "manifests": _manifests,
    "traces": _traces,
    "examples": _examples,
    "templates": _templates,
    "maps": _maps,
}


def _require_named(error: BaseException) -> None:
    if not NAMED.match(str(error)):
        raise AssertionError(f"an error that names nothing: {error!r}") from error


def fuzz(name: str, seconds: float, seed: int = 0) -> int:
    """Try a reader for some seconds; return how often it read or refused.

    Raises:
        AssertionError: it did something else; the input is in ``fuzz-failures/``.
    """
    rng = random.Random(seed)
    tries = 0
    with tempfile.TemporaryDirectory() as made, warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = Path(made)
        target = TARGETS[name](folder)
        place = folder / "place"
        place.mkdir()
        for whole in target.seeds:
            target.read(whole, place)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            data = rng.choice(target.seeds)
            for _ in range(rng.choice((1, 1, 2, 4))):
                data = changed(rng, data)
            if target.signed is not None and rng.random() < 0.5:
                with suppress(Exception):  # it may be beyond signing
                    data = target.signed(data)
            try:
                _try(target, data, place)
            except AssertionError:
                failures = ROOT / "fuzz-failures"
                failures.mkdir(exist_ok=True)
                (failures / f"{name}-{seed}-{tries}").write_bytes(data)
                raise
            tries += 1
    return tries


def _try(target: Target, data: bytes, place: Path) -> None:
    started = time.monotonic()
    tracemalloc.start()
    try:
        target.read(data, place)
    except (FileNotFoundError, TypeError, ValueError) as error:
        _require_named(error)
    except AssertionError:
        raise
    except BaseException as error:
        raise AssertionError(f"an error of another kind: {error!r}") from error
    finally:
        largest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    seconds = time.monotonic() - started
    assert seconds < LONGEST, f"it took {seconds:.0f} s"
    assert largest < LARGEST, f"it took {largest} bytes"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 where a reader did what it may not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("MLOT_FUZZ_SECONDS", "60")))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    failed = 0
    for name in options.targets:
        try:
            print(f"{name}: {fuzz(name, options.seconds, options.seed)} inputs read or refused", flush=True)
        except AssertionError:
            traceback.print_exc()
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
