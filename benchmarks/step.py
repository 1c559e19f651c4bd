"""``python -m benchmarks step``: a training step of a causal model, with and without distillation."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

import mlot
from benchmarks.contest import compete
from benchmarks.contestant import Contestant, Findings
from benchmarks.inputs import predictions
from mlot.nn import MultiLevelOTLoss, ULDLoss

_ALONE = "cross-entropy alone"

_NOTES = (
    "A step is forward and backward of the student and of its loss; the teacher's logits are given.",
    "The share of the distillation in a step is 1 less the inverse of its ratio.",
    "From the head: the student's logits are never formed.",
)


def run(options: argparse.Namespace) -> Findings:
    """Measure steps of one student on the same tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    torch.manual_seed(options.seed)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=options.student_vocabulary,
            hidden_size=options.width,
            intermediate_size=8 * options.width // 3 // 64 * 64 or 64,
            num_hidden_layers=options.layers,
            num_attention_heads=max(1, options.width // 64),
            max_position_embeddings=options.length,
            tie_word_embeddings=True,
        )
    )
    student = model.to(device, dtype)
    sizes = (options.batch, options.length)
    tokens = torch.randint(options.student_vocabulary, sizes, device=device)
    teacher_tokens = torch.randint(options.teacher_vocabulary, sizes, device=device)
    taught = predictions(
        *sizes, options.teacher_vocabulary, 64, seed=options.seed, dtype=dtype, device=device
    ).logits
    k = min(options.k, options.student_vocabulary, options.teacher_vocabulary)
    parameters = tuple(p for p in student.parameters() if p.requires_grad)

    def step(criterion: torch.nn.Module, *, head: bool = False) -> Tensor:
        if head:
            hidden = student.model(tokens).last_hidden_state
            source: Any = mlot.LinearHead(hidden, student.lm_head.weight)
        else:
            source = student(tokens).logits
        loss: Tensor = criterion(source, taught, tokens, teacher_tokens)
        return loss

    def contestant(name: str, criterion: torch.nn.Module, *, head: bool = False) -> Contestant:
        return Contestant(
            name,
            f"a step with {name}",
            lambda: step(criterion, head=head),
            parameters,
            _ALONE,
            (taught,),
            claims=False,
            remark="another loss" if name != _ALONE else "",
            ours=True,
        )

    rank, optimal = (mlot.MultiLevelOTConfig(k=k, matching=m) for m in ("rank", "optimal"))
    contestants = [
        contestant(_ALONE, MultiLevelOTLoss(alpha=0)),
        contestant("MultiLevelOT, rank", MultiLevelOTLoss(rank)),
        contestant("MultiLevelOT, optimal", MultiLevelOTLoss(optimal)),
        contestant("MultiLevelOT, rank, from the head", MultiLevelOTLoss(rank), head=True),
        contestant("ULD", ULDLoss()),
    ]
    rows = compete(contestants, options.repeats, device, dtype)
    count = sum(p.numel() for p in parameters)
    return Findings(rows, None, (f"The student has {count:,} weights.", *_NOTES))
