"""One run, from text to report."""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from transformers import PrinterCallback
from transformers.trainer_utils import SaveStrategy

from mlot._hf.loading import quiet_transformers
from mlot._progress import Counter, Reporter
from mlot.distill import page
from mlot.distill import report as reports
from mlot.distill.errors import DistillError
from mlot.distill.hardware import device, environment
from mlot.distill.options import Options
from mlot.distill.output import PAGE, check_output, check_saving, staging
from mlot.distill.party import Party
from mlot.distill.pictures import Painter
from mlot.distill.pieces import Examples
from mlot.distill.progress import TrainingProgress
from mlot.distill.setup import Setup, Sides, load, make
from mlot.distill.stages import Stage, Stages, kept
from mlot.saved import SavedTeacher, save_teacher
from mlot.training import MultiLevelOTTrainer, MultiLevelOTTrainingArguments


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
    output = Path(options.output)
    paths = (options.text, options.teacher, options.student, options.save_teacher, options.saved_teacher)
    sources = [Path(path) for path in paths if path is not None]
    check_output(output, overwrite=options.overwrite, sources=sources, resume=options.resume)
    if options.save_teacher is not None:
        check_saving(Path(options.save_teacher), output)
    threads = torch.get_num_threads()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    elif options.teacher is None:
        torch.set_num_threads(1)  # models this small spend more time on waiting for threads than they save
    try:
        keeping = kept(output, options.identity(), resume=options.resume, keep=options.checkpoint_every != 0)
        with quiet_transformers(), keeping as stages, staging(output) as folder:
            report = _Run(options, folder, stages, Reporter(messages)).report()
            page.write(report, folder)
    finally:
        torch.set_num_threads(threads)
    console.print(reports.table(report))
    console.print(reports.verdict(report), highlight=False)
    console.print(f"written to {output / PAGE}", soft_wrap=True, highlight=False, markup=False)
    return report


@dataclass(frozen=True, eq=False)
class _Trained:
    """A model whose training is over, or was over before."""

    party: Party
    report: reports.ModelReport


class _Run:
    """The steps of a run, and what they share."""

    def __init__(self, options: Options, folder: Path, stages: Stages, reporter: Reporter) -> None:
        self.options = options
        self.folder = folder
        self.stages = stages
        self.reporter = reporter

    def report(self) -> reports.RunReport:
        """Do everything but writing the report."""
        options = self.options
        setup = make(options) if options.teacher is None else load(options)
        self.stages.require_same_text(setup.digest())
        alignment = setup.alignment()
        for notice in setup.notices:
            self.reporter.say(f"notice: {notice}")
        self.reporter.say(f"alignment of held-out text: {alignment}")
        with self.reporter.progress:
            teacher = self._teach(setup)
            setup = replace(setup, teacher=teacher.party)
            if options.save_teacher is not None:
                setup = setup.with_saved(self._save_teacher(setup))
                if not teacher.report.steps:  # its memory is the students' now
                    teacher = replace(teacher, party=replace(teacher.party, model=None))
                    setup = replace(setup, teacher=teacher.party)
            trained = [teacher]
            if options.compares:
                trained.append(self._train_student(reports.CE, setup, alone=True))
            trained.append(self._train_student(reports.MLOT, setup, alone=False))
        for one in trained:
            if one.report.steps:
                one.party.save(self.folder / one.report.name)
        painter, indices, seen = self._painter(setup, trained[-1].party)
        source = options.text
        if source is None:
            source = f"docstrings of the standard library of Python {platform.python_version()}"
        return reports.RunReport(
            models=tuple(one.report for one in trained),
            text=setup.describe_text(source),
            settings=options.as_dict(),
            environment=environment(),
            alignment=alignment,
            diagnostics=painter.diagnostics(indices),
            pictures=painter.paint(indices, seen_in_training=seen),
            notices=setup.notices,
            seconds=self.stages.clock.elapsed(),
        )

    # -- the teacher -------------------------------------------------------------------------------------

    def _teach(self, setup: Setup) -> _Trained:
        """Train the teacher, unless it came from a folder."""
        options, teacher = self.options, setup.teacher
        if options.teacher is None:
            arguments = self._arguments(options.teacher_steps, options.teacher_learning_rate, alone=True)
            sides = setup.train.teacher, setup.held_out.teacher
            return self._train(reports.TEACHER, teacher, *sides, arguments, None)
        if teacher.model is not None:
            cast(Any, teacher.model).to(device())
        return _Trained(teacher, self._found(reports.TEACHER, teacher, setup.held_out.teacher))

    def _save_teacher(self, setup: Setup) -> SavedTeacher:
        """Save the teacher's predictions for all windows; those held out are for the pictures."""
        config = self.options.config()
        examples = [
            example
            for sides in (setup.train, setup.held_out)
            for example in sides.student.collator.teacher_examples(sides.student)
        ]
        try:
            return save_teacher(
                setup.teacher.model,
                setup.teacher.tokenizer,
                examples,
                str(self.options.save_teacher),
                k=config.k,
                temperature=config.temperature,
                extra_temperatures=(config.sequence_temperature,),
                batch_size=self._reading,
                name=None if self.options.teacher is None else Path(self.options.teacher).name,
                progress=Counter(self.reporter, "saving the teacher", "windows"),
            )
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise DistillError(f"--save-teacher: {str(error).removeprefix('folder: ')}") from error

    # -- training ----------------------------------------------------------------------------------------

    def _train_student(self, name: str, setup: Setup, *, alone: bool) -> _Trained:
        """Train a copy of the student, with the teacher or by cross-entropy alone."""
        options = self.options
        copied = replace(setup.student, model=copy.deepcopy(setup.student.model))
        arguments = self._arguments(options.steps, options.learning_rate, alone=alone)
        teacher = None if alone else setup.teacher.model if setup.saved is None else setup.saved
        return self._train(name, copied, setup.train.student, setup.held_out.student, arguments, teacher)

    def _train(
        self,
        name: str,
        party: Party,
        train: Examples,
        held_out: Examples,
        arguments: MultiLevelOTTrainingArguments,
        teacher: Any,
    ) -> _Trained:
        stage = self.stages.stage(name)
        if stage is not None and stage.done is not None:
            party = replace(party, model=cast(Any, stage.load()).to(device()))
            done = stage.done
            self.reporter.say(f"{name}: complete before")
            return self._trained(name, party, held_out, arguments, done["seconds"], done["history"])
        started = time.perf_counter() - (0.0 if stage is None else stage.seconds)
        resumed = self._keep_checkpoints(arguments, stage)
        trainer = MultiLevelOTTrainer(
            party.model,
            arguments,
            teacher=teacher,
            data_collator=train.collator,
            train_dataset=train,
            eval_dataset=held_out,
            callbacks=[TrainingProgress(self.reporter, name), *([] if stage is None else [stage.callback()])],
        )
        trainer.remove_callback(PrinterCallback)
        if resumed is not None:
            self.reporter.say(f"{name}: continues from {resumed.name}")
        trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
        seconds, history = time.perf_counter() - started, trainer.state.log_history
        if stage is not None:
            assert party.model is not None
            stage.finish(party.model, history, seconds)
        return self._trained(name, party, held_out, arguments, seconds, history)

    def _keep_checkpoints(self, arguments: MultiLevelOTTrainingArguments, stage: Stage | None) -> Path | None:
        """Have checkpoints written, if they are kept; return the one to continue from."""
        if stage is None:
            return None
        arguments.output_dir = str(stage.folder)
        arguments.save_strategy = SaveStrategy.STEPS
        every = self.options.checkpoint_every
        arguments.save_steps = arguments.logging_steps if every is None else every
        resumed = stage.checkpoint()
        if resumed is not None:
            arguments.eval_on_start = False  # it was evaluated when it started
        return resumed

    def _trained(
        self,
        name: str,
        party: Party,
        held_out: Examples,
        arguments: MultiLevelOTTrainingArguments,
        seconds: float,
        history: Sequence[dict[str, Any]],
    ) -> _Trained:
        return _Trained(party, self._found(name, party, held_out, arguments.max_steps, seconds, history))

    def _found(
        self,
        name: str,
        party: Party,
        held_out: Examples,
        steps: int = 0,
        seconds: float = 0.0,
        history: Sequence[dict[str, Any]] = (),
    ) -> reports.ModelReport:
        score = party.measure(held_out, self._reading)
        curve = dict(reports.bits_curve(history))
        if steps and score is not None:
            curve[steps] = score.bits_per_byte
        return reports.ModelReport(
            name=name,
            parameters=None if party.model is None else party.model.num_parameters(),
            vocabulary=len(party.tokenizer),
            bytes_per_token=party.bytes_per_token(held_out),
            steps=steps,
            seconds=seconds,
            score=score,
            curve=sorted(curve.items()),
            logged=reports.logged_terms(history),
            samples=party.samples(held_out, self.options.length, self.options.seed),
        )

    @property
    def _reading(self) -> int:
        """Windows read at once where there is no gradient."""
        return 2 * self.options.batch_size

    def _arguments(self, steps: int, learning_rate: float, *, alone: bool) -> MultiLevelOTTrainingArguments:
        options = self.options
        every = max(1, steps // options.evaluations)
        cuda = device().type == "cuda"
        return MultiLevelOTTrainingArguments(
            output_dir=str(self.folder),
            alpha=0.0 if alone else options.alpha,
            k=options.k,
            matching=options.matching,
            pairs=options.pairs,
            temperature=options.temperature,
            sequence_temperature=options.sequence_temperature,
            max_steps=steps,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=self._reading,
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
            disable_tqdm=True,
            use_cpu=not cuda,
            dataloader_pin_memory=cuda,
        )

    # -- pictures ----------------------------------------------------------------------------------------

    def _painter(self, setup: Setup, student: Party) -> tuple[Painter, list[int], bool]:
        """What makes the pictures, of which examples, and whether those were trained on."""
        sides, seen = setup.held_out, False
        indices = self._with_teacher(setup, sides)
        if not indices:
            sides, seen = setup.train, True
            indices = self._with_teacher(setup, sides)
        painter = Painter(
            student,
            sides.student,
            setup.teacher.tokenizer,
            lambda some: setup.taught(sides, some),
            self.options.config(),
            boundary=self.options.pairs == "boundary",
        )
        return painter, indices, seen

    @staticmethod
    def _with_teacher(setup: Setup, sides: Sides) -> list[int]:
        """Examples that the teacher has predictions for."""
        if setup.saved is None:
            return list(range(len(sides.student)))
        keys = [sides.student[n]["teacher_key"] for n in range(len(sides.student))]
        missing = set(setup.saved.missing(keys))
        return [n for n, key in enumerate(keys) if key not in missing]
