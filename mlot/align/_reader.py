"""What a tokenizer tells about its tokens, whichever library it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mlot.align._scheme import PARTS, Scheme, declared

#: Tokens that stand for no text, whatever else they are declared to be.
_ROLES = ("bos", "eos", "sep", "cls", "mask")
#: Readers of the fast tokenizers used last, by identity, each with the state that it has read.
_READ: dict[int, tuple[Reader, Any]] = {}
_REMEMBERED = 8


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

    @staticmethod
    def of(tokenizer: Any) -> Reader:
        """The reader of a tokenizer: the one made before, where nothing of a fast tokenizer has changed."""
        reader, state = _READ.pop(id(tokenizer), (None, None))
        if reader is None or reader.tokenizer is not tokenizer or state != reader.state():
            reader = Reader(tokenizer)
            state = reader.state()
        if state is not None:
            _READ[id(tokenizer)] = reader, state
            while len(_READ) > _REMEMBERED:
                _READ.pop(next(iter(_READ)))
        return reader

    def __init__(self, tokenizer: Any) -> None:
        backend = _backend(tokenizer)
        if backend is None and not hasattr(tokenizer, "convert_ids_to_tokens"):
            raise TypeError(
                "tokenizer: expected one of the tokenizers or transformers library, or an object with "
                f"convert_ids_to_tokens, got {type(tokenizer).__name__}"
            )
        self.tokenizer, self.backend = tokenizer, backend
        self.fast = backend is not None
        self.scheme: Scheme | None = None if backend is None else declared(backend)
        self.added, special = _added(tokenizer if backend is None else backend)
        special |= set(getattr(tokenizer, "all_special_ids", ()))
        named = {i for i in special if "unk" in str(self.added.get(i, "")).lower()}
        unknown = self.role("unk")
        self.unknown: set[int] = named if unknown is None else named | {unknown}
        self.unknown -= {i for i in map(self.role, _ROLES) if i is not None}
        pad = self.role("pad")
        self.padding = self.unknown & {pad} if pad is not None else set()
        self.special = special - self.unknown
        #: Ids after which a part of the text may begin.
        self.opening = self.added.keys() | self.special
        self._strings: dict[int, str | bytes | None] = {}
        self._surfaces: dict[Scheme, dict[int, bytes]] = {}
        # Where tokens that are added later would be.
        last = max(self.added, default=0) + 1
        self._later = () if backend is None else (backend.get_vocab_size(), last)

    def state(self) -> Any:
        """What differs once a fast tokenizer has been changed; ``None`` of what cannot tell."""
        backend = _backend(self.tokenizer)
        if backend is None:
            return None
        try:
            parts = [
                None if (part := getattr(backend, name, None)) is None else part.__getstate__()
                for name in PARTS
            ]
        except Exception:  # tokenizers raises a bare Exception for parts written in Python
            return None
        return (
            id(backend),
            parts,
            list(getattr(self.tokenizer, "all_special_ids", ())),
            dict(getattr(self.tokenizer, "special_tokens_map", {})),
            [backend.id_to_token(i) for i in self._later],
        )

    def role(self, name: str) -> int | None:
        """Id of the token that is declared to be ``bos``, ``eos``, ``unk``, and so on."""
        token_id = getattr(self.tokenizer, f"{name}_token_id", None)
        return None if token_id is None else int(token_id)

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
        if self.backend is None:
            spell = self.bytes_of
            if spell is not None:
                return [spell(i) for i in ids]
            return list(self.tokenizer.convert_ids_to_tokens(list(ids)))
        wanted = list(ids)
        for i in wanted:
            if i not in self._strings:
                self._strings[i] = self.backend.id_to_token(i)
        return list(map(self._strings.__getitem__, wanted))

    @property
    def bytes_of(self) -> Callable[[int], bytes] | None:
        """Bytes of an id, from Mistral's own tokenizers, whose strings lose pieces of characters."""
        inner = getattr(getattr(self.tokenizer, "tokenizer", None), "instruct_tokenizer", None)
        return getattr(getattr(inner, "tokenizer", None), "id_to_byte_piece", None)

    def surfaces(self, scheme: Scheme, tokens: Mapping[int, str | bytes | None]) -> dict[int, bytes]:
        """Bytes that the tokens of some ids stand for."""
        known = self._surfaces.setdefault(scheme, {}) if self.fast else {}
        for i, token in tokens.items():
            if i in known:
                continue
            if i in self.added:
                content = self.added[i]
                known[i] = (content.replace(scheme.space, " ") if scheme.space else content).encode()
            else:
                known[i] = b"" if token is None else scheme.surface(token)
        return known

    def spelled(self, scheme: Scheme, ids: Iterable[int]) -> dict[int, bytes]:
        """Bytes that ids of a fast tokenizer stand for."""
        lacking = list(set(ids).difference(self._surfaces.get(scheme, ())))
        return self.surfaces(scheme, dict(zip(lacking, self.tokens(lacking), strict=True)))

    def vocabulary(self) -> list[str]:
        """All ordinary tokens."""
        words = (self.tokenizer if self.backend is None else self.backend).get_vocab()
        return [word for word, i in words.items() if i not in self.added and i not in self.special]


def _backend(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None and hasattr(tokenizer, "id_to_token") and hasattr(tokenizer, "encode"):
        return tokenizer
    return backend


def _added(tokenizer: Any) -> tuple[dict[int, str], set[int]]:
    """Strings of added tokens, and the ids of those that are special."""
    getter = getattr(tokenizer, "get_added_tokens_decoder", None)
    decoder = getter() if callable(getter) else getattr(tokenizer, "added_tokens_decoder", None)
    if not isinstance(decoder, Mapping):  # some wrappers have a method of this name that raises
        return {}, set()
    return (
        {i: str(getattr(token, "content", token)) for i, token in decoder.items()},
        {i for i, token in decoder.items() if getattr(token, "special", False)},
    )
