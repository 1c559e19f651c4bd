"""What a run starts from: both models, and the text in the tokens of both."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from mlot._examples import Example, read_examples
from mlot._hf.loading import load_model, load_tokenizer, require_length
from mlot._hf.made import make_llama, standard_library_documents, train_bpe, train_unigram
from mlot._hf.tokenizers import start_token, token_ids
from mlot.align import AlignmentReport, VocabularyMap, byte_ranges, report
from mlot.distill.arguments import Settings
from mlot.distill.errors import DistillError, refusing
from mlot.distill.options import typed
from mlot.saved import SavedTeacher, fingerprint
from mlot.training._corpus import Corpus, split_corpus, split_text
from mlot.training._windows import Examples, make_pieces

#: Held-out pieces on which the alignment is reported.
_SAMPLE = 64


@dataclass(frozen=True, eq=False)
class ModelBundle:
    """A model, unless it is a teacher that was saved earlier, with its tokenizer."""

    model: Any
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Setup:
    """What a run starts from: models, documents, and windows of those to train on and to measure on.

    A teacher that is ``saved`` has no model. ``notices`` are what a reader of the figures should know.
    """

    teacher: ModelBundle
    student: ModelBundle
    corpus: Corpus
    train: Examples
    held_out: Examples
    saved: SavedTeacher | None
    notices: list[str]

    def with_saved(self, saved: SavedTeacher) -> Setup:
        """The same with the teacher's predictions read from where they were saved."""
        return replace(self, saved=saved, train=self.train.with_keys(), held_out=self.held_out.with_keys())

    def digest(self) -> str:
        """Digest of the text, as both tokenizers cut it."""
        made = blake2b(digest_size=16)
        for piece in (*self.train.pieces, *self.held_out.pieces):
            made.update(f"{piece.document} {piece.ends} {len(piece.text)} {piece.text}".encode())
        return made.hexdigest()

    def alignment(self) -> AlignmentReport:
        """How both tokenizations of a sample of the held-out text fit together."""
        texts = [piece.text for piece in self.held_out.pieces[:_SAMPLE]]
        ranges = [
            [
                byte_ranges(bundle.tokenizer, text, ids=[start_token(bundle.tokenizer), *ids])
                for text, ids in zip(texts, token_ids(bundle.tokenizer, texts), strict=True)
            ]
            for bundle in (self.student, self.teacher)
        ]
        student, teacher = self.student.tokenizer, self.teacher.tokenizer
        return report(*ranges, student_vocabulary=student, teacher_vocabulary=teacher)

    def describe_text(self, source: Sequence[str] | None) -> dict[str, Any]:
        """Source and sizes of the text."""
        library = f"docstrings of the standard library of Python {platform.python_version()}"
        described: dict[str, Any] = {"source": ", ".join(source) if source else library}
        for name in ("train", "held_out"):
            documents = getattr(self.corpus, name)
            size = sum(len(document.text.encode("utf-8")) for document in documents)
            windows = len(getattr(self, name))
            described[name] = {"documents": len(documents), "bytes": size, "windows": windows}
        return described


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
    sizes = (
        {"width": options.student_width, "layers": options.student_layers, "seed": seed + 1},
        {"width": options.teacher_width, "layers": options.teacher_layers, "seed": seed},
    )
    student, teacher = (
        ModelBundle(make_llama(tokenizer, length=length, **size), tokenizer)
        for tokenizer, size in zip(tokenizers, sizes, strict=True)
    )
    return _together(settings, corpus, teacher, student, [])


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
        teacher = ModelBundle(model, tokenizer)
        model, tokenizer, more = load_model(student_source, "--student", dtype=torch.float32)
        require_length(model, "--student", options.length, "--length")
    if saved is not None:
        with refusing("--saved-teacher"):
            saved.manifest.require({"tokenizer_fingerprint": fingerprint(teacher.tokenizer)}, saved.folder)
            saved.manifest.serves(settings.arguments.ot_config())
            if saved.manifest.keep == "targets":
                raise ValueError(
                    "keep: expected a teacher saved with 'likeliest' for --matching text, since the pictures "
                    "need its own tokens, got 'targets'"
                )
    setup = _together(settings, corpus, teacher, ModelBundle(model, tokenizer), notices + more)
    if saved is None:
        return setup
    setup = setup.with_saved(saved)
    keys = setup.train.keys()
    missing = saved.missing(keys)
    if missing:
        raise DistillError(
            f"--saved-teacher: expected all {len(set(keys)):,} windows to train on in {str(saved.folder)!r}, "
            f"{len(missing):,} are missing; it was saved from other text, or with another --length, --seed "
            "or --held-out"
        )
    return setup


def _together(
    settings: Settings, corpus: Corpus, teacher: ModelBundle, student: ModelBundle, notices: list[str]
) -> Setup:
    notices = notices + _set_template(settings.options.chat_template, teacher, student)
    both, length = (student.tokenizer, teacher.tokenizer), settings.options.length
    vocabulary = None
    if settings.by_text:
        vocabulary = VocabularyMap.from_tokenizers(*both)
        notices.append(
            "--matching text: the page's transport plan, matches, diagnostics are of the paper's assignment"
        )
    parts = []
    for name, documents, mark_end in (("train", corpus.train, True), ("held-out", corpus.held_out, False)):
        pieces = make_pieces(documents, *both, length, mark_end=mark_end)
        examples = Examples(pieces, *both, length, vocabulary=vocabulary)
        cut = examples.drop_empty()
        if cut.cut or cut.empty:
            notices = [*notices, f"--length: of the {name} part, {cut}"]
        if not len(examples):
            raise DistillError(f"--text: expected examples with something to learn, found none: {cut}")
        parts.append(examples)
    windows = parts[1]
    for side, bundle in (("teacher", teacher), ("student", student)):
        changed = windows.changed_by(bundle.tokenizer)
        if changed:
            notice = f"the {side}'s tokenizer does not give back {changed} of {len(windows)} held-out windows"
            notice += " as they were, so that its bits per byte cannot be compared with others'"
            notices = [*notices, notice]
    return Setup(teacher, student, corpus, parts[0], parts[1], None, notices)


def _set_template(given: str | None, teacher: ModelBundle, student: ModelBundle) -> list[str]:
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
