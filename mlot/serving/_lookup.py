"""Ids of tokens that are given as text or bytes, as each kind of server writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from mlot.align._reader import Reader
from mlot.align._scheme import Scheme, guess
from mlot.serving._values import shown

UNKNOWN: Final = -1
AMBIGUOUS: Final = -2

_ESCAPED = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
#: Texts of responses that are kept in memory.
_MOST_REMEMBERED = 1 << 20
_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
#: What transformers' clean-up of spaces changes, where a tokenizer's configuration asks for it.
_CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")

#: Ids of each text.
Table = dict[str, tuple[int, ...]]


class Remembered(dict[str, int]):
    """A number for each text, made when it is first asked for."""

    def __init__(self, make: Callable[[str], int]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, text: str) -> int:
        value = self._make(text)
        if len(self) < _MOST_REMEMBERED:
            self[text] = value
        return value


class Lookup:
    """Ids of tokens by bytes, and by text in each of the ways in which servers write tokens.

    - *pieces*: what the token spells, with its leading space (llama.cpp, Ollama, OpenAI, newer vLLM);
    - *decoded*: what the tokenizer's decoder makes of it alone (SGLang, vLLM before July 2026), which strips
      leading spaces in vocabularies of the SentencePiece kind, and *cleaned* of spaces before punctuation;
    - *spelled*: the vocabulary's own spelling (vLLM 0.8).

    A text stands for the tokens that any way gives it that explains all texts of a response; where none
    explains all, for one that all ways give it. Byte tokens (``<0x2C>``) give way to the piece of the same
    text, since no text is tokenized to them.
    """

    def __init__(self, by_bytes: dict[bytes, tuple[int, ...]], pieces: Table, *ways: Table) -> None:
        self.by_bytes = by_bytes
        self.ways = (pieces, *(way for way in ways if way != pieces))
        self._ids: dict[tuple[int, bool, bool], Remembered] = {}
        self._explaining = Remembered(self._ways_of)

    @staticmethod
    def of(vocabulary: Any) -> Lookup:
        """The one of a tokenizer, or of a mapping of text or bytes to ids; kept for the next call.

        Raises:
            TypeError: ``vocabulary`` is neither.
        """
        if vocabulary is None:
            return Lookup({}, {})
        if isinstance(vocabulary, Mapping):
            return _remembered(vocabulary, dict(vocabulary), _of_mapping)
        if not hasattr(vocabulary, "get_vocab"):
            raise TypeError(
                "vocabulary: expected a tokenizer, or a mapping of text or bytes to ids, "
                f"got {type(vocabulary).__name__}"
            )
        reader = Reader.of(vocabulary)
        # A slow tokenizer does not tell whether it has changed.
        content = dict(vocabulary.get_vocab()) if reader.state() is None else reader
        return _remembered(vocabulary, content, lambda *_: _of_tokenizer(reader))

    def finder(
        self, texts: Iterable[str] = (), *, pieces: bool = False, exact: bool = False
    ) -> Mapping[str, int]:
        """The id of each text of one response, `UNKNOWN`, or `AMBIGUOUS`.

        Args:
            texts: those that name a token, without a byte of it being given.
            pieces: whether the server is known to write pieces.
            exact: whether the response shows that bytes which it gives are the token's own.
        """
        alive, certain = 1, True
        if not (pieces or exact) and len(self.ways) > 1:
            every = alive = (1 << len(self.ways)) - 1
            for ways in map(self._explaining.__getitem__, texts):
                if ways:
                    alive &= ways
            if not alive:
                alive, certain = every, False
        ids = self._ids.get((alive, certain, exact))
        if ids is None:
            of = [way for n, way in enumerate(self.ways) if alive >> n & 1]
            ids = Remembered(lambda text: self._id(text, of, certain, exact))
            self._ids[alive, certain, exact] = ids
        return ids

    def _ways_of(self, text: str) -> int:
        """Which ways explain a text, one bit each; none where it shows nothing."""
        if not text or _REPLACEMENT in text:
            return 0
        return sum((text in way) << n for n, way in enumerate(self.ways))

    def find_bytes(self, raw: bytes) -> int:
        """The id of bytes that are known to be a token's own."""
        return _only(self.by_bytes.get(raw, ()))

    def _id(self, text: str, ways: Sequence[Table], certain: bool, exact: bool) -> int:
        if match := _ESCAPED.fullmatch(text):
            return self.find_bytes(bytes.fromhex(match[1].replace("\\x", "")))
        # Pieces of characters look alike, and so does what is not shown.
        if not text or (_REPLACEMENT in text and not exact):
            return AMBIGUOUS
        given = [way.get(text, ()) for way in ways]
        if not certain and any(ids != given[0] for ids in given):
            return AMBIGUOUS
        return _only({i for ids in given for i in ids})


def _only(ids: Iterable[int]) -> int:
    given = tuple(ids)
    return UNKNOWN if not given else given[0] if len(given) == 1 else AMBIGUOUS


#: Look-ups made last, by identity of the vocabulary, each with what it was made of.
_MADE: dict[int, tuple[Any, Any, Lookup]] = {}
_REMEMBERED = 8


def _remembered(vocabulary: Any, content: Any, make: Callable[[Any, Any], Lookup]) -> Lookup:
    """The look-up made before of the same vocabulary, where nothing of it has changed."""
    made = _MADE.get(id(vocabulary))
    if made is None or made[0] is not vocabulary or not (made[1] is content or made[1] == content):
        made = (vocabulary, content, make(vocabulary, content))
        _MADE.pop(id(vocabulary), None)
        _MADE[id(vocabulary)] = made
        for old in list(_MADE)[:-_REMEMBERED]:
            _MADE.pop(old, None)
    return made[2]


def _of_mapping(_: Any, vocabulary: dict[Any, Any]) -> Lookup:
    by_bytes: dict[bytes, tuple[int, ...]] = {}
    pieces: Table = {}
    for token, i in vocabulary.items():
        if not isinstance(token, str | bytes) or isinstance(i, bool) or not isinstance(i, int):
            raise TypeError(
                f"vocabulary: expected text or bytes mapped to ids, got {shown(token)} mapped to {shown(i)}"
            )
        raw = token if isinstance(token, bytes) else token.encode("utf-8", "surrogatepass")
        by_bytes[raw] = (*by_bytes.get(raw, ()), i)
        if isinstance(token, str):
            pieces[token] = (i,)
    for raw, ids in by_bytes.items():
        if (text := _decoded(raw)) is not None:
            pieces.setdefault(text, ids)
    return Lookup(by_bytes, pieces)


def _of_tokenizer(reader: Reader) -> Lookup:
    tokenizer = reader.tokenizer if reader.backend is None else reader.backend
    spellings: dict[int, str | bytes] = {i: token for token, i in tokenizer.get_vocab().items()}
    scheme = guess(spellings.values()) if reader.scheme is None else reader.scheme
    by_bytes: dict[bytes, tuple[int, ...]] = {}
    tables = pieces, spelled, decoded, cleaned = {}, {}, {}, {}  # type: tuple[Table, Table, Table, Table]
    alone = _alone(reader, scheme, spellings)
    cleans = getattr(reader.tokenizer, "clean_up_tokenization_spaces", False) is True
    last: list[tuple[int, tuple[str | None, ...]]] = []
    for i, token in spellings.items():
        raw = _surface(reader, scheme, i, token)
        by_bytes[raw] = (*by_bytes.get(raw, ()), i)
        written = token if isinstance(token, str) else _decoded(raw)
        texts: tuple[str | None, ...]
        texts = (_decoded(raw), written, alone.get(i), _clean(alone.get(i)) if cleans else None)
        if isinstance(token, str) and _BYTE_TOKEN.fullmatch(token) and alone.get(i) != token:
            last.append((i, texts))
            continue
        for table, text in zip(tables, texts, strict=True):
            if text is not None:
                table[text] = (*table.get(text, ()), i)
    for i, texts in last:
        for table, text in zip(tables, texts, strict=True):
            if text is not None:
                table.setdefault(text, (i,))
    return Lookup(by_bytes, pieces, spelled, *(each for each in (decoded, cleaned) if each))


def _surface(reader: Reader, scheme: Scheme, i: int, token: str | bytes) -> bytes:
    if i not in reader.added and i not in reader.special:
        return scheme.surface(token)
    content = reader.added.get(i, str(token))
    return (content.replace(scheme.space, " ") if scheme.space else content).encode("utf-8", "surrogatepass")


def _alone(reader: Reader, scheme: Scheme, spellings: Mapping[int, str | bytes]) -> dict[int, str]:
    """What a decoder makes of each token alone."""
    ids = list(spellings)
    if reader.backend is not None:
        each = reader.backend.decode_batch([[i] for i in ids], skip_special_tokens=False)
        return dict(zip(ids, each, strict=True))
    if not scheme.space:
        return {}
    # The decoders of SentencePiece take a leading space away.
    whole = {i: _decoded(_surface(reader, scheme, i, token)) for i, token in spellings.items()}
    return {i: text.removeprefix(" ") for i, text in whole.items() if text is not None}


def _clean(text: str | None) -> str | None:
    if text is not None:
        for mark in _CLEANED:
            text = text.replace(mark, mark.strip())
    return text


def _decoded(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None
