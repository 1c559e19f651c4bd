"""``python -m benchmarks sweep``: the loss as vocabulary, length and batch grow, one at a time."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch

from benchmarks.contest import compete
from benchmarks.contestant import Findings, Row
from benchmarks.inputs import predictions
from benchmarks.loss import from_logits

_WIDTH = 64  # of the hidden states behind the logits; no contestant sees them
_NOTES = ("Student and teacher have vocabularies of the same size. Plain PyTorch is benchmarks/plain.py.",)


def run(options: argparse.Namespace) -> Findings:
    """Measure every size of every axis."""
    rows: list[Row] = []
    for axis, sizes in _points(options):
        rows += _measured(axis, sizes, options)
    return Findings(rows, notes=_NOTES)


def _points(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, int]]]:
    base = {"vocabulary": options.vocabulary, "length": options.length, "batch": options.batch}
    axes = {"vocabulary": options.vocabularies, "length": options.lengths, "batch": options.batches}
    for axis, values in axes.items():
        for value in values:
            yield axis, base | {axis: value}


def _measured(axis: str, sizes: dict[str, int], options: argparse.Namespace) -> list[Row]:
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    student, teacher = (
        predictions(
            sizes["batch"],
            sizes["length"],
            sizes["vocabulary"],
            _WIDTH,
            seed=options.seed + n,
            dtype=dtype,
            device=device,
        ).logits
        for n in range(2)
    )
    contestants = from_logits(student.requires_grad_(), teacher, options.k)
    rows = compete(contestants, options.repeats, device, dtype)
    for row in rows:
        row.point = {"axis": axis, **sizes}
        row.section = (
            f"{axis} {sizes[axis]} (B = {sizes['batch']}, T = {sizes['length']}, V = {sizes['vocabulary']})"
        )
    return rows
