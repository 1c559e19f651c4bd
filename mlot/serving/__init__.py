"""Teachers behind an inference server: what vLLM, SGLang, llama.cpp, Ollama and others answer, as sources.

A server describes a token by the distribution that it was drawn from; that distribution was predicted at the
position *before* the token. The sources made here follow the convention of this library, in which position t
predicts token t + 1: the entries that a server lists for token t + 1 stand at position t, nothing stands at
the last position, and what is listed for the very first token, if anything, is left out. So a source has one
position for each token, and labels and pairs that belong to the tokens fit it as they are.
"""

from mlot.serving._entries import Served
from mlot.serving._native import from_llama_cpp, from_ollama
from mlot.serving._openai import from_openai
from mlot.serving._server import Server, ServerError
from mlot.serving._sglang import from_sglang
from mlot.serving._stream import merge_chunks
from mlot.serving._vllm import from_vllm

__all__ = [
    "Served",
    "Server",
    "ServerError",
    "from_llama_cpp",
    "from_ollama",
    "from_openai",
    "from_sglang",
    "from_vllm",
    "merge_chunks",
]
