"""A model together with its tokenizer, and what both can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from mlot._hf.tokenizers import start_token, token_ids
from mlot.distill import lora
from mlot.training._score import Score, evaluate_bits
from mlot.training._windows import Examples, Piece

_PROMPTS, _PROMPT_CHARACTERS, _NEW_TOKENS = 3, 40, 60


@dataclass(frozen=True, eq=False)
class Party:
    """A model with its tokenizer, as one of the two sides.

    Attributes:
        side: which of the two.
        model: a causal language model; ``None`` for a teacher that was saved earlier.
        tokenizer: its tokenizer, with a pad token.
    """

    side: Literal["student", "teacher"]
    model: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase

    def measure(self, examples: Examples, batch_size: int) -> Score | None:
        """Measure bits per byte, if there is a model."""
        return None if self.model is None else evaluate_bits(self.model, examples, batch_size)

    def bytes_per_token(self, examples: Examples) -> float:
        """Bytes of text over the tokens that stand for it; the examples are in this side's tokens."""
        rows = [examples[n] for n in range(len(examples))]
        tokens = sum(int(np.sum(row["text_mask"])) for row in rows)
        return sum(int(row["target_bytes"]) for row in rows) / max(tokens, 1)

    def unfaithful(self, pieces: Sequence[Piece]) -> list[str]:
        """Notice if the tokenizer cannot give back the text: less text needs fewer bits."""
        changed = 0
        for piece, ids in zip(pieces, token_ids(self.tokenizer, [p.text for p in pieces]), strict=True):
            text = cast(str, self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
            changed += text.strip() != piece.text.strip()
        if not changed:
            return []
        notice = f"the {self.side}'s tokenizer does not give back {changed} of {len(pieces)} held-out windows"
        return [f"{notice} as they were, so that its bits per byte cannot be compared with others'"]

    def samples(self, examples: Examples, length: int, seed: int) -> list[tuple[str, str]]:
        """Sample continuations of the first words of some documents, or answers to some prompts.

        Args:
            examples: of the documents, in this side's tokens.
            length: most tokens of prompt and continuation together.
            seed: of the draws.

        Returns:
            Pairs of prompt and continuation; none without a model.
        """
        if self.model is None:
            return []
        found = []
        for number, index in enumerate(_beginnings(examples.pieces)):
            prompt, ids = self._prompt(examples, index, length)
            tokens = torch.tensor([ids], device=self.model.device)
            set_seed(seed + number)
            generated = cast(Any, self.model).generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True,
                temperature=0.8,
                max_new_tokens=min(_NEW_TOKENS, length - len(ids)),
                pad_token_id=self.tokenizer.pad_token_id,
            )
            new = generated[0, len(ids) :].tolist()
            found.append((prompt, cast(str, self.tokenizer.decode(new, skip_special_tokens=True))))
        return found

    def _prompt(self, examples: Examples, index: int, length: int) -> tuple[str, list[int]]:
        """What to continue, as text and as tokens, which leave a quarter of the length free."""
        piece, most = examples.pieces[index], 3 * length // 4
        if piece.record is None:
            prompt = _first_words(piece.text)
            return prompt, [start_token(self.tokenizer), *token_ids(self.tokenizer, [prompt])[0]][:most]
        row = examples[index]
        first = next(n for n, label in enumerate(row["labels"]) if label != -100)
        ids = [int(token) for token in row["input_ids"][:first]][-most:]
        return cast(str, self.tokenizer.decode(ids, skip_special_tokens=True)), ids

    def save(self, folder: Path) -> None:
        """Write model and tokenizer as transformers reads them."""
        lora.save(self.model, folder)
        self.tokenizer.save_pretrained(folder)


def _beginnings(pieces: Sequence[Piece]) -> list[int]:
    """The first piece of each of some documents."""
    first: dict[int, int] = {}
    for n, piece in enumerate(pieces):
        first.setdefault(piece.document, n)
    return list(first.values())[:_PROMPTS]


def _first_words(text: str) -> str:
    start = text[:_PROMPT_CHARACTERS]
    cut = max(start.rfind(" "), start.rfind("\n"))
    return start[:cut] if cut > 0 else start
