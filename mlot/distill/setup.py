"""What a run starts from: both models, and the text in the tokens of both."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlot import Traces, mask_from_labels
from mlot._examples import Example, read_examples
from mlot._hf.loading import load_model, load_tokenizer, require_length
from mlot._hf.made import make_llama, standard_library_documents, train_bpe, train_unigram
from mlot._hf.tokenizers import start_token, token_ids
from mlot.align import AlignmentReport, byte_ranges, report
from mlot.distill.arguments import Settings
from mlot.distill.errors import DistillError, refusing
from mlot.distill.options import Options, typed
from mlot.distill.party import Party
from mlot.saved import SavedTeacher, fingerprint
from mlot.training._corpus import Corpus, split_corpus, split_text
from mlot.training._windows import Examples, make_pieces

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
        train = replace(self.train, student=self.train.student.with_keys())
        held_out = replace(self.held_out, student=self.held_out.student.with_keys())
        return replace(self, saved=saved, train=train, held_out=held_out)

    def digest(self) -> str:
        """Digest of the text, as both tokenizers cut it."""
        made = blake2b(digest_size=16)
        for piece in (*self.train.student.pieces, *self.held_out.student.pieces):
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
        student, teacher = self.student.tokenizer, self.teacher.tokenizer
        return report(*ranges, student_vocabulary=student, teacher_vocabulary=teacher)

    def describe_text(self, source: Sequence[str] | None) -> dict[str, Any]:
        """Source and sizes of the text."""
        library = f"docstrings of the standard library of Python {platform.python_version()}"
        sizes = {
            name: {
                "documents": len(documents),
                "bytes": sum(len(document.text.encode("utf-8")) for document in documents),
                "windows": len(sides.student),
            }
            for name, documents, sides in (
                ("train", self.corpus.train, self.train),
                ("held_out", self.corpus.held_out, self.held_out),
            )
        }
        return {"source": ", ".join(source) if source else library} | sizes

    def taught(self, sides: Sides, indices: Sequence[int]) -> tuple[Tensor | Traces, Tensor | None]:
        """The teacher's predictions for some examples, and the mask of those that count."""
        if self.saved is not None:
            keys = [sides.student[n]["teacher_key"] for n in indices]
            return self.saved.batch(keys, backend="torch"), None
        model: Any = self.teacher.model
        made = sides.teacher.collator([sides.teacher[n] for n in indices])
        inputs = {name: made[name].to(model.device) for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            logits = model.eval()(**inputs).logits
        return logits, mask_from_labels(made["labels"].to(model.device))

    def indices_with_teacher(self, sides: Sides) -> list[int]:
        """Examples that the teacher has predictions for."""
        if self.saved is None:
            return list(range(len(sides.student)))
        keys = sides.student.keys()
        missing = set(self.saved.missing(keys))
        return [n for n, key in enumerate(keys) if key not in missing]


def read_documents(paths: Sequence[str | Path]) -> list[Example]:
    """Read files: of text, which is split into documents, and of examples, each of which is a document.

    Raises:
        DistillError: there is no such file, it cannot be read, or nothing in it is to be learnt.
    """
    with refusing():
        documents = read_examples(paths, "--text", cut=split_text)
    learnt = [each for each in documents if each.text.strip()]
    if not learnt:
        shown = ", ".join(repr(str(path)) for path in paths)
        raise DistillError(f"--text: expected some text to learn, but {shown} has none")
    return learnt


def prepare(settings: Settings) -> Setup:
    """Read the text, then make or read tokenizers and models, all before anything that takes time.

    Raises:
        DistillError: something of that cannot be done.
    """
    options = settings.options
    documents: Sequence[Any] = read_documents(options.text) if options.text else standard_library_documents()
    with refusing(typed):
        if options.eval_file is None:
            corpus = split_corpus(documents, options.held_out, settings.arguments.seed)
        else:
            corpus = Corpus.of(documents, read_documents(options.eval_file))
        return _made(settings, corpus) if options.made_here else _loaded(settings, corpus)


def _made(settings: Settings, corpus: Corpus) -> Setup:
    """Train tokenizers on the training part of the text, and make models for them."""
    options, seed, length = settings.options, settings.arguments.seed, settings.options.length
    texts = corpus.train_texts
    tokenizers = (
        train_unigram(texts, options.student_vocabulary, length),
        train_bpe(texts, options.teacher_vocabulary, length),
    )
    student = make_llama(
        tokenizers[0],
        width=options.student_width,
        layers=options.student_layers,
        length=length,
        seed=seed + 1,
    )
    teacher = make_llama(
        tokenizers[1], width=options.teacher_width, layers=options.teacher_layers, length=length, seed=seed
    )
    return _together(
        options,
        corpus,
        Party("teacher", teacher, tokenizers[1]),
        Party("student", student, tokenizers[0]),
        [],
    )


def _loaded(settings: Settings, corpus: Corpus) -> Setup:
    """Read models and tokenizers from their folders or the cache."""
    options = settings.options
    saved = None
    if options.saved_teacher is not None:
        with refusing("--saved-teacher"):
            saved = SavedTeacher(options.saved_teacher)
    with refusing():
        # The student is trained, and wants float32 for that; the teacher is only read.
        teacher_source, student_source = str(options.teacher), str(options.student)
        model = None
        if saved is None:
            model, tokenizer, notices = load_model(teacher_source, "--teacher")
            require_length(model, "--teacher", options.length, "--length")
        else:
            tokenizer, notices = load_tokenizer(teacher_source, "--teacher")
        teacher = Party("teacher", model, tokenizer)
        model, tokenizer, more = load_model(student_source, "--student", dtype=torch.float32)
        require_length(model, "--student", options.length, "--length")
    if saved is not None:
        with refusing("--saved-teacher"):
            saved.manifest.require({"tokenizer_fingerprint": fingerprint(teacher.tokenizer)}, saved.folder)
            saved.manifest.serves(settings.arguments.ot_config())
    setup = _together(options, corpus, teacher, Party("student", model, tokenizer), notices + more)
    if saved is None:
        return setup
    setup = setup.with_saved(saved)
    keys = setup.train.student.keys()
    missing = saved.missing(keys)
    if missing:
        raise DistillError(
            f"--saved-teacher: expected all {len(set(keys)):,} windows to train on in {str(saved.folder)!r}, "
            f"{len(missing):,} are missing; it was saved from other text, or with another --length, --seed "
            "or --held-out"
        )
    return setup


def _together(options: Options, corpus: Corpus, teacher: Party, student: Party, notices: list[str]) -> Setup:
    notices = notices + _set_template(options.chat_template, teacher, student)
    both, length = (student.tokenizer, teacher.tokenizer), options.length
    sides = []
    for name, documents, mark_end in (("train", corpus.train, True), ("held-out", corpus.held_out, False)):
        examples = Examples(make_pieces(documents, *both, length, mark_end=mark_end), *both, length)
        cut = examples.settle()
        if cut.cut or cut.empty:
            notices = [*notices, f"--length: of the {name} part, {cut}"]
        if not len(examples):
            raise DistillError(f"--text: expected examples with something to learn, found none: {cut}")
        sides.append(Sides(examples, Examples(examples.pieces, both[1], both[0], length)))
    for party in (teacher, student):
        notices = notices + party.unfaithful(sides[1].student.pieces)
    return Setup(teacher, student, corpus, sides[0], sides[1], None, notices)


def _set_template(given: str | None, teacher: Party, student: Party) -> list[str]:
    """Give the student the chat template that was asked for, and the teacher, if it has none."""
    if given is None:
        return []
    if given == "teacher":
        template = teacher.tokenizer.chat_template
        if template is None:
            raise DistillError("--chat-template: expected a teacher with a chat template, got one without")
    elif Path(given).is_file():
        template = Path(given).read_text(encoding="utf-8")
    else:
        raise DistillError(f"--chat-template: expected a file or 'teacher', found none at {given!r}")
    replaced = student.tokenizer.chat_template not in (None, template)
    student.tokenizer.chat_template = template
    if teacher.tokenizer.chat_template is None:
        teacher.tokenizer.chat_template = template
    return ["--chat-template: it replaces the one that the student's tokenizer has"] if replaced else []
