"""What the teacher says about the students' windows, asked once and kept."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import mlot
from benchmarks.efficacy import store
from benchmarks.efficacy.windows import Tokens
from benchmarks.efficacy.windows import tokens as tokens_of
from benchmarks.study.material import Material, teacher_weights
from benchmarks.study.methods import VARIANTS
from mlot.align import VocabularyMap, batch_pairs, batch_text_positions, byte_ranges, pairs, text_positions
from mlot.baselines import StringProjection, string_projection

_AT_ONCE, _GENERATION_SEED = 16, 79
#: How much of a student's window the teacher is given to continue, and how often it does so.
_PROMPT, _ROUNDS = 0.25, 2
_DEPTH, _CHAIN = 2, 8  # columns of the rows of text positions


class Taught:
    """What the teacher says about the windows of one tokenizer.

    Args:
        material: windows and tokens.
        tokenizer: of the students.
        compared: number of windows that all methods need.
    """

    def __init__(self, material: Material, tokenizer: str, *, full: bool) -> None:
        self.material, self.tokenizer, self.full = material, tokenizer, full
        self.folder = material.folder / "taught" / tokenizer
        self.device = material.device

    def make(self) -> None:
        """Ask the teacher, unless that is done."""
        if (self.folder / "report.json").exists():
            return
        self._make_rows()
        model = self._load()
        text = self.material.tokens(self.tokenizer, "student", "teacher")
        compared = self.material.count(self.tokenizer, self.material.size.compared)
        traces: list[mlot.Traces] = []
        targets: dict[str, list[mlot.TextTargets]] = {name: [] for name in VARIANTS}
        logits: list[np.ndarray] = []
        for start in range(0, len(text), _AT_ONCE):
            index = torch.arange(start, min(start + _AT_ONCE, len(text)), device=self.device)
            with torch.no_grad():
                predicted = model(input_ids=text.ids[index]).logits.float()
            mask = mlot.mask_from_labels(text.labels[index])
            traces.append(
                mlot.select(predicted, mask, k=self.material.size.k, extra_temperatures=(2.0,)).map(
                    Tensor.cpu
                )
            )
            whole = start < compared and self.full
            for name in VARIANTS if whole else ("text", "boundaries"):
                targets[name].append(self._targets(name, predicted, index).map(Tensor.cpu))
            if whole:
                logits.append(predicted.half().cpu().numpy())
        self._write(traces, targets, logits)
        written = self._written(model, compared) if self.full else []
        store.write_json(self.folder / "written.json", written)
        everything = _join(targets["text"])
        report = {
            "bits_per_byte": self.material.measure(model, self.tokenizer, "test", "teacher"),
            "teacher_tokens": int((text.labels != -100).sum()),
            "positions": int(
                self.material.tokens(self.tokenizer, "student", "student").labels.ne(-100).sum()
            ),
            "served": int((everything.served > 0).sum()),
            "served_mass": float(everything.served[everything.served > 0].mean()),
            "listed_mass": float(everything.log_probs.exp().sum(-1)[everything.served > 0].mean()),
            "shared_boundaries": int((self.rows[..., _DEPTH] == 0).sum()),
        }
        store.write_json(self.folder / "report.json", report)

    @property
    def report(self) -> dict[str, Any]:
        """What was counted while asking."""
        report: dict[str, Any] = store.read_json(self.folder / "report.json")
        return report

    def _load(self) -> Any:
        weights = teacher_weights()
        model: Any = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name)
        return model.to(self.device, torch.float32).eval()

    # --- where both read --------------------------------------------------------------------------------

    @functools.cached_property
    def vocabulary(self) -> VocabularyMap:
        """The map of the two tokenizers."""
        sides = self.material.side(self.tokenizer), self.material.teacher_side
        return VocabularyMap.from_tokenizers(*(side.tokenizer for side in sides))

    def _make_rows(self) -> None:
        sides = self.material.side(self.tokenizer), self.material.teacher_side
        number = len(self.material.tokens(self.tokenizer, "student", "student"))
        rows, paired = [], []
        for window in self.material.windows(self.tokenizer, "student")[:number]:
            ranges = [
                byte_ranges(side.tokenizer, window.text, ids=list(ids))
                for side, ids in zip(sides, (window.student, window.teacher), strict=True)
            ]
            rows.append(text_positions(*ranges, window.text, self.vocabulary))
            paired.append(pairs(*ranges))
        arrays = {"rows": batch_text_positions(rows), "pairs": batch_pairs(paired)}
        kept = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        store.write(self.folder / "positions.safetensors", lambda path: save_file(kept, path))

    @functools.cached_property
    def _positions(self) -> dict[str, Tensor]:
        return load_file(self.folder / "positions.safetensors", device=str(self.device))

    @property
    def rows(self) -> Tensor:
        """Where the student reads in the teacher's tokens, ``(N, P, 9)``."""
        return self._positions["rows"]

    @property
    def pairs(self) -> Tensor:
        """Positions at which both have read the same bytes, ``(N, P, 2)``."""
        return self._positions["pairs"]

    @functools.cached_property
    def _plans(self) -> dict[str, mlot.TextPlan]:
        return {name: self.vocabulary.plan(name) for name in ("canonical", "longest")}  # type: ignore[arg-type]

    def text(self, index: Tensor, variant: Mapping[str, object] | None = None) -> mlot.TextPositions:
        """Where the student reads in some windows, for a variant of the plan."""
        variant = variant or {}
        rows = self.rows[index].clone()
        if not variant.get("inside", True):
            rows[rows[..., _DEPTH] > 0] = -1
        if not variant.get("chain", True):
            rows[..., _CHAIN] = rows[..., _CHAIN].clamp(max=1)
        ids = self.material.tokens(self.tokenizer, "student", "teacher").ids[index]
        return mlot.TextPositions(rows, ids, self._plans[str(variant.get("reading", "canonical"))])

    def _targets(self, name: str, logits: Tensor, index: Tensor) -> mlot.TextTargets:
        variant = VARIANTS[name]
        labels = [
            self.material.tokens(self.tokenizer, "student", side).labels[index]
            for side in ("student", "teacher")
        ]
        student, teacher = map(mlot.mask_from_labels, labels)
        return mlot.text_targets(
            logits,
            self.text(index, variant),
            student_mask=student,
            teacher_mask=teacher,
            k=int(str(variant.get("k", self.material.size.targets))),
            temperature=float(str(variant.get("temperature", 1.0))),
        )

    # --- what is kept -----------------------------------------------------------------------------------

    def _write(
        self,
        traces: list[mlot.Traces],
        targets: Mapping[str, list[mlot.TextTargets]],
        logits: list[np.ndarray],
    ) -> None:
        store.write(self.folder / "traces.safetensors", _join(traces).save)
        for name, parts in targets.items():
            if parts:
                joined = _join(parts)
                arrays = {
                    "ids": joined.ids.int(),
                    "log_probs": joined.log_probs,
                    "rest": joined.rest,
                    "served": joined.served,
                }
                store.write(self.folder / f"{name}.safetensors", functools.partial(save_file, arrays))
        if logits:
            store.write(self.folder / "logits.npy", lambda path: np.save(path, np.concatenate(logits)))

    @functools.cached_property
    def traces(self) -> mlot.Traces:
        """The heaviest columns of every window."""
        loaded = mlot.Traces.load(self.folder / "traces.safetensors")
        return loaded.map(lambda array: torch.as_tensor(array).to(self.device))

    @functools.cache  # noqa: B019 - a process has one for each tokenizer
    def targets(self, name: str) -> mlot.TextTargets:
        """What the teacher says in the student's tokens, by a variant of the plan."""
        arrays = load_file(self.folder / f"{name}.safetensors", device=str(self.device))
        size = self.vocabulary.student_vocab_size
        temperature = float(str(VARIANTS[name].get("temperature", 1.0)))
        return mlot.TextTargets(
            **{**arrays, "ids": arrays["ids"].long()}, vocab_size=size, temperature=temperature
        )

    @functools.cached_property
    def logits(self) -> Tensor:
        """Predictions about the windows of the compared amount, ``(N, T, V)`` in half precision."""
        kept = np.load(self.folder / "logits.npy", mmap_mode="c")
        return torch.from_numpy(kept) if self.device.type == "cpu" else torch.from_numpy(kept).to(self.device)

    @functools.cached_property
    def projection(self) -> StringProjection:
        """From one vocabulary to the other, by the strings alone."""
        sides = self.material.teacher_side, self.material.side(self.tokenizer)
        reverse = VocabularyMap.from_tokenizers(*(side.tokenizer for side in sides))
        return string_projection(reverse.plan("longest"))

    # --- what it writes ---------------------------------------------------------------------------------

    @functools.cached_property
    def written(self) -> Tokens:
        """Windows that the teacher wrote, in the student's tokens; each continues one of the others."""
        side, length = self.material.side(self.tokenizer), self.material.size.length
        rows = [row[:length] for row in side.read(store.read_json(self.folder / "written.json"))]
        return tokens_of(rows, max(map(len, rows)), side.pad).to(self.device)

    @torch.no_grad()
    def _written(self, model: Any, number: int) -> list[str]:
        """Have the teacher continue the beginnings of windows, sampling at temperature 1."""
        side = self.material.teacher_side
        text = self.material.tokens(self.tokenizer, "student", "teacher")[slice(number)]
        lengths = text.labels.ne(-100).sum(1) + 1
        given = int(lengths.max() * _PROMPT)
        prompts = text.ids[lengths > given, :given].repeat(_ROUNDS, 1)
        torch.manual_seed(_GENERATION_SEED)
        said: list[str] = []
        for some in prompts.split(256):
            rows = model.generate(
                some,
                attention_mask=torch.ones_like(some),
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                max_new_tokens=text.ids.shape[1] - given,
                pad_token_id=side.pad,
            )
            texts = [side.tokenizer.decode(row, skip_special_tokens=True) for row in rows[:, 1:].tolist()]
            said += [one.rstrip("\ufffd") for one in texts]
        return said


def _join(parts: Any) -> Any:
    """Traces or targets of several batches as one."""
    first = parts[0]
    names = [field.name for field in fields(first) if isinstance(getattr(first, field.name), Tensor)]
    return replace(first, **{name: torch.cat([getattr(part, name) for part in parts]) for name in names})
