"""What a tokenizer tells about its tokens, whichever library it comes from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mlot.align._scheme import Scheme, declared


class Reader:
    """One face for fast tokenizers (tokenizers, transformers) and slow ones (``convert_ids_to_tokens``).

    Attributes:
        fast: whether the tokenizer gives offsets.
        scheme: how its token strings spell bytes, or ``None`` where that must be tried on a text.
        added: strings of added tokens by id; text spells them as they are.
        special: ids of special tokens, the unknown token left out.
        unknown: ids of unknown tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None and hasattr(tokenizer, "id_to_token") and hasattr(tokenizer, "encode"):
            backend = tokenizer
        if backend is None and not hasattr(tokenizer, "convert_ids_to_tokens"):
            raise TypeError(
                "tokenizer: expected one of the tokenizers or transformers library, or an object with "
                f"convert_ids_to_tokens, got {type(tokenizer).__name__}"
            )
        self._tokenizer, self._backend = tokenizer, backend
        self.fast = backend is not None
        self.scheme: Scheme | None = None if backend is None else declared(backend)
        self.added, special = _added(tokenizer if backend is None else backend)
        special |= set(getattr(tokenizer, "all_special_ids", ()))
        named = {i for i in special if "unk" in str(self.added.get(i, "")).lower()}
        declared_unknown: int | None = getattr(tokenizer, "unk_token_id", None)
        self.unknown: set[int] = named if declared_unknown is None else named | {declared_unknown}
        self.special = special - self.unknown

    def encode(self, text: str, add_special_tokens: bool) -> Any:
        """An encoding with ids, offsets and a mask of special tokens; of a slow tokenizer, the ids alone."""
        if not self.fast:
            if not hasattr(self._tokenizer, "encode"):
                raise TypeError(
                    f"ids: expected token ids, since {type(self._tokenizer).__name__} has no encode"
                )
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        if self._tokenizer is self._backend:
            return self._backend.encode(text, add_special_tokens=add_special_tokens)
        return self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False).encodings[0]

    def tokens(self, ids: Iterable[int]) -> list[str | bytes | None]:
        """Strings of some ids, ``None`` for ids that have none."""
        if self.fast:
            assert self._backend is not None
            return [self._backend.id_to_token(i) for i in ids]
        return list(self._tokenizer.convert_ids_to_tokens(list(ids)))

    def vocabulary(self) -> list[str]:
        """All ordinary tokens."""
        words = (self._tokenizer if self._backend is None else self._backend).get_vocab()
        return [word for word, i in words.items() if i not in self.added and i not in self.special]


def _added(tokenizer: Any) -> tuple[dict[int, str], set[int]]:
    """Strings of added tokens, and the ids of those that are special."""
    getter = getattr(tokenizer, "get_added_tokens_decoder", None)
    found = getter() if callable(getter) else getattr(tokenizer, "added_tokens_decoder", None) or {}
    return (
        {i: str(getattr(token, "content", token)) for i, token in found.items()},
        {i for i, token in found.items() if getattr(token, "special", False)},
    )
