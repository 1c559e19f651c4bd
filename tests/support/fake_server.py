"""Servers that answer as vLLM, SGLang, llama.cpp and others do, from a small model, in a thread of this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import torch


class FakeServer:
    """A server of a kind; ``trouble`` may answer a request with a status, bytes, or end the connection.

    Attributes:
        requests: paths and contents of the requests that came.
    """

    def __init__(
        self, kind: str, model: Any, tokenizer: Any, trouble: Callable[[int], Any] | None = None
    ) -> None:
        self.kind, self.model, self.tokenizer, self.trouble = kind, model, tokenizer, trouble
        self.requests: list[tuple[str, Any]] = []
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                self._answer(outer.told(self.path))

            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.requests.append((self.path, content))
                    number = len(outer.requests)
                    problem = None if outer.trouble is None else outer.trouble(number)
                    answer = outer.answer(self.path, content) if problem is None else problem
                self._answer(answer)

            def _answer(self, answer: Any) -> None:
                if answer == "hang up":
                    self.close_connection = True
                    self.connection.close()
                    return
                status, body = (answer, b"busy") if isinstance(answer, int) else (200, answer)
                if not isinstance(body, bytes):
                    body = json.dumps(body).encode()
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "0")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeServer:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def told(self, path: str) -> Any:
        """What the kind answers to a question about itself."""
        own = {
            "vllm": {"/version": {"version": "0.11.0"}},
            "sglang": {"/get_model_info": {"model_path": "tiny"}},
            "llama.cpp": {"/props": {"default_generation_settings": {}}},
        }
        models = {"data": [{"id": "tiny"}]}
        return (own.get(self.kind, {}) | {"/v1/models": models}).get(path, 404)

    def answer(self, path: str, content: dict[str, Any]) -> Any:
        """As the kind answers a prompt of token ids; 404 for another kind's path."""
        if path == "/v1/chat/completions":
            return {"choices": [{"message": {"content": f"to {len(content['messages'])} messages"}}]}
        if isinstance(content.get("prompt"), str):
            return {"choices": [{"text": f" {content['max_tokens']} more"}]}
        paths = {"sglang": "/generate", "llama.cpp": "/completion"}
        if path != paths.get(self.kind, "/v1/completions"):
            return 404
        ids = content["input_ids" if self.kind == "sglang" else "prompt"]
        with torch.no_grad():
            logs = self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        if self.kind == "llama.cpp":
            top = logs[-1].topk(content["n_probs"])
            entries = [
                {"id": i, "token": self.tokenizer.decode([i]), "logprob": x}
                for i, x in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ]
            described = entries[0] | {"top_logprobs": entries}
            return {"content": "", "tokens_evaluated": len(ids), "completion_probabilities": [described]}
        k = content.get("prompt_logprobs") or content.get("top_logprobs_num") or content["logprobs"]
        listed = [None]
        for row, token in zip(logs[:-1], ids[1:], strict=True):
            top = row.topk(k).indices.tolist()
            ranks = {i: rank for rank, i in enumerate(row.argsort(descending=True).tolist(), 1)}
            listed.append([(float(row[i]), i, ranks[i]) for i in [*top, *({token} - set(top))]])
        if self.kind == "vllm":
            described = [
                None if some is None else {str(i): {"logprob": x, "rank": rank} for x, i, rank in some}
                for some in listed
            ]
            return {"choices": [{"index": 0, "text": "", "prompt_logprobs": described}]}
        if self.kind == "sglang":
            tops = [None if some is None else [(x, i, None) for x, i, _ in some[:k]] for some in listed]
            return {"text": "", "meta_info": {"prompt_tokens": len(ids), "input_top_logprobs": tops}}
        if self.kind == "deaf":  # knows no echo
            listed = []
        names = [f"token_id:{i}" for i in ids]
        tops = [None if some is None else {f"token_id:{i}": x for x, i, _ in some[:k]} for some in listed]
        last = {f"token_id:{i}": float(logs[-1, i]) for i in logs[-1].topk(k).indices.tolist()}
        last_name = max(last, key=last.__getitem__)
        tokens = [*(names if listed else []), last_name]
        values = {"tokens": tokens, "top_logprobs": [*tops, last], "token_logprobs": [None] * len(tokens)}
        values["token_logprobs"][-1] = last[last_name]
        for n, some in enumerate(listed):
            if some is not None:
                values["token_logprobs"][n] = next(x for x, i, _ in some if i == ids[n])
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return {"choices": [{"index": 0, "text": "", "logprobs": values}], "usage": usage}
