"""What GOLD of TRL passes to its loss: texts, settings, tokenizers, batches."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from mlot._hf.made import train_bpe

PROMPTS = ["The sun is", "Add two and two:", "Where is the café?"]
COMPLETIONS = [
    " in the sky, and so is the moon.",
    " the sum is four.",
    " Behind the old théâtre 🎭, to the left.",
]

#: A step of size 1 against the gradient.
ONE_STEP = {
    "max_steps": 1,
    "optim": "sgd",
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "max_grad_norm": 0.0,
}


def settings(**changes: Any) -> SimpleNamespace:
    """Settings of ULD with GOLD's defaults."""
    default = {
        "uld_crossentropy_weight": 0.0,
        "uld_distillation_weight": 1.0,
        "uld_student_temperature": 1.0,
        "uld_teacher_temperature": 1.0,
        "uld_skip_student_eos": True,
        "uld_skip_teacher_eos": True,
        "uld_token_merge_strategy": "observed",
        "use_extended_uld": True,
        "uld_use_hybrid_loss": False,
    }
    return SimpleNamespace(**(default | changes))


def tokenizers() -> tuple[Any, Any]:

    text = [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    return train_bpe(text, 262, 128), train_bpe([t * 3 for t in text], 320, 128)


def batch(gold: Any, *, prompts: bool = True, extended: bool = True) -> dict[str, Any]:
    """What GOLD passes to its loss: the student's side padded on the left, the teacher's on the right."""
    student, teacher = tokenizers()
    g = torch.Generator().manual_seed(3)
    asked = PROMPTS if prompts else [""] * 3
    t_ids, t_labels, _, t_offsets = gold.build_teacher_inputs_from_texts(
        teacher, asked, COMPLETIONS, use_extended_uld=extended
    )
    s_ids, s_labels, _, s_offsets = gold.build_teacher_inputs_from_texts(
        student, asked, COMPLETIONS, use_extended_uld=extended
    )
    for n in range(len(s_ids)):  # to the left, as GOLD's collator pads
        shift = int(s_ids.shape[1] - (s_ids[n] != student.pad_token_id).sum())
        for side in (s_ids, s_labels, s_offsets):
            side[n] = side[n].roll(shift, 0)
    return {
        "student_logits": 2 * torch.randn(*s_ids.shape, len(student), generator=g, dtype=torch.float64),
        "teacher_logits": 2 * torch.randn(*t_ids.shape, len(teacher), generator=g, dtype=torch.float64),
        "student_labels": s_labels,
        "teacher_labels": t_labels,
        "student_input_ids": s_ids,
        "teacher_input_ids": t_ids,
        "student_byte_offsets": s_offsets,
        "teacher_byte_offsets": t_offsets,
    }


def spans(labels: torch.Tensor) -> list[tuple[int, int]]:
    valid = labels != -100
    return [(int(row.nonzero()[0]), int(row.sum())) for row in valid]


def make_trainer(
    gold: Any,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    data: tuple[list[str], list[str]] = (PROMPTS, COMPLETIONS),
    **changes: Any,
) -> Any:
    """A GOLD trainer with tiny models and few examples."""
    import datasets
    from trl.experimental.gold import GOLDConfig

    from mlot._hf.made import make_llama

    student_tokenizer, teacher_tokenizer = tokenizers()
    teacher_tokenizer.save_pretrained(folder / "teacher")
    models = [
        make_llama(tokenizer, width=32, layers=1, length=128, seed=seed).to(dtype)
        for seed, tokenizer in enumerate((student_tokenizer, teacher_tokenizer))
    ]
    with warnings.catch_warnings():  # theirs, not ours
        warnings.simplefilter("ignore")
        given = {
            "output_dir": str(folder / "out"),
            "use_uld_loss": True,
            "lmbda": 0.0,
            "max_length": 96,
            "max_completion_length": 16,
            "per_device_train_batch_size": 3,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "bf16": False,
            "teacher_tokenizer_name_or_path": str(folder / "teacher"),
            "disable_tqdm": True,
        } | changes
        args = GOLDConfig(**given)
        return gold.GOLDTrainer(
            model=models[0],
            teacher_model=models[1],
            args=args,
            train_dataset=datasets.Dataset.from_dict({"prompt": data[0], "completion": data[1]}),
            processing_class=student_tokenizer,
        )
