"""``python -m benchmarks trainer``: a training step of mlot's Trainer beside one of TRL's GOLD trainer."""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mlot
import mlot.trl
from benchmarks.contest import compete
from benchmarks.contestant import Contestant, Findings
from mlot._hf.made import make_llama, standard_library_documents, train_bpe

_ALONE = "cross-entropy alone"

_NOTES = (
    "A step is the teacher and the student, forward, and backward through the student.",
    "Batches are tokenised before; GOLD tokenises them for the teacher in every step.",
    "All run the same student and teacher on the same texts; the losses differ.",
    "GOLD's trainer alone samples with vLLM by itself and reads images.",
    "mlot's alone takes saved and several teachers, heads without logits, several sequences in one row.",
)


def run(options: argparse.Namespace) -> Findings:
    """Measure steps of one student on the same texts."""
    from mlot.training import DistillationCollator, MultiLevelOTTrainer, MultiLevelOTTrainingArguments

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        documents = standard_library_documents()
        reads = options.characters + 64  # a character is a token at most, and a template adds some
        tokenizers = [
            train_bpe(documents, size, reads)
            for size in (options.student_vocabulary, options.teacher_vocabulary)
        ]
        student, teacher = (
            make_llama(tokenizer, width=width, layers=options.layers, length=reads, seed=seed)
            for seed, (tokenizer, width) in enumerate(
                zip(tokenizers, (options.width, 2 * options.width), strict=True)
            )
        )
        device, dtype = torch.device(options.device), getattr(torch, options.dtype)
        for model in (student, teacher):
            model.to(device, dtype)  # type: ignore[arg-type]
        long = [text for text in documents if text.isascii() and len(text) >= options.characters]
        cut = [text[: options.characters] for text in long[: options.batch]]
        pairs = [{"prompt": text[:16], "completion": text[16:]} for text in cut]
        general: dict[str, Any] = {
            "per_device_train_batch_size": options.batch,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": device.type == "cpu",
            "disable_tqdm": True,
        }

        def ours(name: str, **settings: Any) -> Callable[[], Tensor]:
            collator = DistillationCollator(
                tokenizers[0],
                tokenizers[1],
                pairs="text" if settings.get("matching") == "text" else "boundary",
            )
            trainer = MultiLevelOTTrainer(
                student,
                MultiLevelOTTrainingArguments(str(Path(folder) / name), **general, **settings),
                collator,
                pairs,
                teacher=None if settings.get("alpha") == 0 else teacher,
            )
            rows = collator.prepare_batch(pairs)

            def forward() -> Tensor:
                batch = {key: value.to(device) for key, value in collator(rows).items()}
                loss: Any = trainer.compute_loss(student, batch)
                return loss  # type: ignore[no-any-return]

            return forward

        parameters = tuple(p for p in student.parameters() if p.requires_grad)
        k = min(options.k, len(tokenizers[0]), len(tokenizers[1]))
        forwards: dict[str, Callable[[], Tensor] | None] = {
            _ALONE: ours("alone", alpha=0.0),
            "mlot, rank": ours("rank", k=k, matching="rank"),
            "mlot, optimal": ours("optimal", k=k),
            "mlot, text": ours("text", matching="text", k=k),
        }
        names = ("GOLD, its ULD", "GOLD, mlot's loss")
        made = _gold(Path(folder), student, teacher, tokenizers, pairs, options, general)
        forwards |= zip(names, made, strict=True)
        contestants = [
            Contestant(
                name,
                f"a step with {name}",
                forward,
                parameters,
                _ALONE,
                tuple(teacher.parameters()),
                claims=False,
                remark="not installed" if forward is None else "another loss" if name != _ALONE else "",
                ours=not name.startswith("GOLD, its"),
            )
            for name, forward in forwards.items()
        ]
        rows = compete(contestants, options.repeats, device, dtype)
    count = sum(p.numel() for p in parameters)
    return Findings(rows, None, (f"The student has {count:,} weights.", *_NOTES))


def _gold(
    folder: Path,
    student: Any,
    teacher: Any,
    tokenizers: list[Any],
    pairs: list[dict[str, str]],
    options: argparse.Namespace,
    general: dict[str, Any],
) -> list[Callable[[], Tensor] | None]:
    """Steps of GOLD with its own loss and with ours; ``None`` where TRL is not installed."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    try:
        from datasets import Dataset
        from trl.experimental.gold import GOLDConfig, GOLDTrainer
        from trl.experimental.gold.gold_trainer import ULDLoss
    except ImportError:
        return [None, None]
    tokenizers[1].save_pretrained(folder / "teacher")
    trainer = GOLDTrainer(
        model=student,
        teacher_model=teacher,
        args=GOLDConfig(
            output_dir=str(folder / "gold"),
            use_uld_loss=True,
            uld_crossentropy_weight=1.0,
            uld_distillation_weight=0.15,
            lmbda=0.0,
            max_length=options.characters + 64,
            max_completion_length=options.characters,
            bf16=False,
            gradient_checkpointing=False,
            teacher_tokenizer_name_or_path=str(folder / "teacher"),
            **general,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizers[0],
    )
    student.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))

    def forward(criterion: Any) -> Callable[[], Tensor]:
        def step() -> Tensor:
            trainer.uld_loss_fn = criterion
            loss: Any = trainer.compute_loss(student, batch)
            return loss  # type: ignore[no-any-return]

        return step

    given = (trainer.args, trainer.processing_class, trainer.teacher_tokenizer, trainer.accelerator.device)
    return [forward(ULDLoss(*given)), forward(mlot.trl.MultiLevelOTLoss(*given))]
