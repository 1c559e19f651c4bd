"""The README's examples run, and what it names exists."""

import json
import re
import warnings
from pathlib import Path

import pytest

import mlot
from mlot import align

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
STUDY = (ROOT / "docs" / "study.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def models() -> dict[str, object]:
    """What the examples take for granted: two models with tokenizers of their own."""
    pytest.importorskip("transformers")
    import torch

    import mlot.nn
    import mlot.training
    import training_cases as cases

    return {
        "torch": torch,
        "mlot": mlot,
        **{name: getattr(mlot.training, name) for name in mlot.training.__all__},
        "student": cases.make_student(),
        "copy_of_student": cases.make_student(),
        "teacher": cases.make_teacher(),
        "student_tokenizer": cases.student_tokenizer(),
        "teacher_tokenizer": cases.teacher_tokenizer(),
    }


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_run(number: int, models: dict[str, object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(EXAMPLES[number], f"README example {number + 1}", "exec"), dict(models))


def test_it_is_short() -> None:
    assert len(EXAMPLES) == 3
    assert len(README.splitlines()) <= 150


def test_the_picture_is_that_of_the_two_tokenizations(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is drawn by the library from the tokens of the landing page's picture."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import landing

    student, teacher = (
        landing._tokens([*pieces, " tokens", "."])[0] for pieces in (landing.STUDENT, landing.TEACHER)
    )
    text = "".join([*landing.TEACHER, " tokens", "."])

    def words(tokens: align.TokenBytes) -> align.TokenBytes:  # without the start token
        return align.TokenBytes(
            *(getattr(tokens, name)[1:] for name in ("ids", "starts", "ends", "special")), tokens.total
        )

    assert align.draw(words(student), words(teacher), text).strip() in README


def test_commands_are_targets() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE)) | set(
        re.findall(r"`make (\w+)", README)
    )
    assert {"demo", "test"} <= named <= targets


def test_settings_have_the_defaults_that_are_written() -> None:
    config = mlot.MultiLevelOTConfig()
    for name, value in re.findall(r"`(\w+)=([\w.\"]+)`", README):
        if hasattr(config, name) and name != "alpha":
            assert getattr(config, name) == eval(value), name


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            r"optimal matching, boundary pairs, .*: better in 1 of 4, no difference shown in 3 of 4\.",
            "MultiLevelOT with boundary pairs: better in 1 of 4 settings (by 0.011, 95 % interval 0.008 to 0.013), "
            "no difference shown in 3.",
        ),
        (
            r"optimal matching, index pairs, .*: better in 1 of 4, worse in 2 of 4, no",
            "With index pairs, the paper's: better in 1 of 4, worse in 2.",
        ),
        (
            r"boundary instead of index pairs .*: better in 3 of 4, no difference shown in 1 of 4\.",
            "Boundary pairs instead of index pairs: better in 3 of 4, no difference shown in 1.",
        ),
        (
            r"ULD, .*: worse in 1 of 4, no difference shown in 3 of 4\.\n- released code's loss, .*: worse in 1 of 4, no",
            "ULD and the released code's loss: worse in 1 of 4 each, no difference shown in 3.",
        ),
        (r"sequence-level KD, -0.095 .*: better in 2 of 4, no", "better in 2 of 4, by 0.095 and 0.055"),
        (
            r"cloze test 0 better and 7 worse, words completed 0 better",
            "No method was shown to be better in the",
        ),
        (
            r"Of 17 differences .* 7 \(7 better, 0 worse\) have p < 0.05 .* 36",
            "Of 17 differences shown among 36",
        ),
        (
            r"rate that all were tried with, .*boundary pairs is better in 3 of 4",
            "boundary pairs are better in 3 of 4",
        ),
    ],
)
def test_what_the_study_found_is_what_its_results_say(found: str, said: str) -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "efficacy" / "results.json").read_text())
    assert re.search(found, results["claim"])
    assert said in " ".join(STUDY.split())


def test_times_are_those_of_the_results() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "cpu" / "criterion.json").read_text())
    times = {row["name"]: row["median_seconds"] for row in results["rows"] if row["median_seconds"]}
    said = README.split("<!-- measured -->")[1].split("<!-- /measured -->")[0]
    for words, name in (
        ("rank matching", "mlot, rank"),
        ("optimal matching", "mlot, optimal"),
        ("the text's plan", "mlot, text"),
        ("cross-entropy alone in plain PyTorch", "cross-entropy alone, plain"),
        ("the same loss in plain PyTorch", "plain PyTorch, rank"),
        ("compiled", "plain PyTorch, rank, compiled"),
        ("`mlot.uld`", "mlot.uld"),
        ("TRL's ULD", "TRL ULDLoss"),
    ):
        assert f"{words} {times[name] * 1e3:,.0f} ms" in said, words
    assert results["environment"]["cpu"] in said
