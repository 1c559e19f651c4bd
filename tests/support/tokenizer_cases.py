"""Tokenizers of every kind, trained here, and the texts that they are tried on."""

from __future__ import annotations

import json
import random
from functools import cache

from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox doesn't.",
    "def add(x, y):\n    return x + y  # the sum\n\n\nprint(add(1, 22))\n",
    "Der Käse schmeckt süß, sagt die Großmutter, und naïve Cafés öffnen früh.",
    "日本語のテキストと中文文本在这里。日本の首都は東京です。",
    "Привет, мир! Как дела? Всё хорошо.",
    "smile 😀 😀😀 👍🏽 👨‍👩‍👧 flags 🇩🇪 🇯🇵 and e\u0301 a\u0308 marks",
    "हिन्दी में लिखा हुआ पाठ 한국어 텍스트 العربية",
]
_STEMS = "the quick brown fox jump over lazy dog return print sum naïve süß 東京 日本語 Привет мир hello world".split()
_random = random.Random(0)
_WORDS = [stem + _random.choice(["", "", "s", "ed", "ing", "er"]) for stem in _STEMS * 20]
CORPUS = [*SENTENCES * 8, *(" ".join(_random.choices(_WORDS, k=9)) for _ in range(200))]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACE = "▁"

#: Text with what breaks tokenizers: split characters, joiners, marks, forms to normalise, blanks of all kinds.
# fmt: off
_TRICKY = [
    "the ", "The", " fox", "  ", "\n", "\n\n", "\t", "\r\n", " ", "\u00a0", "\u3000", "\u200b", "\ufeff", "x", "22",
    "é", "e\u0301", "\u0301", "ß", "Ä", "İ", "ﬁ", "²", "㍿", "Ａ", "ｶﾞ", "\u1100\u1161\u11a8", "¨", "ﷺ", "½",
    "😀", "👍🏽", "👨\u200d👩\u200d👧", "🇩🇪", "日本", "東京です", "नि", "العربية", "한국", "\x00", "\x7f", "\u00ad", "\U0010ffff",
    "▁", "Ġ", "##", "<0x41>", "<s>", "</s>", "[UNK]", "[CLS]", "</w>", "@@", "def f(x):", "return", "'s",
]
# fmt: on
PIECES = st.one_of(st.text(max_size=6), st.sampled_from(_TRICKY))
TEXTS = st.lists(PIECES, max_size=14).map("".join)


def _train(tokenizer, trainer):
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _framed(tokenizer, first="<s>", last="</s>"):
    """Put special tokens around every text."""
    names = [(name, tokenizer.token_to_id(name)) for name in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=names
    )
    return tokenizer


def _byte_level(size, prefix, normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": ["<s>", "</s>"], "initial_alphabet": alphabet, "show_progress": False}
    return _train(tokenizer, trainers.BpeTrainer(vocab_size=size, **options))


def _trimmed(size, prefix, normalizer=None):
    """As GPT-2 and RoBERTa: offsets that leave spaces out."""
    tokenizer = _byte_level(size, prefix, normalizer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def _unigram(size, scheme, *, fallback=False, normalizer=None, words=False):
    tokenizer = Tokenizer(models.Unigram())
    metaspace = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=scheme != "first")
    split = [pre_tokenizers.WhitespaceSplit(), metaspace]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split) if words else metaspace
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    options = {"special_tokens": ["<unk>", "<s>", "</s>"], "unk_token": "<unk>", "show_progress": False}
    _train(tokenizer, trainers.UnigramTrainer(vocab_size=size, **options))
    if fallback:
        words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        scored = [(word, -float(i)) for word, i in words] + [(byte, -1000.0) for byte in BYTES]
        tokenizer.model = models.Unigram(scored, unk_id=0, byte_fallback=True)
    return tokenizer


def _llama(size, prepend=True):
    """BPE with byte fallback and no pre-tokenizer: spaces become marks in the normaliser."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    replace = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if prepend else replace
    special = ["<unk>", "<s>", "</s>"]
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    _train(tokenizer, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False))
    tokenizer.pre_tokenizer = None
    vocabulary = tokenizer.get_vocab()
    merges = _merges(tokenizer)
    vocabulary |= {byte: len(vocabulary) + n for n, byte in enumerate(BYTES)}
    tokenizer.model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prepend else steps)
    return tokenizer


def _merges(tokenizer):
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def _word_piece(size, **options):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**options)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    _train(tokenizer, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False))
    return _framed(tokenizer, "[CLS]", "[SEP]")


_MAKERS = {
    # What a text is made of is kept: ranges tile it.
    "byte_level": lambda: _byte_level(420, False),
    "byte_level_large": lambda: _framed(_byte_level(900, False)),
    "byte_level_prefix": lambda: _byte_level(500, True),
    "byte_level_trimmed": lambda: _trimmed(600, True),
    "llama": lambda: _framed(_llama(500)),
    "llama_no_prefix": lambda: _llama(350, prepend=False),
    "unigram": lambda: _framed(_unigram(300, "always")),
    "unigram_first": lambda: _unigram(250, "first"),
    "unigram_never": lambda: _unigram(280, "never"),
    "unigram_fallback": lambda: _unigram(260, "always", fallback=True),
    # Text is changed.
    "byte_level_nfkc": lambda: _byte_level(500, False, normalizers.NFKC()),
    "byte_level_nfc_trimmed": lambda: _trimmed(500, True, normalizers.NFC()),
    "byte_level_lower": lambda: _byte_level(
        500, False, normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])
    ),
    "unigram_nfkc": lambda: _unigram(
        300,
        "always",
        normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]),
    ),
    "unigram_words": lambda: _framed(_unigram(300, "always", normalizer=normalizers.NFKC(), words=True)),
    "unigram_strip": lambda: _unigram(300, "always", normalizer=normalizers.Strip()),
    "llama_lower": lambda: _lowered(_llama(500)),
    "word_piece": lambda: _word_piece(400),
    "word_piece_cased": lambda: _word_piece(400, lowercase=False, strip_accents=False),
}
BYTE_LEVEL = ["byte_level", "byte_level_large", "byte_level_prefix", "byte_level_trimmed"]
TILING = [
    *BYTE_LEVEL,
    "llama",
    "llama_no_prefix",
    "unigram",
    "unigram_first",
    "unigram_never",
    "unigram_fallback",
]
CHANGING = [name for name in _MAKERS if name not in TILING]
ALL = list(_MAKERS)


def _lowered(tokenizer):
    steps = [normalizers.Lowercase(), normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


@cache
def tokenizer(name):
    """Tokenizer of one kind, trained once."""
    return _MAKERS[name]()
