"""What a run starts from: both parties, and the text in the tokens of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from mlot import Traces, mask_from_labels
from mlot._hf.loading import load_model, load_tokenizer, require_length
from mlot._hf.tokenizers import start_token, token_ids
from mlot.align import AlignmentReport, byte_ranges, report
from mlot.distill.errors import DistillError, refusing
from mlot.distill.models import make_llama
from mlot.distill.options import Options
from mlot.distill.party import Party
from mlot.distill.pieces import Examples, make_pieces
from mlot.distill.text import Corpus, read_documents, split_corpus, standard_library_documents
from mlot.distill.vocabularies import train_bpe, train_unigram
from mlot.saved import SavedTeacher, fingerprint

#: Held-out pieces on which the alignment is reported.
_SAMPLE = 64


@dataclass(frozen=True, eq=False)
class Sides:
    """The same pieces in the tokens of both models."""

    student: Examples
    teacher: Examples


@dataclass(frozen=True, eq=False)
class Setup:
    """What a run starts from.

    Attributes:
        teacher: the teacher; without a model where it is saved.
        student: the student, where its training starts.
        corpus: documents.
        train: pieces to train on.
        held_out: pieces to measure on.
        saved: the teacher's predictions, where they were saved.
        notices: what a reader of the figures should know.
    """

    teacher: Party
    student: Party
    corpus: Corpus
    train: Sides
    held_out: Sides
    saved: SavedTeacher | None
    notices: list[str]

    def with_saved(self, saved: SavedTeacher) -> Setup:
        """The same with the teacher's predictions read from where they were saved."""
        return replace(
            self,
            saved=saved,
            train=replace(self.train, student=self.train.student.with_keys()),
            held_out=replace(self.held_out, student=self.held_out.student.with_keys()),
        )

    def digest(self) -> str:
        """Digest of the text, as both tokenizers cut it."""
        made = blake2b(digest_size=16)
        for pieces in (self.train.student.pieces, self.held_out.student.pieces):
            for piece in pieces:
                made.update(f"{piece.document} {piece.ends} {len(piece.text)} {piece.text}".encode())
        return made.hexdigest()

    def alignment(self) -> AlignmentReport:
        """How both tokenizations of a sample of the held-out text fit together."""
        texts = [piece.text for piece in self.held_out.student.pieces[:_SAMPLE]]
        ranges = [
            [
                byte_ranges(party.tokenizer, text, ids=[start_token(party.tokenizer), *ids])
                for text, ids in zip(texts, token_ids(party.tokenizer, texts), strict=True)
            ]
            for party in (self.student, self.teacher)
        ]
        return report(
            ranges[0],
            ranges[1],
            student_vocabulary=self.student.tokenizer,
            teacher_vocabulary=self.teacher.tokenizer,
        )

    def describe_text(self, source: str) -> dict[str, Any]:
        """Sizes of the text."""
        return {
            "source": source,
            "train": _sizes(self.corpus.train, self.train),
            "held_out": _sizes(self.corpus.held_out, self.held_out),
        }

    def taught(self, sides: Sides, indices: Sequence[int]) -> tuple[Tensor | Traces, Tensor | None]:
        """The teacher's predictions for some examples, and the mask of those that count."""
        if self.saved is not None:
            keys = [sides.student[n]["teacher_key"] for n in indices]
            return self.saved.batch(keys, backend="torch"), None
        model: Any = self.teacher.model
        made = sides.teacher.collator([sides.teacher[n] for n in indices])
        with torch.no_grad():
            logits = model.eval()(
                input_ids=made["input_ids"].to(model.device),
                attention_mask=made["attention_mask"].to(model.device),
            ).logits
        return logits, mask_from_labels(made["labels"].to(model.device))


def make(options: Options) -> Setup:
    """Train tokenizers on the training part of the text, and make models for them."""
    corpus, length = _corpus(options), options.length
    tokenizers = (
        train_unigram(corpus.train_texts, options.student_vocabulary, length),
        train_bpe(corpus.train_texts, options.teacher_vocabulary, length),
    )
    student = make_llama(
        tokenizers[0],
        width=options.student_width,
        layers=options.student_layers,
        length=length,
        seed=options.seed + 1,
    )
    teacher = make_llama(
        tokenizers[1],
        width=options.teacher_width,
        layers=options.teacher_layers,
        length=length,
        seed=options.seed,
    )
    return _together(
        options,
        corpus,
        Party("teacher", teacher, tokenizers[1]),
        Party("student", student, tokenizers[0]),
        [],
    )


def load(options: Options) -> Setup:
    """Read models and tokenizers from their folders, before anything that takes time."""
    assert options.teacher is not None
    assert options.student is not None
    corpus = _corpus(options)
    saved = None if options.saved_teacher is None else _open(options)
    # The student is trained, and wants float32 for that; the teacher is only read.
    with refusing():
        if saved is None:
            model, tokenizer, notices = load_model(options.teacher, "--teacher")
            require_length(model, "--teacher", options.length, "--length")
            teacher = Party("teacher", model, tokenizer)
        else:
            tokenizer, notices = load_tokenizer(options.teacher, "--teacher")
            teacher = Party("teacher", None, tokenizer)
            _require_fitting(saved, teacher, options)
        model, tokenizer, more = load_model(options.student, "--student", dtype=torch.float32)
        require_length(model, "--student", options.length, "--length")
    setup = _together(options, corpus, teacher, Party("student", model, tokenizer), notices + more)
    if saved is None:
        return setup
    setup = setup.with_saved(saved)
    require_examples(saved, setup.train.student, options)
    return setup


def _corpus(options: Options) -> Corpus:
    text = options.text
    documents: Sequence[Any] = standard_library_documents() if text is None else read_documents([text])
    return split_corpus(documents, options.held_out, options.seed)


def _together(options: Options, corpus: Corpus, teacher: Party, student: Party, notices: list[str]) -> Setup:
    both, length = (student.tokenizer, teacher.tokenizer), options.length
    sides = []
    for name, documents, mark_end in (("train", corpus.train, True), ("held-out", corpus.held_out, False)):
        pieces = make_pieces(documents, *both, length, mark_end=mark_end)
        examples = Examples(pieces, *both, length)
        cut = examples.settle()
        if cut.cut or cut.empty:
            notices = [*notices, f"--length: of the {name} part, {cut}"]
        if not len(examples):
            raise DistillError(f"--text: expected examples with something to learn, found none: {cut}")
        sides.append(Sides(examples, Examples(examples.pieces, both[1], both[0], length)))
    for party in (teacher, student):
        notices = notices + party.unfaithful(sides[1].student.pieces)
    return Setup(teacher, student, corpus, sides[0], sides[1], None, notices)


def _sizes(documents: Sequence[Any], sides: Sides) -> dict[str, int]:
    size = sum(len(document.text.encode("utf-8")) for document in documents)
    return {"documents": len(documents), "bytes": size, "windows": len(sides.student)}


# -- saved teachers ----------------------------------------------------------------------------------------


def _open(options: Options) -> SavedTeacher:
    with refusing("--saved-teacher"):
        return SavedTeacher(str(options.saved_teacher))


def _require_fitting(saved: SavedTeacher, teacher: Party, options: Options) -> None:
    """Refuse a saved teacher of another tokenizer, or with settings that do not serve the loss."""
    with refusing("--saved-teacher"):
        saved.manifest.require({"tokenizer_fingerprint": fingerprint(teacher.tokenizer)}, saved.folder)
        saved.manifest.serves(options.config())


def require_examples(saved: SavedTeacher, examples: Examples, options: Options) -> None:
    """Refuse a saved teacher that lacks windows to train on."""
    keys = [examples[n]["teacher_key"] for n in range(len(examples))]
    missing = saved.missing(keys)
    if missing:
        raise DistillError(
            f"--saved-teacher: expected all {len(set(keys)):,} windows to train on in {str(saved.folder)!r}, "
            f"{len(missing):,} are missing; it was saved from other text, or with another --length, --seed "
            "or --held-out"
        )
