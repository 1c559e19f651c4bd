"""What a tokenizer tells about its tokens, whichever library it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from mlot.align._scheme import Scheme, declared

#: Tokens that stand for no text, whatever else they are declared to be.
_ROLES = ("bos", "eos", "sep", "cls", "mask")


class Reader:
    """One face for fast tokenizers (tokenizers, transformers) and slow ones (``convert_ids_to_tokens``).

    Attributes:
        tokenizer: as it was given.
        backend: the ``tokenizers.Tokenizer`` of a fast one.
        fast: whether the tokenizer gives offsets.
        scheme: how its token strings spell bytes, or ``None`` where that must be tried on a text.
        added: strings of added tokens by id; text spells them as they are.
        special: ids of special tokens, the unknown token left out.
        unknown: ids of unknown tokens; one that is also bos or eos, as GPT-2 has it, is special instead.
        padding: the id among ``unknown`` that pads, too.
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
        self.tokenizer, self.backend = tokenizer, backend
        self.fast = backend is not None
        self.scheme: Scheme | None = None if backend is None else declared(backend)
        declared_special = tuple(getattr(tokenizer, "all_special_ids", ()))
        self.added, special = _remembered(tokenizer, backend, declared_special)
        special = special.union(declared_special)
        named = {i for i in special if "unk" in str(self.added.get(i, "")).lower()}
        unknown = self.role("unk")
        self.unknown: set[int] = named if unknown is None else named | {unknown}
        self.unknown -= {i for i in map(self.role, _ROLES) if i is not None}
        pad = self.role("pad")
        self.padding = self.unknown & {pad} if pad is not None else set()
        self.special = special - self.unknown

    def role(self, name: str) -> int | None:
        """Id of the token that is declared to be ``bos``, ``eos``, ``unk``, and so on."""
        found = getattr(self.tokenizer, f"{name}_token_id", None)
        return None if found is None else int(found)

    def encode(self, text: str, add_special_tokens: bool) -> Any:
        """An encoding with ids, offsets and a mask of special tokens; of a slow tokenizer, the ids alone."""
        if not self.fast:
            if not hasattr(self.tokenizer, "encode"):
                raise TypeError(
                    f"ids: expected token ids, since {type(self.tokenizer).__name__} has no encode"
                )
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        if self.tokenizer is self.backend:
            return self.backend.encode(text, add_special_tokens=add_special_tokens)
        return self.tokenizer(text, add_special_tokens=add_special_tokens, verbose=False).encodings[0]

    def tokens(self, ids: Iterable[int]) -> list[str | bytes | None]:
        """Strings of some ids, ``None`` for ids that have none."""
        if self.fast:
            assert self.backend is not None
            return [self.backend.id_to_token(i) for i in ids]
        return list(self.tokenizer.convert_ids_to_tokens(list(ids)))

    def vocabulary(self) -> list[str]:
        """All ordinary tokens."""
        words = (self.tokenizer if self.backend is None else self.backend).get_vocab()
        return [word for word, i in words.items() if i not in self.added and i not in self.special]


#: Added tokens of wrappers that live, and what would tell that they have changed: some have thousands.
_ADDED: WeakKeyDictionary[Any, tuple[Any, dict[int, str], set[int]]] = WeakKeyDictionary()


def _remembered(tokenizer: Any, backend: Any, special: tuple[int, ...]) -> tuple[dict[int, str], set[int]]:
    if backend is None or backend is tokenizer:
        return _added(tokenizer)
    state = (id(backend), backend.get_vocab_size(), special)
    try:
        known = _ADDED.get(tokenizer)
        if known is None or known[0] != state:
            known = _ADDED[tokenizer] = (state, *_added(backend))
    except TypeError:  # it cannot be referred to weakly, or has no hash
        return _added(backend)
    return known[1:]


def _added(tokenizer: Any) -> tuple[dict[int, str], set[int]]:
    """Strings of added tokens, and the ids of those that are special."""
    getter = getattr(tokenizer, "get_added_tokens_decoder", None)
    found = getter() if callable(getter) else getattr(tokenizer, "added_tokens_decoder", None)
    if not isinstance(found, Mapping):  # some wrappers have a method of this name that raises
        return {}, set()
    return (
        {i: str(getattr(token, "content", token)) for i, token in found.items()},
        {i for i, token in found.items() if getattr(token, "special", False)},
    )
