"""A model together with its tokenizer, and what both can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from mlot.distill.data import Side, Window, tokens_of
from mlot.distill.evaluation import Score, evaluate_bits
from mlot.distill.vocabularies import start_token, token_ids

_PROMPTS, _PROMPT_CHARACTERS, _NEW_TOKENS = 3, 40, 60


@dataclass(frozen=True, eq=False)
class Party:
    """A model with its tokenizer, as one of the two sides.

    Attributes:
        side: which tokens of a window are its own.
        model: a causal language model.
        tokenizer: its tokenizer, with a pad token.
    """

    side: Side
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def pad_token_id(self) -> int:
        """The pad token."""
        return int(cast(int, self.tokenizer.pad_token_id))

    def measure(self, windows: Sequence[Window], batch_size: int, model: nn.Module | None = None) -> Score:
        """Measure bits per byte, of ``model`` where it stands for this one while it is trained."""
        model = self.model if model is None else model
        return evaluate_bits(model, windows, self.side, self.pad_token_id, batch_size)

    def bytes_per_token(self, windows: Sequence[Window]) -> float:
        """Bytes of text over the tokens that stand for it."""
        size = sum(len(window.text.encode("utf-8")) for window in windows)
        return size / sum(len(tokens_of(window, self.side)) - 1 for window in windows)

    def unfaithful(self, windows: Sequence[Window]) -> list[str]:
        """Notice if the tokenizer cannot give back the text: less text needs fewer bits."""
        changed = 0
        for window in windows:
            ids = list(tokens_of(window, self.side)[1:])
            text = cast(str, self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
            changed += text.strip() != window.text.strip()
        if not changed:
            return []
        notice = (
            f"the {self.side}'s tokenizer does not give back {changed} of {len(windows)} held-out windows"
        )
        return [f"{notice} as they were, so that its bits per byte cannot be compared with others'"]

    def samples(self, windows: Sequence[Window], length: int, seed: int) -> list[tuple[str, str]]:
        """Sample continuations of the first words of some documents.

        Args:
            windows: of the documents.
            length: most tokens of prompt and continuation together.
            seed: of the draws.

        Returns:
            Pairs of prompt and continuation.
        """
        beginnings: dict[int, str] = {}
        for window in windows:
            beginnings.setdefault(window.document, window.text)
        found = []
        for number, text in enumerate(list(beginnings.values())[:_PROMPTS]):
            prompt = _first_words(text)
            ids = [start_token(self.tokenizer), *token_ids(self.tokenizer, [prompt])[0]][: length // 2]
            tokens = torch.tensor([ids], device=self.model.device)
            set_seed(seed + number)
            generated = cast(Any, self.model).generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True,
                temperature=0.8,
                max_new_tokens=min(_NEW_TOKENS, length - len(ids)),
                pad_token_id=self.pad_token_id,
            )
            new = generated[0, len(ids) :].tolist()
            found.append((prompt, cast(str, self.tokenizer.decode(new, skip_special_tokens=True))))
        return found

    def save(self, folder: Path) -> None:
        """Write model and tokenizer as transformers reads them."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def _first_words(text: str) -> str:
    start = text[:_PROMPT_CHARACTERS]
    cut = max(start.rfind(" "), start.rfind("\n"))
    return start[:cut] if cut > 0 else start
