"""Fingerprints: the same for a copy, different for whatever changes what a tokenizer or a model does."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from mlot.saved import fingerprint, model_fingerprint
from saved_models import llama
from tokenizer_cases import ALL, tokenizer


def copied(made: Tokenizer) -> Tokenizer:
    return Tokenizer.from_str(made.to_str())


@pytest.mark.parametrize("name", ALL)
def test_a_copy_has_the_same(name: str, tmp_path: Path) -> None:
    """Copied, written to a file, wrapped for transformers, and loaded again in every way."""
    made = tokenizer(name)
    want = fingerprint(made)
    assert fingerprint(copied(made)) == want
    made.save(str(tmp_path / "one.json"))
    assert fingerprint(Tokenizer.from_file(str(tmp_path / "one.json"))) == want
    wrapped = PreTrainedTokenizerFast(tokenizer_object=copied(made))
    assert fingerprint(wrapped) == want
    wrapped.save_pretrained(tmp_path / "folder")
    assert fingerprint(PreTrainedTokenizerFast.from_pretrained(tmp_path / "folder")) == want
    assert fingerprint(AutoTokenizer.from_pretrained(tmp_path / "folder")) == want


def test_different_tokenizers_differ() -> None:
    assert len({fingerprint(tokenizer(name)) for name in ALL}) == len(ALL)


def test_what_a_call_sets_does_not_matter() -> None:
    made = PreTrainedTokenizerFast(
        tokenizer_object=copied(tokenizer(ALL[0])), eos_token="</s>", pad_token="<s>"
    )
    want = fingerprint(made)
    made(["a b", "c"], padding="max_length", truncation=True, max_length=7)
    assert fingerprint(made) == want
    made.pad_token = made.eos_token
    made.padding_side = "left"
    made.model_max_length = 3
    assert fingerprint(made) == want


def _add(made: Tokenizer) -> None:
    made.add_tokens(["brandnewtoken"])


def _add_special(made: Tokenizer) -> None:
    made.add_special_tokens(["<new>"])


def _normalize(made: Tokenizer) -> None:
    made.normalizer = normalizers.Lowercase()


def _split(made: Tokenizer) -> None:
    made.pre_tokenizer = pre_tokenizers.Digits(individual_digits=True)


def _frame(made: Tokenizer) -> None:
    made.post_processor = processors.TemplateProcessing(single="a $A", special_tokens=[("a", 0)])


CHANGES = {
    "add": _add,
    "add special": _add_special,
    "normalize": _normalize,
    "split": _split,
    "frame": _frame,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_shows(change: str) -> None:
    for name in ALL[:3]:
        made = copied(tokenizer(name))
        want = fingerprint(made)
        CHANGES[change](made)
        assert fingerprint(made) != want
        assert fingerprint(PreTrainedTokenizerFast(tokenizer_object=made)) != want


def test_swapped_tokens_and_merges_show() -> None:
    def bpe(vocabulary: list[str], merges: list[tuple[str, str]]) -> Tokenizer:
        return Tokenizer(models.BPE({token: n for n, token in enumerate(vocabulary)}, merges))

    base = (["a", "b", "c", "ab", "bc"], [("a", "b"), ("b", "c")])
    variants = [
        bpe(*base),
        bpe(["a", "b", "c", "bc", "ab"], base[1]),
        bpe(base[0], base[1][::-1]),
        bpe(base[0], base[1][:1]),
    ]
    assert len(set(map(fingerprint, variants))) == 4
    flags = [AddedToken("x"), AddedToken("x", lstrip=True), AddedToken("x", special=True)]
    found = set()
    for flag in flags:
        made = bpe(*base)
        made.add_tokens([flag])
        found.add(fingerprint(made))
    assert len(found) == 3


def test_merges_written_as_strings_are_the_same() -> None:
    """As earlier versions of the tokenizers library wrote them."""
    made = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))

    class Earlier:
        def to_str(self) -> str:
            content = json.loads(made.to_str())
            content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
            return json.dumps(content)

        def id_to_token(self, _: int) -> None:
            return None

    assert fingerprint(Earlier()) == fingerprint(made)


def _bert(folder: Path, *words: str, **settings: object) -> BertTokenizerLegacy:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]", *words]))
    return BertTokenizerLegacy(str(folder / "vocab.txt"), **settings)


def test_slow_tokenizers(tmp_path: Path) -> None:
    words = ["the", "fox", "quick", "brown", "##s", "lower", "upper", "UPPER"]
    made = _bert(tmp_path / "a", *words)
    want = fingerprint(made)
    made.save_pretrained(tmp_path / "copy")
    assert fingerprint(BertTokenizerLegacy.from_pretrained(tmp_path / "copy")) == want
    made.add_tokens(["brandnewtoken"])
    others = [
        made,
        _bert(tmp_path / "b", "fox", "the", *words[2:]),
        _bert(tmp_path / "c", *words, "more"),
        _bert(tmp_path / "d", *words, do_lower_case=False),
        ByT5Tokenizer(),
        ByT5Tokenizer(extra_ids=5),
    ]
    assert len({want, *map(fingerprint, others)}) == 1 + len(others)
    assert fingerprint(ByT5Tokenizer()) == fingerprint(ByT5Tokenizer())


def test_no_tokenizer() -> None:
    for value in (None, "gpt2", llama):
        with pytest.raises(
            TypeError, match="^tokenizer: expected one of the transformers or tokenizers library"
        ):
            fingerprint(value)


def test_models(tmp_path: Path) -> None:
    model = llama()
    want = model_fingerprint(model)
    model.save_pretrained(tmp_path)
    assert model_fingerprint(LlamaForCausalLM.from_pretrained(tmp_path)) == want
    assert model_fingerprint(model.train()) == want
    found = {want, model_fingerprint(llama().bfloat16())}
    for name in ("model.norm.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"):
        other = llama()
        with torch.no_grad():
            other.state_dict()[name].view(-1)[0] += 1e-3
        found.add(model_fingerprint(other))
    same = llama()
    same.config.pad_token_id, same.config.use_cache = 3, False
    assert model_fingerprint(same) == want
    for name, value in (("rms_norm_eps", 1e-3), ("rope_theta", 77.0)):
        other = llama()
        setattr(other.config, name, value)
        found.add(model_fingerprint(other))
    assert len(found) == 7
    with pytest.raises(TypeError, match="^model: expected a torch module, got function"):
        model_fingerprint(llama)
