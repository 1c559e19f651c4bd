"""What a finished study leaves behind: results.json, efficacy.md and the plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.efficacy import store
from benchmarks.efficacy.analysis import rows
from benchmarks.efficacy.claim import claim
from benchmarks.efficacy.figures import draw
from benchmarks.efficacy.material import describe
from benchmarks.efficacy.report import markdown
from benchmarks.efficacy.work import Study
from benchmarks.environment import describe as environment

#: Figures by what they show.
FIGURES = {
    "bits_per_byte": "bits-per-byte.png",
    "cloze_accuracy": "cloze-accuracy.png",
    "word_accuracy": "word-accuracy.png",
}


def write_results(study: Study, folder: Path, workers: int) -> str:
    """Write everything into a folder.

    Returns:
        The claim.
    """
    results = study.results()
    material = study.material
    jobs = [job for stage in material.jobs() for job in stage]
    texts = {
        name: {**found, "windows": len(material.windows(name))} for name, found in material.texts.items()
    }
    context: dict[str, Any] = {
        "environment": environment(study.device),
        "prepared": {job: material.report(job) for job in jobs},
        "texts": texts,
        "costs": _costs(results, {job: material.report(job) for job in jobs}, workers),
    }
    said = claim(results, rows(results), len(study.size.seeds))
    folder.mkdir(parents=True, exist_ok=True)
    content = {"claim": said, "size": describe(study.size), **context, "trials": results}
    store.write_json(folder / "results.json", content)
    text = markdown(study.size, results, context)
    store.write(folder / "efficacy.md", lambda path: path.write_text(text, encoding="utf-8"))
    for measure, name in FIGURES.items():
        store.write(folder / name, lambda path, measure=measure: draw(results, measure, path))
    return said


def _costs(results: list[dict[str, Any]], prepared: dict[str, Any], workers: int) -> dict[str, Any]:
    """Minutes that everything took, summed over processes."""
    trained = sum(found["processor_seconds"] for found in results)
    made = sum(
        found.get("processor seconds of training", found["processor_seconds"]) for found in prepared.values()
    )
    waited = sum(found["seconds"] for found in results)
    return {
        "workers": workers,
        "trainings": len(results),
        "processor minutes of the trainings": round(trained / 60, 1),
        "processor minutes of the preparation": round(made / 60, 1),
        "minutes of the trainings by the clock, summed over workers": round(waited / 60, 1),
    }
