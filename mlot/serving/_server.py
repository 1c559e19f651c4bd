"""Asking a running server for the likeliest tokens at every position of a prompt."""

from __future__ import annotations

import http.client
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from mlot import _checks
from mlot.serving._entries import Served
from mlot.serving._native import from_llama_cpp
from mlot.serving._openai import from_openai
from mlot.serving._sglang import from_sglang
from mlot.serving._vllm import from_vllm
from mlot.topk import TopKLogprobs

ServerKind: TypeAlias = Literal["vllm", "sglang", "llama.cpp", "openai"]
KINDS: tuple[ServerKind, ...] = get_args(ServerKind)

_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_MOST_BYTES = 1 << 28  # of an answer
_LONGEST_WAIT = 60.0  # seconds between two tries


class ServerError(RuntimeError):
    """A server cannot be reached, refuses a request, or does not answer what it was asked for."""


class Server:
    """A running inference server, of a kind that its answers tell.

    Args:
        url: where it is, such as ``http://127.0.0.1:8000``, with or without ``/v1``.
        tokenizer: the teacher's, for servers that name tokens by their text.
        kind: ``"vllm"``, ``"sglang"``, ``"llama.cpp"``, or ``"openai"`` for others with a completions
            endpoint that echoes the prompt; ``None``: it is asked.
        model: name of the model; ``None``: the first that the server lists.
        api_key: sent as a bearer token, if given.
        timeout: seconds to wait for an answer.
        retries: tries after the first, each after twice the wait, where the server is busy or away.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.
        ServerError: there is no such server, or its kind is not told.
    """

    def __init__(
        self,
        url: str,
        tokenizer: Any = None,
        *,
        kind: ServerKind | None = None,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        retries: int = 5,
    ) -> None:
        if not isinstance(url, str):
            raise TypeError(f"url: expected text, got {type(url).__name__}")
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url: expected http:// or https://, got {url!r}")
        if kind is not None:
            _checks.choice("kind", kind, KINDS)
        _checks.number("timeout", timeout)
        _checks.count("retries", retries, least=0)
        self.url = url.rstrip("/").removesuffix("/v1")
        self.tokenizer, self.timeout, self.retries = tokenizer, timeout, retries
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self.kind: ServerKind = self._kind() if kind is None else kind
        self.model = self._model() if model is None else model

    def likeliest(
        self, ids: Sequence[int], positions: Sequence[int], *, k: int, vocab_size: int
    ) -> tuple[TopKLogprobs, Served]:
        """The k likeliest tokens after each of some positions of a text, and what was left out.

        Args:
            ids: the text's tokens, with its special ones.
            positions: those whose prediction of the next token is wanted.
            k: tokens of each position.
            vocab_size: width of the teacher's vocabulary.

        Returns:
            The predictions ``(1, T, k)``, nothing at other positions; and what was read of the answers.

        Raises:
            ServerError: the server fails, or tells nothing of a position.
        """
        ids = [int(token) for token in ids]
        wanted = [int(place) for place in positions]
        table = np.full((1, len(ids), k), -1, np.int64)
        log_probs = np.full(table.shape, -np.inf)
        if not wanted:
            return TopKLogprobs(table, log_probs, vocab_size=vocab_size, tail="fitted"), Served(
                TopKLogprobs(table, log_probs, vocab_size=vocab_size)
            )
        try:
            served = self._asked(ids, wanted, k, vocab_size)
        except (TypeError, ValueError) as error:
            raise ServerError(f"{self.url}: the answer of {self.kind} cannot be read: {error}") from error
        got = served.source
        self._require_length(got.shape[1], len(ids))
        own = range(len(wanted)) if self.kind == "llama.cpp" else wanted
        for place, row in zip(wanted, own, strict=True):
            n, t = (row, 0) if self.kind == "llama.cpp" else (0, row)
            if t < got.shape[1]:
                width = min(k, got.ids.shape[2])
                table[0, place, :width] = got.ids[n, t, :width]
                log_probs[0, place, :width] = got.logprobs[n, t, :width]
        if (table[0, wanted, 0] < 0).all():
            raise ServerError(f"{self.url}: {self.kind} tells nothing of the prompt; {_CURE[self.kind]}")
        return TopKLogprobs(table, log_probs, vocab_size=vocab_size, tail="fitted"), served

    def answer(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        max_tokens: int = 256,
        temperature: float = 1.0,
        seed: int | None = None,
    ) -> str:
        """Let the server write: its answer to a text that it goes on with, or to the turns of a conversation.

        Prompt and answer make an example for both models, as ``{"prompt": ..., "completion": ...}`` or as
        ``messages``, and for `mlot.saved.save_from_server`.

        Args:
            prompt: a text, or messages with ``role`` and ``content``.
            max_tokens: the most tokens of the answer.
            temperature: of sampling; 0 takes the likeliest.
            seed: of sampling, where the server knows one.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind or out of range.
            ServerError: the server fails, or answers nothing.
        """
        _checks.count("max_tokens", max_tokens)
        _checks.number("temperature", temperature, allow_zero=True)
        request: dict[str, Any] = {
            "model": self.model,
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        if seed is not None:
            request["seed"] = seed
        is_text = isinstance(prompt, str)
        path, field = ("/v1/completions", "prompt") if is_text else ("/v1/chat/completions", "messages")
        answer = self.post(path, request | {field: prompt if is_text else list(prompt)})
        try:
            choice = answer["choices"][0]
            text = choice["text"] if is_text else choice["message"]["content"]
        except (IndexError, KeyError, TypeError) as error:
            raise ServerError(f"{self.url}: expected an answer with text, got {str(answer)[:200]}") from error
        if not isinstance(text, str) or not text:
            raise ServerError(f"{self.url}: expected an answer with text, got {text!r}")
        return text

    def _require_length(self, described: int, given: int) -> None:
        """Refuse answers about other tokens than were given: cut off, or with others put before them."""
        # echo describes the token that was written, too, unless it ended the text
        expected = {given, given + 1} if self.kind == "openai" else {given}
        if self.kind != "llama.cpp" and described not in expected:
            raise ServerError(
                f"{self.url}: expected {self.kind} to describe the {given} tokens given, got {described}: "
                "it cut them off or added some"
            )

    def _asked(self, ids: list[int], positions: list[int], k: int, vocab_size: int) -> Served:
        common: dict[str, Any] = {"model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 0.0}
        if self.kind == "vllm":
            answer = self.post("/v1/completions", common | {"prompt_logprobs": k})
            return from_vllm(answer, k=k, vocab_size=vocab_size)
        if self.kind == "sglang":
            request = {
                "input_ids": ids,
                "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
                "return_logprob": True,
                "top_logprobs_num": k,
                "logprob_start_len": 0,
            }
            return from_sglang(self.post("/generate", request), vocab_size=vocab_size)
        if self.kind == "openai":
            answer = self.post("/v1/completions", common | {"logprobs": k, "echo": True})
            return from_openai(answer, self.tokenizer, prompt_lengths=0, k=k, vocab_size=vocab_size)
        answers = []
        for place in positions:  # each prompt begins with the one before, which the server has in its cache
            request = {
                "prompt": ids[: place + 1],
                "n_predict": 1,
                "n_probs": k,
                "temperature": 1.0,
                "cache_prompt": True,
                "post_sampling_probs": False,
            }
            answers.append(self.post("/completion", request))
        return from_llama_cpp(answers, self.tokenizer, prompt_lengths=1, k=k, vocab_size=vocab_size)

    def _kind(self) -> ServerKind:
        """Told by what only one of them answers."""
        for path, field, kind in (
            ("/props", "default_generation_settings", KINDS[2]),
            ("/get_model_info", "model_path", KINDS[1]),
            ("/version", "version", KINDS[0]),
        ):
            answer = self._got(path)
            if isinstance(answer, dict) and field in answer:
                return kind
        if isinstance(self._got("/v1/models"), dict):
            return "openai"
        raise ServerError(
            f"{self.url}: expected a server of {', '.join(KINDS)}, but it answers like none; "
            "say which it is by kind"
        )

    def _model(self) -> str:
        answer = self._got("/v1/models")
        try:
            name = str(answer["data"][0]["id"])
            return PurePath(name).name if PurePath(name).is_absolute() else name  # llama.cpp has a path
        except (IndexError, KeyError, TypeError):
            return "model"

    def _got(self, path: str) -> Any:
        """What a path answers, or nothing where there is no such path."""
        try:
            return self._sent(urllib.request.Request(self.url + path, headers=self._headers))
        except _RefusedError:
            return None

    def post(self, path: str, content: dict[str, Any]) -> Any:
        """Send a request and return the parsed answer.

        Raises:
            ServerError: the server refuses it, is away or busy after all tries, or answers no JSON.
        """
        body = json.dumps(content).encode()
        return self._sent(urllib.request.Request(self.url + path, body, self._headers, method="POST"))

    def _sent(self, request: urllib.request.Request) -> Any:
        for tried in range(self.retries + 1):
            wait = min(0.5 * 2**tried, _LONGEST_WAIT) * random.uniform(0.75, 1.25)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    content = answer.read(_MOST_BYTES + 1)
                if len(content) > _MOST_BYTES:
                    raise _RefusedError(f"{request.full_url}: an answer of over {_MOST_BYTES} bytes")
                return json.loads(content)
            except urllib.error.HTTPError as error:
                said = error.read(500).decode(errors="replace").strip()
                problem = f"status {error.code}: {said}"
                if error.code not in _RETRIED:
                    raise _RefusedError(f"{request.full_url}: {problem}") from error
                asked = error.headers.get("Retry-After") or ""
                wait = min(float(asked), _LONGEST_WAIT) if asked.isdigit() else wait
            except (OSError, http.client.HTTPException) as error:
                problem = str(error) or type(error).__name__
            except (ValueError, RecursionError) as error:
                raise _RefusedError(f"{request.full_url}: expected JSON ({error})") from error
            if tried < self.retries:
                time.sleep(wait)
        raise ServerError(f"{request.full_url}: {problem}, after {self.retries + 1} tries")


class _RefusedError(ServerError):
    """What is the same at every try."""


#: What to do where a prompt is not told about.
_CURE: dict[ServerKind, str] = {
    "vllm": "it gives prompt_logprobs up to its --max-logprobs",
    "sglang": "it gives input_top_logprobs where it was started without --disable-logprobs",
    "llama.cpp": "it gives n_probs at /completion",
    "openai": "expected a completions endpoint that knows echo with logprobs; many leave echo out: "
    "vLLM, SGLang and llama.cpp's own server are asked in their own ways, see kind",
}
