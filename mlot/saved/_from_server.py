"""A saved teacher from a running server."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from typing import Any

import numpy as np

from mlot import _checks
from mlot._fingerprint import fingerprint
from mlot._storage import DTYPES, safetensors_numpy
from mlot.config import MultiLevelOTConfig
from mlot.saved._examples import TeacherExample, read_examples
from mlot.saved._manifest import Manifest
from mlot.saved._reader import SavedTeacher
from mlot.saved._writer import TeacherWriter
from mlot.serving import Served, Server, ServerError
from mlot.serving._server import ServerKind
from mlot.topk import TopKLogprobs

_TRIED = 8  # tokens of the first request, which says whether the server can do this


def save_from_server(
    url: str,
    tokenizer: Any,
    examples: Iterable[Any],
    folder: str | os.PathLike[str],
    *,
    k: int | None = None,
    kind: ServerKind | None = None,
    model: str | None = None,
    api_key: str | None = None,
    vocab_size: int | None = None,
    dtype: str = "float16",
    max_length: int | None = None,
    concurrency: int = 8,
    retries: int = 5,
    timeout: float = 120.0,
    examples_per_shard: int = 256,
    name: str | None = None,
    revision: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SavedTeacher:
    """Ask a server for the likeliest tokens at every position of a data set, and save them.

    What is saved is as with ``save_teacher(..., keep="likeliest")``: a teacher for pairs and for
    ``matching="text"``. Whatever ends it, the examples that were answered are saved; the same call resumes
    with those that are missing. The first request is a short one, which fails by name where the server
    cannot do what is asked, before any other is sent. vLLM, SGLang and servers that echo a prompt are asked
    once for each example; llama.cpp's once for each position that counts, whose prompts it has in its cache.

    Args:
        url: where the server is, such as ``http://127.0.0.1:8000``.
        tokenizer: the teacher's. The server is given token ids, with the special tokens that this adds.
        examples: as for `save_teacher`.
        folder: new, empty, or of the same saved teacher.
        k: tokens of each position; ``None``: as many as the preset for the text's plan has. Servers have
            limits: vLLM's is its ``--max-logprobs``.
        kind: of the server; ``None``: its answers tell. See `mlot.serving.Server`.
        model: name of the model; ``None``: the first that the server lists.
        api_key: sent as a bearer token, if given.
        vocab_size: width of the teacher's vocabulary; ``None``: of the tokenizer's.
        dtype: storage type of log-probabilities.
        max_length: tokens after the first so many of an example are left out; ``None`` leaves out none.
        concurrency: examples that are asked for at a time.
        retries: tries after the first where the server is busy or away.
        timeout: seconds to wait for an answer.
        examples_per_shard: examples in a file.
        name: of the model, for the manifest; ``None``: as the server calls it.
        revision: of the model, for the manifest.
        progress: called with the number of examples done and to do.

    Returns:
        The saved teacher.

    Warns:
        UserWarning: a server names tokens by texts that could be of several; how many positions lose by that.

    Raises:
        ImportError: safetensors or filelock is not installed.
        TypeError, ValueError: an argument is of the wrong kind or range, or the folder holds something else.
        mlot.serving.ServerError: the server cannot do it, or failed for good.
        FolderLockedError: another writer has the folder open.
    """
    _checks.count("k", k, allow_none=True)
    _checks.choice("dtype", dtype, tuple(DTYPES))
    _checks.count("vocab_size", vocab_size, allow_none=True)
    _checks.count("max_length", max_length, allow_none=True)
    _checks.count("concurrency", concurrency)
    _checks.count("examples_per_shard", examples_per_shard)
    _checks.path("folder", folder)
    safetensors_numpy("folder")
    unique = read_examples(examples, tokenizer, max_length)
    if not any(each.mask.any() for each in unique):
        raise ValueError("examples: expected at least one with a token to predict, got none")
    width = _vocabulary(tokenizer) if vocab_size is None else vocab_size
    k = min(MultiLevelOTConfig.text().k or width if k is None else k, width)
    server = Server(url, tokenizer, kind=kind, model=model, api_key=api_key, timeout=timeout, retries=retries)
    manifest = Manifest(
        model=server.model if name is None else name,
        model_fingerprint=blake2b(server.model.encode(), digest_size=16).hexdigest(),
        tokenizer_fingerprint=fingerprint(tokenizer),
        vocab_size=width,
        k=k,
        revision=revision,
        dtype=dtype,
        extra_temperatures=(),
        settings={"server": server.kind},
        keep="likeliest",
    )

    def answered(example: TeacherExample) -> tuple[TopKLogprobs, Served]:
        return server.likeliest(
            example.ids.tolist(), np.flatnonzero(example.mask).tolist(), k=k, vocab_size=width
        )

    writer = TeacherWriter(folder, manifest, examples_per_shard=examples_per_shard)
    try:
        lacking = set(writer.missing(each.key for each in unique))
        todo = [each for each in unique if each.key in lacking]
        if todo:
            _try(server, next((each for each in todo if each.mask.any()), todo[0]), k, width)
        done, told, asked, ended = len(unique) - len(todo), 0, 0, 0
        if progress is not None:
            progress(done, len(unique))
        with ThreadPoolExecutor(concurrency) as pool:
            waiting: deque[tuple[TeacherExample, Future[tuple[TopKLogprobs, Served]]]] = deque()
            rest = iter(todo)
            try:
                while True:
                    while len(waiting) < 2 * concurrency and (example := next(rest, None)) is not None:
                        waiting.append((example, pool.submit(answered, example)))
                    if not waiting:
                        break
                    example, future = waiting[0]
                    source, served = future.result()
                    told += int((source.ids[..., 0] >= 0).sum())
                    asked += int(example.mask.sum())
                    ended += served.unknown + served.ambiguous
                    waiting.popleft()
                    writer.add([example.key], source, np.ones((1, len(example.ids)), bool))
                    done += 1
                    if progress is not None:
                        progress(done, len(unique))
            except BaseException:
                for _, future in waiting:
                    future.cancel()
                raise
    except ServerError as error:
        writer.close()
        raise ServerError(
            f"{error}; {len(writer)} of {len(unique)} examples are saved, and the same call resumes"
        ) from error
    finally:
        writer.close()
    if told < asked or ended:
        warnings.warn(
            f"of {asked} positions, {asked - told} have no token that can be told, and the lists of {ended} "
            "end at one that cannot; servers that name tokens by ids, such as vLLM, lose none",
            stacklevel=2,
        )
    return SavedTeacher(folder, expect=manifest)


def _try(server: Server, example: TeacherExample, k: int, vocab_size: int) -> None:
    """Ask for a few positions first, so that what a server cannot do is told before work is done."""
    first = int(np.flatnonzero(example.mask)[0]) if example.mask.any() else 0
    end = max(first + 2, min(_TRIED, len(example.ids)))
    ids = example.ids[:end].tolist()
    places = [place for place in np.flatnonzero(example.mask).tolist() if place < len(ids) - 1]
    server.likeliest(ids, places[:_TRIED], k=k, vocab_size=vocab_size)


def _vocabulary(tokenizer: Any) -> int:
    """Tokens that a tokenizer has, added ones included."""
    if hasattr(tokenizer, "get_vocab_size"):
        return int(tokenizer.get_vocab_size())
    return len(tokenizer)
