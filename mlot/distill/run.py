"""One run, from text to report."""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import tokenizers
import torch
import transformers
from rich.console import Console
from transformers import PrinterCallback, TrainingArguments

from mlot import __version__
from mlot.distill import report as reports
from mlot.distill.data import Collator, PairCollator, PrefixPairs, Window, WindowDataset, make_windows
from mlot.distill.models import load_model, make_llama
from mlot.distill.options import Options
from mlot.distill.output import check_output, staging
from mlot.distill.party import Party
from mlot.distill.progress import Reporter, quiet_transformers
from mlot.distill.text import Corpus, read_documents, split_corpus, standard_library_documents
from mlot.distill.trainer import DistillationTrainer
from mlot.distill.vocabularies import train_bpe, train_unigram
from mlot.nn import MultiLevelOTLoss


def run(options: Options, console: Console, messages: Console) -> reports.RunReport:
    """Distil, measure, and write what came out to the output folder.

    Args:
        options: what to do.
        console: where the table goes.
        messages: where progress and notices go.

    Returns:
        What was found.

    Raises:
        DistillError: something asked for cannot be done; nothing was trained or written.
    """
    started = time.perf_counter()
    output = Path(options.output)
    sources = [Path(path) for path in (options.text, options.teacher, options.student) if path is not None]
    check_output(output, overwrite=options.overwrite, sources=sources)
    threads = torch.get_num_threads()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    elif options.teacher is None:
        torch.set_num_threads(1)  # models this small spend more time on waiting for threads than they save
    try:
        with quiet_transformers(), staging(output) as folder:
            report = _Run(options, folder, Reporter(messages)).report(started)
            reports.write(report, folder)
    finally:
        torch.set_num_threads(threads)
    console.print(reports.table(report))
    console.print(reports.verdict(report), highlight=False)
    console.print(f"written to {output}", soft_wrap=True, highlight=False, markup=False)
    return report


@dataclass(frozen=True, eq=False)
class _Data:
    corpus: Corpus
    train: list[Window]
    held_out: list[Window]


class _Run:
    """The steps of a run, and what they share."""

    def __init__(self, options: Options, folder: Path, reporter: Reporter) -> None:
        self.options = options
        self.folder = folder
        self.reporter = reporter

    def report(self, started: float) -> reports.RunReport:
        """Do everything but writing the report."""
        options = self.options
        if options.teacher is None:
            teacher, student, data, notices = self._make()
        else:
            teacher, student, data, notices = self._load()
        notices += teacher.unfaithful(data.held_out) + student.unfaithful(data.held_out)
        for notice in notices:
            self.reporter.say(f"notice: {notice}")
        with self.reporter.progress:
            taught = self._teach(teacher, data)
            plain = self._train_student(reports.CE, student, None, data)
            distilled = self._train_student(reports.MLOT, student, teacher, data)
        return reports.RunReport(
            (taught, plain, distilled),
            self._describe_text(data),
            options.as_dict(),
            {
                "mlot": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "tokenizers": tokenizers.__version__,
                "python": platform.python_version(),
                "device": str(_device()),
                "threads": str(torch.get_num_threads()),
            },
            notices,
            time.perf_counter() - started,
        )

    # -- parties and text --------------------------------------------------------------------------------

    def _make(self) -> tuple[Party, Party, _Data, list[str]]:
        """Train tokenizers on the training part, and make models for them."""
        options, length, seed = self.options, self.options.length, self.options.seed
        corpus = self._corpus()
        teacher_tokenizer = train_bpe(corpus.train, options.teacher_vocabulary, length)
        student_tokenizer = train_unigram(corpus.train, options.student_vocabulary, length)
        teacher_model = make_llama(
            teacher_tokenizer,
            width=options.teacher_width,
            layers=options.teacher_layers,
            length=length,
            seed=seed,
        )
        student_model = make_llama(
            student_tokenizer,
            width=options.student_width,
            layers=options.student_layers,
            length=length,
            seed=seed + 1,
        )
        teacher = Party("teacher", teacher_model, teacher_tokenizer)
        student = Party("student", student_model, student_tokenizer)
        return teacher, student, self._windows(corpus, teacher, student), []

    def _load(self) -> tuple[Party, Party, _Data, list[str]]:
        """Read models and tokenizers from their folders, before anything that takes time."""
        options = self.options
        assert options.teacher is not None
        assert options.student is not None
        corpus = self._corpus()
        # The student is trained, and wants float32 for that; the teacher is only read.
        model, tokenizer, notices = load_model(options.teacher, "--teacher", options.length, "auto")
        teacher = Party("teacher", model, tokenizer)
        model, tokenizer, more = load_model(options.student, "--student", options.length, torch.float32)
        student = Party("student", model, tokenizer)
        return teacher, student, self._windows(corpus, teacher, student), notices + more

    def _corpus(self) -> Corpus:
        text = self.options.text
        documents = standard_library_documents() if text is None else read_documents(text)
        return split_corpus(documents, self.options.held_out, self.options.seed)

    def _windows(self, corpus: Corpus, teacher: Party, student: Party) -> _Data:
        both, length = (student.tokenizer, teacher.tokenizer), self.options.length
        train = make_windows(corpus.train, *both, length)
        return _Data(corpus, train, make_windows(corpus.held_out, *both, length, mark_end=False))

    def _describe_text(self, data: _Data) -> dict[str, Any]:
        source = self.options.text
        if source is None:
            source = f"docstrings of the standard library of Python {platform.python_version()}"
        return {
            "source": source,
            "train": _sizes(data.corpus.train, data.train),
            "held_out": _sizes(data.corpus.held_out, data.held_out),
        }

    # -- training ----------------------------------------------------------------------------------------

    def _teach(self, teacher: Party, data: _Data) -> reports.ModelReport:
        """Train the teacher, unless it came from a folder."""
        options = self.options
        if options.teacher is not None:
            cast(Any, teacher.model).to(_device())
            return self._found(reports.TEACHER, teacher, data)
        collator = Collator("teacher", teacher.pad_token_id)
        arguments = self._arguments(options.teacher_steps, options.teacher_learning_rate)
        return self._train(reports.TEACHER, teacher, data, arguments, data_collator=collator)

    def _train_student(
        self, name: str, student: Party, teacher: Party | None, data: _Data
    ) -> reports.ModelReport:
        """Train a copy of the student, with a teacher or by cross-entropy alone."""
        options = self.options
        copied = Party("student", copy.deepcopy(student.model), student.tokenizer)
        arguments = self._arguments(options.steps, options.learning_rate)
        if teacher is None:
            collator = Collator("student", student.pad_token_id)
            return self._train(name, copied, data, arguments, data_collator=collator)
        pairs = PrefixPairs(student.tokenizer, teacher.tokenizer) if options.pairs == "prefix" else None
        return self._train(
            name,
            copied,
            data,
            arguments,
            data_collator=PairCollator(student.pad_token_id, teacher.pad_token_id, pairs),
            teacher=teacher.model,
            criterion=MultiLevelOTLoss(options.config(), options.alpha),
        )

    def _train(
        self, name: str, party: Party, data: _Data, arguments: TrainingArguments, **kwargs: Any
    ) -> reports.ModelReport:
        started = time.perf_counter()
        trainer = DistillationTrainer(
            party.model,
            arguments,
            measure=lambda model: party.measure(data.held_out, self._reading, model).bits_per_byte,
            train_dataset=WindowDataset(data.train),
            eval_dataset=WindowDataset(data.held_out),
            callbacks=[self.reporter.callback(name)],
            **kwargs,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        seconds = time.perf_counter() - started
        party.save(self.folder / name)
        return self._found(name, party, data, arguments.max_steps, seconds, trainer.state.log_history)

    def _found(
        self,
        name: str,
        party: Party,
        data: _Data,
        steps: int = 0,
        seconds: float = 0.0,
        history: Sequence[dict[str, Any]] = (),
    ) -> reports.ModelReport:
        options = self.options
        score = party.measure(data.held_out, self._reading)
        curve = {
            int(entry["step"]): entry["eval_bits_per_byte"]
            for entry in history
            if "eval_bits_per_byte" in entry
        }
        if steps:
            curve[steps] = score.bits_per_byte
        terms: dict[str, Any] = next((entry for entry in reversed(history) if "ce" in entry), {})
        return reports.ModelReport(
            name=name,
            parameters=party.model.num_parameters(),
            vocabulary=len(party.tokenizer),
            bytes_per_token=party.bytes_per_token(data.held_out),
            steps=steps,
            seconds=seconds,
            score=score,
            curve=sorted(curve.items()),
            terms={term: terms[term] for term in ("loss", "ce", "had", "sl", "sd") if term in terms},
            samples=party.samples(data.held_out, options.length, options.seed),
        )

    @property
    def _reading(self) -> int:
        """Windows read at once where there is no gradient."""
        return 2 * self.options.batch_size

    def _arguments(self, steps: int, learning_rate: float) -> TrainingArguments:
        options = self.options
        every = max(1, steps // options.evaluations)
        cuda = torch.cuda.is_available()
        return TrainingArguments(
            output_dir=str(self.folder),
            max_steps=steps,
            per_device_train_batch_size=options.batch_size,
            gradient_accumulation_steps=options.accumulation,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, steps // 20),
            weight_decay=0.1,
            logging_steps=every,
            eval_strategy="steps",
            eval_steps=every,
            eval_on_start=True,
            save_strategy="no",
            report_to="none",
            seed=options.seed,
            data_seed=options.seed,
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=not cuda,
            dataloader_pin_memory=cuda,
        )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _sizes(documents: Sequence[str], windows: Sequence[Window]) -> dict[str, int]:
    size = sum(len(text.encode("utf-8")) for text in documents)
    return {"documents": len(documents), "bytes": size, "windows": len(windows)}
