"""A tokenizer without offsets."""

from __future__ import annotations


class Slow:
    """A tokenizer without offsets: ids and their strings, and what is special."""

    def __init__(self, fast):
        self._fast = fast
        self.added_tokens_decoder = fast.get_added_tokens_decoder()
        self.all_special_ids = [i for i, token in self.added_tokens_decoder.items() if token.special]
        self.unk_token_id = next(
            (i for i, token in self.added_tokens_decoder.items() if "unk" in token.content.lower()), None
        )

    def convert_ids_to_tokens(self, ids):
        return [self._fast.id_to_token(i) for i in ids]

    def encode(self, text, add_special_tokens=True):
        return self._fast.encode(text, add_special_tokens=add_special_tokens).ids

    def get_vocab(self):
        return self._fast.get_vocab()
