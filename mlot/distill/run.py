"""One run, from text to report."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from transformers import PrinterCallback, set_seed

from mlot import MultiLevelOTConfig
from mlot._folders import staging
from mlot._hf.adapters import require_peft, save_merged, with_adapters
from mlot._hf.loading import quiet_transformers
from mlot._progress import Counter, Reporter
from mlot.distill import page
from mlot.distill import report as reports
from mlot.distill.arguments import CommandArguments, Settings
from mlot.distill.errors import refusing
from mlot.distill.output import ENTRIES, PAGE, check_output, check_saving, is_finished_run
from mlot.distill.setup import ModelBundle, Setup, prepare
from mlot.distill.stages import Stages, kept
from mlot.saved import SavedTeacher, save_teacher
from mlot.training import MultiLevelOTTrainer
from mlot.training._environment import device, environment
from mlot.training._inspect import Painter, known_to
from mlot.training._inspect_text import TextPicture, paint_text
from mlot.training._logs import bits_curve, logged_terms
from mlot.training._progress import TrainingProgress
from mlot.training._samples import sample_continuations
from mlot.training._score import evaluate_bits
from mlot.training._windows import Examples


def run(settings: Settings, console: Console, messages: Console) -> reports.RunReport:
    """Distil, measure, and write what came out to the output folder; return what was measured.

    The table goes to ``console``, progress and notices to ``messages``.

    Raises:
        DistillError: something asked for cannot be done; nothing was trained or written.
    """
    options, output = settings.options, Path(settings.arguments.output_dir)
    check_output(
        output, overwrite=options.overwrite, sources=[*map(Path, options.inputs)], resume=options.resume
    )
    if options.save_teacher is not None:
        check_saving(Path(options.save_teacher), output)
    if options.lora_rank is not None:
        with refusing():
            require_peft("--lora-rank")
    threads = torch.get_num_threads()
    # models as small as those made here spend more time on waiting for threads than they save
    torch.set_num_threads(options.threads or (1 if options.made_here else threads))
    try:
        keeping = kept(output, settings.identity(), resume=options.resume, keep=settings.keeps)
        replaces = is_finished_run(output)
        placing = staging(output, ENTRIES, replaces=replaces, name="--output")
        with quiet_transformers(), keeping as stages, placing as folder:
            report = _Run(settings, folder, stages, Reporter(messages)).report()
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

    bundle: ModelBundle
    report: reports.ModelReport


class _Run:
    """The steps of a run, and what they share."""

    def __init__(self, settings: Settings, folder: Path, stages: Stages, reporter: Reporter) -> None:
        self.settings, self.folder, self.stages, self.reporter = settings, folder, stages, reporter

    def report(self) -> reports.RunReport:
        """Do everything but writing the report."""
        options = self.settings.options
        setup = prepare(self.settings)
        self.stages.require_same_text(setup.digest())
        alignment = setup.alignment()
        for notice in setup.notices:
            self.reporter.say(f"notice: {notice}")
        self.reporter.say(f"alignment of held-out text: {alignment}")
        with self.reporter.progress:
            teacher = self._teach(setup)
            setup = replace(setup, teacher=teacher.bundle)
            if options.save_teacher is not None:
                setup = setup.with_saved(self._save_teacher(setup))
                if not teacher.report.steps:  # its memory is the students' now
                    teacher = replace(teacher, bundle=replace(teacher.bundle, model=None))
                    setup = replace(setup, teacher=teacher.bundle)
            trained = [teacher]
            if options.compares:
                trained.append(self._train_student(reports.CE, setup, alone=True))
            trained.append(self._train_student(reports.MLOT, setup, alone=False))
        painter, indices, seen = self._painter(setup, trained[-1].bundle)
        report = reports.RunReport(
            models=tuple(one.report for one in trained),
            text=setup.describe_text(options.text),
            settings=self.settings.shown(),
            environment=environment(),
            alignment=alignment,
            diagnostics=painter.diagnostics(indices),
            pictures=painter.paint(indices, seen_in_training=seen),
            notices=setup.notices,
            seconds=self.stages.clock.elapsed(),
            text_picture=self._text_picture(setup, indices, seen=seen),
        )
        for one in trained:
            if one.report.steps:
                folder = self.folder / one.report.name
                save_merged(one.bundle.model, folder)
                one.bundle.tokenizer.save_pretrained(folder)
        return report

    def _teach(self, setup: Setup) -> _Trained:
        """Train the teacher, unless it came from a folder."""
        options, teacher = self.settings.options, setup.teacher
        if options.made_here:
            rate = options.teacher_learning_rate
            changes: dict[str, Any] = {"max_steps": options.teacher_steps, "learning_rate": rate}
            parts = setup.train.swapped(), setup.held_out.swapped()
            return self._train(reports.TEACHER, teacher, *parts, None, alone=True, **changes)
        if teacher.model is not None:
            cast(Any, teacher.model).to(device())
        measured = self._measured(reports.TEACHER, teacher, setup.held_out.swapped(), seconds=0.0, history=())
        return _Trained(teacher, measured)

    def _save_teacher(self, setup: Setup) -> SavedTeacher:
        """Save the teacher's predictions on every window of both parts, without those that are there."""
        options, config = self.settings.options, self.settings.arguments.ot_config()
        both = (setup.train, setup.held_out)
        examples = [example for part in both for example in part.collator.teacher_examples(part)]
        by_text = self.settings.by_text
        with refusing("--save-teacher"):
            return save_teacher(
                setup.teacher.model,
                setup.teacher.tokenizer,
                examples,
                str(options.save_teacher),
                # the pictures need the teacher's own tokens, which targets lack
                keep="likeliest" if by_text else "traces",
                k=config.k,
                temperature=config.temperature,
                extra_temperatures=() if by_text else (config.sequence_temperature,),
                standardize=config.standardize,
                batch_size=self._reading,
                name=None if options.teacher is None else Path(options.teacher).name,
                progress=Counter(self.reporter, "saving the teacher", "windows"),
            )

    def _train_student(self, name: str, setup: Setup, *, alone: bool) -> _Trained:
        """Train a copy of the student, with the teacher or by cross-entropy alone."""
        copied = replace(setup.student, model=copy.deepcopy(setup.student.model))
        teacher = None if alone else setup.teacher.model if setup.saved is None else setup.saved
        return self._train(name, copied, setup.train, setup.held_out, teacher, alone=alone)

    def _train(
        self,
        name: str,
        bundle: ModelBundle,
        train: Examples,
        held_out: Examples,
        teacher: Any,
        *,
        alone: bool,
        **changes: Any,
    ) -> _Trained:
        stage = self.stages.stage(name)
        if stage is not None and stage.done is not None:
            bundle = replace(bundle, model=cast(Any, stage.load(bundle.model)).to(device()))
            self.reporter.say(f"{name}: complete before")
            return _Trained(bundle, self._measured(name, bundle, held_out, **stage.done))
        started = time.perf_counter() - (0.0 if stage is None else stage.seconds)
        folder = str(self.folder if stage is None else stage.folder)
        arguments: CommandArguments = self.settings.for_training(
            folder, len(train), alone=alone, keep=stage is not None, **changes
        )
        resumed = None if stage is None else stage.checkpoint()
        if resumed is not None:
            arguments.eval_on_start = False  # it was evaluated when it started
            self.reporter.say(f"{name}: continues from {resumed.name}")
        options = self.settings.options
        if name != reports.TEACHER and options.lora_rank is not None:
            set_seed(arguments.seed)
            sizes = options.lora_rank, options.lora_alpha, options.lora_dropout or 0.0
            with refusing("--lora-target"):
                bundle = replace(bundle, model=with_adapters(bundle.model, *sizes, options.lora_target))
        trainer = MultiLevelOTTrainer(
            bundle.model,
            arguments,
            teacher=teacher,
            data_collator=train.collator,
            train_dataset=train,
            eval_dataset=held_out,
            callbacks=[TrainingProgress(self.reporter, name), *([] if stage is None else [stage])],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
        seconds, history = time.perf_counter() - started, trainer.state.log_history
        if stage is not None:
            assert bundle.model is not None
            stage.finish(bundle.model, history, seconds)
        return _Trained(bundle, self._measured(name, bundle, held_out, seconds=seconds, history=history))

    def _measured(
        self,
        name: str,
        bundle: ModelBundle,
        held_out: Examples,
        *,
        seconds: float,
        history: Sequence[Mapping[str, Any]],
    ) -> reports.ModelReport:
        model, tokenizer, seed = bundle.model, bundle.tokenizer, self.settings.arguments.seed
        score = None if model is None else evaluate_bits(model, held_out, self._reading)
        samples = []
        if model is not None:
            samples = sample_continuations(model, tokenizer, held_out, self.settings.options.length, seed)
        curve = dict(bits_curve(history))
        steps = max((int(entry["step"]) for entry in history), default=0)
        if steps and score is not None:
            curve[steps] = score.bits_per_byte
        return reports.ModelReport(
            name=name,
            parameters=None if model is None else model.num_parameters(),
            vocabulary=len(tokenizer),
            bytes_per_token=held_out.bytes_per_token(),
            steps=steps,
            seconds=seconds,
            score=score,
            curve=sorted(curve.items()),
            logged=logged_terms(history),
            samples=samples,
        )

    @property
    def _reading(self) -> int:
        """Windows read at once where there is no gradient."""
        return 2 * self.settings.arguments.per_device_train_batch_size

    def _painter(self, setup: Setup, student: ModelBundle) -> tuple[Painter, list[int], bool]:
        """What makes the pictures, of which examples, and whether those were trained on."""
        teacher = setup.teacher.model if setup.saved is None else setup.saved
        examples, indices = setup.held_out, known_to(teacher, setup.held_out)
        seen = not indices
        if seen:
            examples, indices = setup.train, known_to(teacher, setup.train)
        arguments, tokenizers = self.settings.arguments, (student.tokenizer, setup.teacher.tokenizer)
        config, boundary = arguments.ot_config(), arguments.pairs == "boundary"
        if self.settings.by_text:
            examples, config = examples.at_boundaries(), MultiLevelOTConfig.paper()
        return Painter(student.model, tokenizers, examples, teacher, config, boundary=boundary), indices, seen

    def _text_picture(self, setup: Setup, indices: list[int], *, seen: bool) -> TextPicture | None:
        if not self.settings.by_text:
            return None
        return paint_text(
            setup.train if seen else setup.held_out,
            indices,
            (setup.student.tokenizer, setup.teacher.tokenizer),
            setup.teacher.model if setup.saved is None else setup.saved,
            self.settings.arguments.ot_config(),
        )
