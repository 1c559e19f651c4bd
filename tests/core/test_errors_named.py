"""Whatever stands in the place of one argument of a public function, the error names that argument."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import mlot
from mlot import align, saved, serving
from saved_cases import manifest

NONSENSE = object()
LOGITS = np.zeros((2, 4, 9))
TOP = mlot.TopKLogprobs(np.zeros((2, 3, 1), int), np.full((2, 3, 1), -0.5), vocab_size=5)
MASKED = {"student_mask": None, "teacher_mask": None, "pairs": None, "reduction": "mean", "num_items": None}
OPENAI = {"choices": [{"logprobs": {"top_logprobs": [{"a": -0.5}]}}]}
DESCRIBED = [{"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -0.5}]}]
LLAMA_CPP = {"completion_probabilities": DESCRIBED, "tokens_evaluated": 1}
OLLAMA = {"logprobs": DESCRIBED, "prompt_eval_count": 1}
SERVED = {"tail": "zero", "vocab_size": 5, "temperature": 1.0, "length": 2, "padding_side": "left"}
TOKENS = align.TokenBytes(np.array([1, 2]), np.array([0, 1]), np.array([1, 3]), np.zeros(2, bool), 3)

#: Functions with arguments that they take, by name.
CALLS: dict[str, tuple[Callable[..., object], dict[str, object]]] = {
    "TopKLogprobs": (
        mlot.TopKLogprobs,
        {"ids": TOP.ids, "logprobs": TOP.logprobs, "vocab_size": 5, "tail": "zero", "temperature": 1.0},
    ),
    "Teacher": (partial(mlot.Teacher, TOP), {"weight": 1.0, "config": None}),
    "multi_teacher_ot": (
        mlot.multi_teacher_ot,
        {
            "student": LOGITS,
            "teachers": [mlot.Teacher(TOP)],
            "student_mask": None,
            "config": None,
            "reduction": "mean",
            "num_items": None,
            "backend": None,
            "return_plan": False,
        },
    ),
    "truncation_bounds": (
        mlot.truncation_bounds,
        {"student": LOGITS, "teacher": TOP, "config": None, "backend": None, **MASKED},
    ),
    "from_vllm": (
        serving.from_vllm,
        {"responses": [None, {1: -0.5}], "k": 1, "generated": False, "backend": None, **SERVED},
    ),
    "from_sglang": (
        serving.from_sglang,
        {
            "responses": [None, [[-0.5, 1, None]]],
            "start": 0,
            "generated": False,
            "backend": None,
            **SERVED,
        },
    ),
    "from_openai": (
        serving.from_openai,
        {
            "responses": OPENAI,
            "vocabulary": {"a": 1},
            "prompt_lengths": 1,
            "k": 1,
            "backend": None,
            **SERVED,
        },
    ),
    "from_llama_cpp": (
        serving.from_llama_cpp,
        {
            "responses": LLAMA_CPP,
            "vocabulary": {"a": 1},
            "prompt_lengths": 1,
            "k": 1,
            "backend": None,
            **SERVED,
        },
    ),
    "from_ollama": (
        serving.from_ollama,
        {"responses": OLLAMA, "vocabulary": {"a": 1}, "prompt_lengths": 1, "k": 1, "backend": None, **SERVED},
    ),
    "merge_chunks": (serving.merge_chunks, {"chunks": [OPENAI]}),
    "example_key": (saved.example_key, {"ids": [1, 2], "mask": [True, False]}),
    "fingerprint": (saved.fingerprint, {"tokenizer": None}),
    "model_fingerprint": (saved.model_fingerprint, {"model": None}),
    "storage_error": (saved.storage_error, {"traces": mlot.select(LOGITS, k=3), "dtype": "float16"}),
    "Manifest": (
        manifest,
        {
            "model": "a",
            "model_fingerprint": "0f",
            "tokenizer_fingerprint": "a1",
            "vocab_size": 9,
            "k": 3,
            "revision": None,
            "temperature": 1.0,
            "extra_temperatures": (2.0,),
            "standardize": False,
            "dtype": "float32",
            "settings": {},
        },
    ),
    "save_teacher": (
        partial(saved.save_teacher, tokenizer=None, examples=["a"]),
        {
            "model": None,
            "folder": Path("no-such-folder"),
            "k": 3,
            "temperature": 1.0,
            "extra_temperatures": (),
            "standardize": False,
            "dtype": "float32",
            "max_length": None,
            "batch_size": 1,
            "examples_per_shard": 1,
        },
    ),
    "TeacherWriter": (
        saved.TeacherWriter,
        {"folder": Path("no-such-folder"), "manifest": manifest(), "examples_per_shard": 1},
    ),
    "SavedTeacher": (saved.SavedTeacher, {"folder": Path("no-such-folder")}),
    "verify_folder": (saved.verify_folder, {"folder": Path("no-such-folder")}),
    "align.pairs": (align.pairs, {"student": TOKENS, "teacher": TOKENS}),
    "align.batch_pairs": (
        align.batch_pairs,
        {"pairs": [np.zeros((1, 2), int)], "student_offset": 0, "teacher_offset": 0},
    ),
    "align.byte_ranges": (
        align.byte_ranges,
        {"tokenizer": None, "text": "abc"},
    ),
    "align.report": (align.report, {"student": TOKENS, "teacher": TOKENS}),
    "align.draw": (align.draw, {"student": TOKENS, "teacher": TOKENS, "text": "abc", "width": 40}),
}
#: Arguments that are no good as they stand: what they name is too much for a table.
LACKING = {"fingerprint", "model_fingerprint", "save_teacher", "TeacherWriter", "SavedTeacher"}
LACKING |= {"verify_folder", "align.byte_ranges"}


@pytest.mark.parametrize("name", sorted(CALLS.keys() - LACKING))
def test_the_arguments_are_taken_as_they_stand(name: str) -> None:
    function, arguments = CALLS[name]
    function(**arguments)


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, (_, given) in CALLS.items() for argument in given]
)
def test_nonsense_is_named(name: str, argument: str) -> None:
    function, arguments = CALLS[name]
    with pytest.raises((TypeError, ValueError), match=rf"^{argument}\b"):
        function(**{**arguments, argument: NONSENSE})
