"""What trainings share, made once and kept: tokenizers, windows, models, and what the teachers say."""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import mlot
from benchmarks.efficacy import store
from benchmarks.efficacy.evaluation import HeldOut, measure
from benchmarks.efficacy.sizes import ModelSize, Size
from benchmarks.efficacy.texts import Texts, collect
from benchmarks.efficacy.training import batches, fit, mean_cross_entropy, order
from benchmarks.efficacy.windows import Tokens, Window, cloze, cut, tokens, words
from mlot._hf.made import make_llama, train_bpe, train_unigram
from mlot._hf.tokenizers import start_token, token_ids
from mlot.align import batch_pairs, byte_ranges, pairs

_SIDES = ("student", "teacher")
_ORDER_SEED, _GENERATION_SEED, _MODEL_SEED, _CLOZE_SEED = 77, 78, 79, 80
#: How much of a student's window the teacher is given to continue.
_PROMPT = 0.25


@dataclass(frozen=True, eq=False)
class Taught:
    """What a teacher has to say about the windows that students train on.

    Attributes:
        logits: its predictions, ``(N, L, V)``, read from the file as needed.
        traces: the same, the k heaviest columns of each window.
    """

    logits: np.ndarray
    traces: mlot.Traces


class Material:
    """Everything that trainings share. What is missing is made by `prepare` and `prepare_job`.

    Args:
        size: the preset.
        folder: work folder.
        device: where models run.
    """

    def __init__(self, size: Size, folder: Path, device: torch.device) -> None:
        self.size = size
        self.folder = folder
        self.device = device

    # --- text -------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make tokenizers and windows, unless they are there."""
        if self._windows_path.exists():
            return
        size = self.size
        texts = collect(size.other_bytes)
        for side, train, vocabulary in (
            ("student", train_bpe, size.student_vocabulary),
            ("teacher", train_unigram, size.teacher_vocabulary),
        ):
            made = train(texts.teacher, vocabulary, size.length)
            shutil.rmtree(self.folder / side, ignore_errors=True)
            made.save_pretrained(str(self.folder / side))
        store.write_json(self._windows_path, self._cut(texts))

    def _cut(self, texts: Texts) -> dict[str, Any]:
        tokenizers = self.tokenizer("student"), self.tokenizer("teacher")
        found: dict[str, Any] = {"texts": texts.describe()}
        limits = {"student": self.size.pool, "validation": self.size.measured, "test": self.size.measured}
        for split in found["texts"]:
            documents = getattr(texts, split)
            whole = cut(documents, *tokenizers, self.size.length)
            if split == "student" and len(whole) < self.size.pool:
                raise ValueError(
                    f"pool: expected at most {len(whole)}, all that the text has, got {self.size.pool}"
                )
            some = order(len(whole), min(limits.get(split, len(whole)), len(whole)), _ORDER_SEED)
            found[split] = [whole[n] for n in some.tolist()]
        return found

    @property
    def _windows_path(self) -> Path:
        return self.folder / "windows.json"

    @functools.cached_property
    def _stored(self) -> dict[str, Any]:
        found: dict[str, Any] = store.read_json(self._windows_path)
        return found

    @property
    def texts(self) -> dict[str, Any]:
        """Documents, bytes and digests of the splits."""
        described: dict[str, Any] = self._stored["texts"]
        return described

    @functools.cache  # noqa: B019 - a process has one of these
    def tokenizer(self, side: str) -> PreTrainedTokenizerBase:
        """A side's tokenizer."""
        found: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(str(self.folder / side))
        return found

    @functools.cache  # noqa: B019
    def windows(self, split: str) -> list[Window]:
        """Windows of a split, in the order of their draw."""
        return [Window(*window) for window in self._stored[split]]

    @functools.cache  # noqa: B019
    def tokens(self, split: str, side: Any) -> Tokens:
        """Tokens of a split."""
        rows = [getattr(window, side) for window in self.windows(split)]
        return self._pad(rows, side).to(self.device)

    def _pad(self, rows: Sequence[Sequence[int]], side: str) -> Tokens:
        pad_token_id: Any = self.tokenizer(side).pad_token_id
        return tokens(rows, self.size.length, int(pad_token_id))

    @functools.cache  # noqa: B019
    def held_out(self, split: str, side: Any) -> HeldOut:
        """What a side's models are measured on."""
        windows = self.windows(split)
        texts = [window.text for window in windows]
        rows = [getattr(window, side) for window in windows]
        tokenizer = self.tokenizer(side)
        return HeldOut(
            self.tokens(split, side),
            words(texts, rows, tokenizer),
            cloze(texts, tokenizer, self.size.length, self.size.cloze, _CLOZE_SEED),
            sum(len(text.encode()) for text in texts),
        )

    @functools.cached_property
    def pairs(self) -> Tensor:
        """Pairs of positions of the student's windows at which both models have read the same bytes."""
        sides = [self.tokenizer(side) for side in _SIDES]
        found = [
            pairs(
                byte_ranges(sides[0], window.text, ids=window.student),
                byte_ranges(sides[1], window.text, ids=window.teacher),
            )
            for window in self.windows("student")
        ]
        return torch.from_numpy(batch_pairs(found)).to(self.device)

    # --- models -----------------------------------------------------------------------------------------

    def jobs(self) -> tuple[list[str], list[str]]:
        """What is to be prepared: models first, then what needs these."""
        return ["model:wide", "model:narrow", "model:pretrained"], ["taught:wide", "taught:narrow"]

    def prepare_job(self, job: str) -> None:
        """Do one of `jobs`, unless it is done."""
        kind, _, name = job.partition(":")
        if not self._report_path(kind, name).exists():
            started, used = time.perf_counter(), time.process_time()
            content = self._make_model(name) if kind == "model" else self._make_taught(name)
            content["seconds"] = round(time.perf_counter() - started, 3)
            content["processor_seconds"] = round(time.process_time() - used, 3)
            store.write_json(self._report_path(kind, name), content)

    def report(self, job: str) -> dict[str, Any]:
        """What was found while preparing."""
        kind, _, name = job.partition(":")
        found: dict[str, Any] = store.read_json(self._report_path(kind, name))
        return found

    def _report_path(self, kind: str, name: str) -> Path:
        return self.folder / "prepared" / f"{kind}-{name}.json"

    def student(self, start: str, seed: int) -> LlamaForCausalLM:
        """The student where its training starts: the same for every method."""
        model = self._untrained("student", self.size.student, seed)
        if start == "pretrained":
            model.load_state_dict(load_file(self._weights("pretrained")))
        return model

    def teacher(self, gap: str) -> LlamaForCausalLM:
        """The teacher of a gap."""
        model = self._untrained("teacher", self.size.teacher(gap), _MODEL_SEED)
        model.load_state_dict(load_file(self._weights(gap)))
        return model.eval()

    def _untrained(self, side: str, model: ModelSize, seed: int) -> LlamaForCausalLM:
        made = make_llama(
            self.tokenizer(side), width=model.width, layers=model.layers, length=self.size.length, seed=seed
        )
        moved: LlamaForCausalLM = made.to(self.device)
        return moved

    def _weights(self, name: str) -> Path:
        return self.folder / "models" / f"{name}.safetensors"

    def _make_model(self, name: str) -> dict[str, Any]:
        """Train a teacher, or a student on the other text; returns what it can do on held-out text."""
        if name == "pretrained":
            side, split, sizes = "student", "other", self.size.student
        else:
            side, split, sizes = "teacher", "teacher", self.size.teacher(name)
        text = self.tokens(split, side)
        if not self._weights(name).exists():
            self._train(name, side, sizes, text)
        model = self._untrained(side, sizes, _MODEL_SEED)
        model.load_state_dict(load_file(self._weights(name)))
        with safe_open(self._weights(name), "pt") as file:
            trained = file.metadata()
        return {
            "parameters": model.num_parameters(),
            "steps": sizes.steps,
            "windows seen": self.size.teacher_batch * sizes.steps,
            "different windows": len(text),
            "processor seconds of training": float(trained["processor_seconds"]),
            "validation": measure(model, self.held_out("validation", side)),
            "test": measure(model, self.held_out("test", side)),
        }

    def _train(self, name: str, side: str, sizes: ModelSize, text: Tokens) -> None:
        """Train by cross-entropy, and keep the weights."""
        model = self._untrained(side, sizes, _MODEL_SEED)
        indices = list(batches(len(text), self.size.teacher_batch, sizes.steps, _MODEL_SEED))

        def loss(step: int) -> Tensor:
            ids, labels = text.ids[indices[step]], text.labels[indices[step]]
            return mean_cross_entropy(model(input_ids=ids).logits, labels)

        used = time.process_time()
        fit(model, loss, steps=sizes.steps, learning_rate=sizes.learning_rate)
        weights = {key: value.clone().contiguous() for key, value in model.state_dict().items()}
        metadata = {"processor_seconds": f"{time.process_time() - used:.3f}"}
        store.write(self._weights(name), lambda path: save_file(weights, path, metadata))

    # --- the teachers' part -----------------------------------------------------------------------------

    @functools.cache  # noqa: B019
    def taught(self, gap: str) -> Taught:
        """What a teacher says about the windows that students train on."""
        logits = np.load(self._logits_path(gap), mmap_mode="r")
        return Taught(logits, mlot.Traces.load(self._traces_path(gap), device=self.device))

    @functools.cache  # noqa: B019
    def generated(self, gap: str) -> Tokens:
        """Windows a teacher wrote, in the student's tokens; the n-th continues window n modulo the pool."""
        rows = store.read_json(self._generated_path(gap))["student"]
        return self._pad(rows, "student").to(self.device)

    def _logits_path(self, gap: str) -> Path:
        return self.folder / "taught" / f"{gap}-logits.npy"

    def _traces_path(self, gap: str) -> Path:
        return self.folder / "taught" / f"{gap}-traces.safetensors"

    def _generated_path(self, gap: str) -> Path:
        return self.folder / "taught" / f"{gap}-text.json"

    @torch.no_grad()
    def _make_taught(self, gap: str) -> dict[str, Any]:
        model = self.teacher(gap)
        text = self.tokens("student", "teacher")
        logits = torch.cat([model(input_ids=ids).logits.float() for ids in text.ids.split(32)])
        traces = mlot.select(logits, mlot.mask_from_labels(text.labels), k=self.size.k)
        store.write(self._logits_path(gap), lambda path: np.save(path, logits.cpu().numpy()))
        store.write(self._traces_path(gap), traces.save)
        texts, rows = self._write_text(model)
        store.write_json(self._generated_path(gap), {"text": texts, "student": rows})
        return {
            "kept mass": float(traces.column_mass.sum() / traces.mask.sum()),
            "on its students' windows": measure(model, self.held_out("student", "teacher")),
            "generated": len(rows),
            "sample": texts[:5],
        }

    def _write_text(self, model: LlamaForCausalLM) -> tuple[list[str], list[list[int]]]:
        """Have a teacher continue the beginnings of the student's windows, sampling at temperature 1."""
        windows, tokenizer = self.windows("student"), self.tokenizer("teacher")
        torch.manual_seed(_GENERATION_SEED)
        written: list[list[int]] = [[] for _ in range(self.size.generated)]
        prompts = [windows[n % len(windows)].teacher for n in range(self.size.generated)]
        prompts = [row[: max(int(len(row) * _PROMPT), 1)] for row in prompts]
        by_length: dict[int, list[int]] = {}
        for n, prompt in enumerate(prompts):
            by_length.setdefault(len(prompt), []).append(n)
        for length in sorted(by_length):
            some = by_length[length]
            for start in range(0, len(some), 256):
                group = some[start : start + 256]
                ids = self._sample(model, torch.tensor([prompts[n] for n in group], device=self.device))
                for n, row in zip(group, ids.tolist(), strict=True):
                    written[n] = row
        special = set(tokenizer.all_special_ids)
        texts = [_decode(tokenizer, [index for index in row if index not in special]) for row in written]
        student = self.tokenizer("student")
        rows = [[start_token(student), *found] for found in token_ids(student, texts)]
        return texts, [row[: self.size.length] for row in rows]

    def _sample(self, model: LlamaForCausalLM, ids: Tensor) -> Tensor:
        """Continue rows to the length of a window."""
        cache, given = None, ids
        while ids.shape[1] < self.size.length:
            found = model(input_ids=given, past_key_values=cache, use_cache=True)
            cache = found.past_key_values
            given = torch.multinomial(found.logits[:, -1].float().softmax(-1), 1)
            ids = torch.cat([ids, given], dim=1)
        return ids


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Text of tokens, without what is left of a character that the last one breaks off."""
    found: Any = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return str(found).rstrip("\ufffd")


def describe(size: Size) -> dict[str, Any]:
    """A preset for JSON."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(size)))
    return found
