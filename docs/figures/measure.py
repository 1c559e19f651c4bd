"""Measurements behind the documentation's figures, on two small models trained on the spot.

    python docs/figures/measure.py

trains a teacher and a student with the example's command (``python -m mlot.distill``, a few minutes of one
core), lets both read text that was held out, and writes one small JSON file for each subject into
``docs/figures/data``. The figures are drawn from these files when the documentation is built.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gradients import exact_gradient, finite_differences, implicit_gradient, plan_gradient
from measure_text import Sides, text
from transformers import AutoModelForCausalLM, AutoTokenizer

import mlot
from mlot import align
from mlot._hf.made import standard_library_documents
from mlot._hf.tokenizers import token_ids
from mlot.distill import make_pieces
from mlot.distill.options import QUICK
from mlot.training._corpus import split_corpus

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).resolve().parent / "data"
TRAINING = ["--quick", "--teacher-steps", "400", "--steps", "250", "--seed", "0", "--threads", "1"]
TEXTS, LENGTH = 24, 128
COLUMNS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Predictions(Sides):
    """What both models predict on the texts, padded on the right."""

    ends: tuple[list[np.ndarray], list[np.ndarray]]

    def loss(self, pairs: bool = True, first: int | None = None, **settings: Any) -> mlot.MultiLevelOTResult:
        """The loss with some settings, on the first so many pairs of positions if that is given."""
        masks = [self.student_mask, self.teacher_mask]
        if first is not None:
            masks = [
                mask & (np.arange(mask.shape[1]) <= self.pairs[:, first - 1 : first, side])
                for side, mask in enumerate(masks)
            ]
        return mlot.multi_level_ot(
            self.student,
            self.teacher,
            student_mask=masks[0],
            teacher_mask=masks[1],
            pairs=self.pairs if pairs else None,
            config=mlot.MultiLevelOTConfig(**settings),
            reduction="none",
            return_plan=True,
        )

    def means(self, found: mlot.MultiLevelOTResult) -> dict[str, float]:
        """Terms by pair or by position, and how well they could be computed."""
        diagnostics = found.diagnostics()
        count = diagnostics.pairs.sum()
        return {
            "had": float(found.had.sum() / count),
            "sl": float(found.sl.sum() / count),
            "sd": float(found.sd.sum() / self.student_mask.sum()),
            "teacher_kept": float(diagnostics.teacher_kept_mass.mean()),
            "student_kept": float(diagnostics.student_kept_mass.mean()),
            "gap": float(diagnostics.matching_gap.sum() / count),
            "marginal_error": float(diagnostics.marginal_error.mean()),
        }


def main() -> None:
    """Train, read, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", help="folder of an earlier run of mlot.distill, in place of training")
    parser.add_argument("--only", choices=MEASUREMENTS, help="one subject alone")
    arguments = parser.parse_args()
    folder = arguments.models
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            folder = str(Path(temporary) / "run")
            command = [sys.executable, "-m", "mlot.distill", *TRAINING, "--output", folder]
            subprocess.run(command, check=True, cwd=ROOT)
        data = read(Path(folder))
    if arguments.only:
        write(arguments.only, MEASUREMENTS[arguments.only](data))
        return
    for name, measure in MEASUREMENTS.items():
        write(name, measure(data))
    write("setting", setting(data))


def write(name: str, found: dict[str, Any]) -> None:
    """Write one subject's numbers, five digits each."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): short(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [short(each) for each in value]
        if isinstance(value, float):
            return float(f"{value:.5g}") if np.isfinite(value) else None
        return value

    DATA.mkdir(exist_ok=True)
    (DATA / f"{name}.json").write_text(json.dumps(short(found), indent=1) + "\n")
    print(f"measured {name}", flush=True)


def read(folder: Path) -> Predictions:
    """Let the teacher and the student trained by cross-entropy read the texts."""
    names = ("student-ce", "teacher")
    tokenizers = [AutoTokenizer.from_pretrained(folder / name, local_files_only=True) for name in names]
    passages = texts(*tokenizers)
    sides = []
    for name, tokenizer in zip(names, tokenizers, strict=True):
        model = AutoModelForCausalLM.from_pretrained(folder / name, local_files_only=True).eval()
        ids = [
            [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
            for text in passages
        ]
        longest = max(map(len, ids))
        padded = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in ids])
        mask = np.arange(longest) < np.array([[len(row) - 1] for row in ids])  # the last predicts nothing
        with torch.no_grad():
            logits = model(padded).logits.double().numpy()
        ranges = [
            align.byte_ranges(tokenizer, text, ids=row) for text, row in zip(passages, ids, strict=True)
        ]
        sides.append((logits, mask, ranges, padded.numpy()))
    (student, student_mask, one, _), (teacher, teacher_mask, other, teacher_ids) = sides
    pairs = align.batch_pairs([align.pairs(s, t) for s, t in zip(one, other, strict=True)])
    ends = ([tokens.ends for tokens in one], [tokens.ends for tokens in other])
    vocabulary = align.VocabularyMap.from_tokenizers(*tokenizers)
    rows = [
        align.text_positions(s, t, passage, vocabulary)
        for s, t, passage in zip(one, other, passages, strict=True)
    ]
    positions = mlot.TextPositions(align.batch_text_positions(rows), teacher_ids, vocabulary.plan())
    return Predictions(student, teacher, student_mask, teacher_mask, pairs, positions, ends)


def texts(student: Any, teacher: Any) -> list[str]:
    """Some windows of the documents that the command held out, each nearly as long as the models read."""
    corpus = split_corpus(standard_library_documents(), QUICK["held_out"], seed=0)
    pieces = make_pieces(corpus.held_out, student, teacher, LENGTH, mark_end=False)
    sizes = map(len, token_ids(student, [piece.text for piece in pieces]))
    long = [piece.text for piece, size in zip(pieces, sizes, strict=True) if size + 1 > 0.9 * LENGTH]
    return long[:: len(long) // TEXTS][:TEXTS]


def setting(data: Predictions) -> dict[str, Any]:
    """What was measured on what."""
    return {
        "texts": len(data.pairs),
        "student_vocabulary": data.student.shape[2],
        "teacher_vocabulary": data.teacher.shape[2],
        "student_positions": int(data.student_mask.sum()),
        "teacher_positions": int(data.teacher_mask.sum()),
        "pairs": int((data.pairs[:, :, 0] >= 0).sum()),
        "training": " ".join(["python -m mlot.distill", *TRAINING]),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("mlot", "numpy", "scipy", "torch", "transformers", "POT")},
        },
    }


def columns(data: Predictions) -> dict[str, Any]:
    """Terms and kept mass against the number of columns; the pool is the whole vocabulary."""
    whole = data.student.shape[2]
    found = {"k": list(COLUMNS)}
    rows = [data.means(data.loss(k=k, pool=whole)) for k in COLUMNS]
    found |= {
        name: [row[name] for row in rows] for name in ("had", "sl", "sd", "teacher_kept", "student_kept")
    }
    flat = [kept_at(data, k, 2.0) for k in COLUMNS]
    return found | {"teacher_kept_at_2": flat, "had_bound": [bound(data, k, whole) for k in COLUMNS]}


def kept_at(data: Predictions, k: int, temperature: float) -> float:
    """Share of the teacher that the columns selected at temperature 1 carry at another temperature."""
    traces = mlot.select(data.teacher, data.teacher_mask, k=k, extra_temperatures=(temperature,))
    return float(np.exp(traces.at(temperature))[data.teacher_mask].sum() / data.teacher_mask.sum())


def bound(data: Predictions, k: int, pool: int) -> float:
    """HAD by pair, plus what the columns that are not kept can add to it: all their mass, of both models."""
    found = data.loss(k=k, pool=pool)
    rest = 0.0
    for side, (logits, kept) in enumerate(
        ((data.student, found.student_columns), (data.teacher, found.teacher_columns))
    ):
        probs = np.exp(logits - logits.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        for n, rows in enumerate(data.pairs):
            rows = rows[rows[:, 0] >= 0, side]
            rest += float((1 - probs[n][rows][:, kept[n]].sum(-1)).sum())
    count = (data.pairs[:, :, 0] >= 0).sum()
    return float((found.had.sum() + rest) / count)


def matching(data: Predictions) -> dict[str, Any]:
    """HAD by matching: against the number of columns, and against the number of positions."""
    methods = ("optimal", "greedy", "rank")
    ks, lengths = (1, 2, 5, 10, 20, 50, 100, 200), (1, 2, 4, 8, 16, 32)
    return {
        "k": list(ks),
        "by_k": {m: [data.means(data.loss(k=k, matching=m))["had"] for k in ks] for m in methods},
        "positions": list(lengths),
        "by_positions": {
            m: [data.means(data.loss(k=50, matching=m, first=n))["had"] for n in lengths] for m in methods
        },
    }


def pool(data: Predictions) -> dict[str, Any]:
    """HAD and its certificate against the number of candidates."""
    sizes = (50, 75, 100, 150, 200, 300, 400, 600, data.student.shape[2])
    rows = [data.means(data.loss(k=50, pool=size)) for size in sizes]
    return {"k": 50, "pool": list(sizes), "had": [r["had"] for r in rows], "gap": [r["gap"] for r in rows]}


def costs(data: Predictions, k: int = 50, temperature: float = 2.0) -> list[np.ndarray]:
    """Sequence costs of the texts, on the columns that the loss selects and matches."""
    found = data.loss(k=k)
    result = []
    for n, (i, j) in enumerate(zip(data.student_mask, data.teacher_mask, strict=True)):
        probs = []
        for logits, kept in (
            (data.student[n, i], found.student_columns[n]),
            (data.teacher[n, j], found.teacher_columns[n]),
        ):
            scaled = np.exp((logits - logits.max(-1, keepdims=True)) / temperature)
            probs.append((scaled / scaled.sum(-1, keepdims=True))[:, kept])
        result.append(np.abs(probs[1][:, None, :] - probs[0][None, :, :]).sum(-1))
    return result


def transport(data: Predictions) -> dict[str, Any]:
    """Value and marginal error of Sinkhorn against regularisation and rounds, and exact transport."""
    problems = costs(data)[:8]
    epsilons, rounds = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0), (1, 2, 5, 10, 20, 50, 100, 200, 500)
    found: dict[str, Any] = {
        "epsilon": list(epsilons),
        "n_iter": list(rounds),
        "exact": float(np.mean([mlot.emd(cost).value for cost in problems])),
        "mean_cost": float(np.mean([cost.mean() for cost in problems])),
        "value": {},
        "marginal_error": {},
    }
    for epsilon in epsilons:
        solved = [
            [mlot.sinkhorn(torch.from_numpy(cost), epsilon=epsilon, n_iter=n) for cost in problems]
            for n in rounds
        ]
        found["value"][epsilon] = [float(np.mean([float(s.value) for s in row])) for row in solved]
        found["marginal_error"][epsilon] = [
            float(np.mean([float(s.marginal_error) for s in row])) for row in solved
        ]
    return found


def gradient(data: Predictions) -> dict[str, Any]:
    """Relative error of three gradients of the value after N rounds, against central differences."""
    cost = costs(data)[0][:24, :20]
    rounds = (1, 2, 3, 5, 10, 20, 50, 100, 200)
    found: dict[str, Any] = {"shape": list(cost.shape), "n_iter": list(rounds)}
    for epsilon in (0.1, 0.02):
        errors: dict[str, list[float]] = {"exact": [], "plan": [], "implicit": []}
        for n in rounds:
            truth = finite_differences(cost, epsilon, n)
            for name, function in (
                ("exact", exact_gradient),
                ("plan", plan_gradient),
                ("implicit", implicit_gradient),
            ):
                difference = np.linalg.norm(function(cost, epsilon, n) - truth)
                errors[name].append(float(difference / np.linalg.norm(truth)))
        found[str(epsilon)] = errors
    return found


def temperature(data: Predictions) -> dict[str, Any]:
    """Terms and kept mass against either temperature, k = 50."""
    values = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0)
    token = [data.means(data.loss(temperature=t)) for t in values]
    sequence = [data.means(data.loss(sequence_temperature=t)) for t in values]
    return {
        "temperature": list(values),
        "had": [row["had"] for row in token],
        "sl": [row["sl"] for row in token],
        "teacher_kept": [row["teacher_kept"] for row in token],
        "sd": [row["sd"] for row in sequence],
        "teacher_kept_of_sequence": [
            kept_at(data, 50, t) if t != 1 else token[2]["teacher_kept"] for t in values
        ],
    }


def pairing(data: Predictions) -> dict[str, Any]:
    """Terms by pairing, and how far apart in the text the positions are that have the same index."""
    places = (0, 1, 2, 5, 10, 20, 40, 60, 80)
    distances = []
    for student, teacher in zip(*data.ends, strict=True):
        shorter = min(len(student), len(teacher)) - 1
        distances.append(np.abs(student[:shorter] - teacher[:shorter]))
    found: dict[str, Any] = {
        "index": list(places),
        "bytes_apart": [float(np.mean([row[p] for row in distances if p < len(row)])) for p in places],
        "same_place": float(np.mean(np.concatenate([row == 0 for row in distances]))),
    }
    for name, given in (("boundary", True), ("by_index", False)):
        result = data.loss(pairs=given)
        count = result.diagnostics().pairs.sum()
        found[name] = {
            "pairs": int(count),
            "had": float(result.had.sum() / count),
            "sl": float(result.sl.sum() / count),
        }
    return found


MEASUREMENTS = {
    "columns": columns,
    "matching": matching,
    "pool": pool,
    "transport": transport,
    "gradient": gradient,
    "temperature": temperature,
    "pairing": pairing,
    "text": text,
}


if __name__ == "__main__":
    main()
