"""The study of what helps is fair, resumes, and measures what it says."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.efficacy import store, texts
from benchmarks.efficacy.cli import main
from benchmarks.efficacy.evaluation import measure
from benchmarks.efficacy.methods import BY_NAME, CE, FULL, METHODS
from benchmarks.efficacy.sizes import GAPS, SIZES, STARTS
from benchmarks.efficacy.student import _Inputs, train, written
from benchmarks.efficacy.training import order
from benchmarks.efficacy.trials import Trial, cells, grid, search
from benchmarks.efficacy.windows import cut
from benchmarks.efficacy.work import OtherStudyError, Study
from mlot._hf.made import standard_library_documents

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TINY = SIZES["tiny"]
TIMES = ("seconds", "processor_seconds")


def few_documents(root=None):
    """A part of each source, since reading all of it takes many seconds."""
    library = Path(sysconfig.get_path("stdlib"))
    folders = (
        [library / "email", library / "json", library / "concurrent"] if root is None else [root / "linalg"]
    )
    return [text for folder in folders for text in standard_library_documents(folder)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny study, run whole in this process by the command: its work folder and its results."""
    base = tmp_path_factory.mktemp("efficacy")
    work, results = base / "work", base / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "standard_library_documents", few_documents)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            patch.setenv(name, "1")
        status = main(["--size", "tiny", "--work", str(work), "--results", str(results)])
    assert status == 0
    return SimpleNamespace(work=work, results=results, study=Study(TINY, work, "cpu"))


@pytest.fixture(scope="module")
def material(finished):
    return finished.study.material


# --- the whole --------------------------------------------------------------------------------------------


def test_results_hold_every_training_and_the_table_every_method(finished):
    found = json.loads((finished.results / "results.json").read_text(encoding="utf-8"))
    assert len(found["trials"]) == len(cells()) * (2 + len(TINY.seeds)) + 2 * len(TINY.seeds)
    assert {one["purpose"] for one in found["trials"]} == {"search", "final", "check"}
    assert {"cpu", "torch", "python", "mlot"} <= set(found["environment"])
    text = (finished.results / "efficacy.md").read_text(encoding="utf-8")
    assert text.split("\n\n")[1] == found["claim"]
    for method in METHODS:
        assert text.count(f"{method.label.strip()} |") >= 2 * 4
    for name in ("bits-per-byte.png", "cloze-accuracy.png", "word-accuracy.png"):
        assert (finished.results / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in text
    assert "Not finished" not in text
    assert str(finished.work) not in text + json.dumps(found)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see whether workers end")
def test_a_killed_study_goes_on_and_ends_the_same(finished, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished.work, work)
    trials = work / "trials"
    whole = {path.name: store.read_json(path) for path in trials.iterdir()}
    for path in trials.iterdir():
        path.unlink()
    command = [sys.executable, "-m", "benchmarks.efficacy", "--size", "tiny", "--workers", "2"]
    command += ["--work", str(work), "--results", str(tmp_path / "results")]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_until(lambda: len(finished_trials(trials)) >= 5 or running.poll() is not None)
        assert running.poll() is None
        running.kill()
        running.wait()
        wait_until(lambda: not alive(running.pid))  # workers end with the process that started them
    finally:
        if alive(running.pid):
            os.killpg(running.pid, signal.SIGKILL)
    before = {path.name: path.stat().st_mtime_ns for path in finished_trials(trials)}
    assert 5 <= len(before) < len(whole)
    Study(TINY, work, "cpu").run(1, lambda line: None)
    after = {path.name: store.read_json(path) for path in finished_trials(trials)}
    assert {name: without_times(one) for name, one in after.items()} == {
        name: without_times(one) for name, one in whole.items()
    }
    assert all((trials / name).stat().st_mtime_ns == changed for name, changed in before.items())


def finished_trials(folder):
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def without_times(found):
    return {name: value for name, value in found.items() if name not in TIMES}


def alive(group):
    """Whether a process of a group runs; one that has ended may wait to be collected by no one."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text(encoding="utf-8").rpartition(") ")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return True
    return False


def wait_until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_report_of_the_finished_part_says_what_is_missing(finished, tmp_path, capsys):
    work = tmp_path / "work"
    shutil.copytree(finished.work, work)
    (report := tmp_path / "results").mkdir()
    command = ["--size", "tiny", "--report", "--work", str(work), "--results", str(report)]
    next((work / "trials").glob("final-pretrained-*")).unlink()
    assert main(command) == 0
    text = (report / "efficacy.md").read_text(encoding="utf-8")
    assert "in each of 2 settings (a student from scratch; a better or a worse teacher)" in text
    assert "Not finished, and not in these tables: student trained on other text first." in text
    assert "### Student trained on other text first" not in text
    next((work / "trials").glob("search-scratch-*")).unlink()
    assert main(command) == 2
    assert "nothing is finished" in capsys.readouterr().err


def test_a_folder_of_another_study_is_refused(finished, tmp_path, capsys):
    with pytest.raises(OtherStudyError, match="--work: expected a folder of this study"):
        Study(SIZES["small"], finished.work, "cpu")
    assert main(["--size", "small", "--work", str(finished.work), "--results", str(tmp_path)]) == 2
    assert "--work" in capsys.readouterr().err
    assert store.read_json(finished.work / "protocol.json")["size"]["name"] == "tiny"


# --- fairness ---------------------------------------------------------------------------------------------


def test_every_method_has_the_same_number_of_trials(finished):
    for size in SIZES.values():
        assert len({len(grid(size, cell)) for cell in cells()}) == 1
        assert all(len(set(grid(size, cell))) == len(grid(size, cell)) for cell in cells())
        assert {trial.seed for trial in search(size)}.isdisjoint(size.seeds)
        tried = {cell: set(grid(size, cell)) for cell in cells() if cell.method != CE}
        for start in ("scratch", "pretrained"):
            assert len({frozenset(found) for cell, found in tried.items() if cell.start == start}) == 1
    assert {(cell.method, cell.start, cell.gap) for cell in cells()} >= {
        (method.name, start, gap)
        for method in METHODS
        if method.name != CE
        for start in STARTS
        for gap in GAPS
    }


def test_too_little_text_is_said(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "standard_library_documents", few_documents)
    with pytest.raises(ValueError, match="pool: expected at most"):
        Study(dataclasses.replace(TINY, pool=10**6, generated=10**6), tmp_path, "cpu").material.prepare()
    assert not (tmp_path / "windows.json").exists()


def test_budgets_are_equal(finished):
    found = [one for one in finished.study.results() if one["purpose"] == "final"]
    assert {one["steps"] for one in found} == {TINY.steps}
    assert {one["windows"] for one in found} == {TINY.steps * TINY.batch}
    for seed in TINY.seeds:
        own = [one for one in found if one["seed"] == seed]
        read = {one["targets"] for one in own if one["method"] != "sequence-kd"}
        assert len(read) == 1
        for one in own:
            if one["method"] == "sequence-kd":
                assert one["teacher's windows"] == TINY.steps * written(one["alpha"], TINY.batch) > 0
                assert 0.5 * min(read) < one["targets"] < 2 * min(read)
            else:
                assert one["teacher's windows"] == 0


def test_methods_see_the_same_windows_in_the_same_order_from_the_same_start(material):
    def inputs(method, seed, alpha=0.9):
        gap = "" if method == CE else "wide"
        return _Inputs(Trial("final", method, "scratch", gap, 1e-3, alpha, seed), material)

    plain = inputs(CE, 0)
    seen = torch.cat(plain.indices)
    assert len(set(seen.tolist())) == min(TINY.windows, len(seen))
    assert not torch.equal(seen, torch.cat(inputs(CE, 1).indices))
    for method in METHODS:
        mine = inputs(method.name, 0)
        assert torch.equal(torch.cat(mine.indices), seen)
        ids, batch = mine.batch(1)
        kept = TINY.batch - mine.written_share
        assert len(ids) == TINY.batch
        assert torch.equal(ids[:kept], plain.batch(1)[0][:kept])
        assert torch.equal(batch.labels[:kept], plain.batch(1)[1].labels[:kept])
    for start in ("scratch", "pretrained"):
        first, second = (material.student(start, 0).state_dict() for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)
    differ = [material.student("scratch", seed).state_dict()["model.embed_tokens.weight"] for seed in (0, 1)]
    assert not torch.equal(*differ)


def test_the_teachers_text_continues_the_drawn_windows_alone(material):
    mine = _Inputs(Trial("final", "sequence-kd", "scratch", "wide", 1e-3, 5.4, 0), material)
    drawn = set(torch.cat(mine.indices).tolist()) | set(order(len(mine.text), TINY.windows, 0).tolist())
    assert {int(n) % len(mine.text) for some in mine.written for n in some} <= drawn


def test_the_same_trial_gives_the_same_numbers(finished, material):
    trial = next(one for one in search(TINY) if one.method == FULL)
    again = train(trial, material)
    assert without_times(again) == without_times(finished.study.result(trial))


def test_with_alpha_0_every_loss_is_cross_entropy(material):
    logits = torch.randn(TINY.batch, TINY.length, len(material.tokenizer("student")))
    for method in METHODS:
        gap = "" if method.name == CE else "wide"
        _, batch = _Inputs(Trial("final", method.name, "scratch", gap, 1e-3, 0.9, 0), material).batch(0)
        plain = BY_NAME[CE].loss(logits, batch, 0.0, TINY.k)
        torch.testing.assert_close(method.loss(logits, batch, 0.0, TINY.k), plain)
        if method.needs in ("logits", "traces"):
            assert not torch.isclose(method.loss(logits, batch, 1.0, TINY.k), plain)


def test_losses_of_the_ablations_differ_by_the_term(material):
    logits = torch.randn(TINY.batch, TINY.length, len(material.tokenizer("student")))
    _, batch = _Inputs(Trial("final", FULL, "scratch", "wide", 1e-3, 1.0, 0), material).batch(0)
    value = {method.name: float(method.loss(logits, batch, 1.0, TINY.k)) for method in METHODS[4:]}
    plain = float(BY_NAME[CE].loss(logits, batch, 0.0, TINY.k))
    had, sl, sd = (value[FULL] - value[name] for name in ("no-had", "no-sl", "no-sd"))
    assert min(had, sl, sd) > 0
    assert plain + had + sl + sd == pytest.approx(value[FULL], rel=1e-5)
    assert value["optimal-index"] != value[FULL]
    assert value["rank-index"] != value["optimal-index"]


def test_pairs_have_read_the_same_text(material):
    sides = [material.tokenizer(side) for side in ("student", "teacher")]
    for window, found in zip(material.windows("student"), material.pairs.tolist(), strict=True):
        for i, j in found:
            if i >= 0:
                assert sides[0].decode(window.student[1 : i + 1]) == sides[1].decode(
                    window.teacher[1 : j + 1]
                )


def test_the_teachers_part_is_what_the_teacher_says(material):
    text = material.tokens("student", "teacher")
    with torch.no_grad():
        logits = material.teacher("wide")(input_ids=text.ids[:3]).logits
    taught = material.taught("wide")
    np.testing.assert_allclose(taught.logits[:3], logits.numpy(), atol=1e-5)
    kept = torch.gather(
        logits.log_softmax(-1), 2, taught.traces.columns[:3, None, :].expand(-1, TINY.length, -1)
    )
    mask = taught.traces.mask[:3]
    torch.testing.assert_close(taught.traces.log_probs[:3][mask], kept[mask])


# --- text -------------------------------------------------------------------------------------------------


def test_windows_of_the_splits_are_disjoint(material):
    seen = {name: {window.text for window in material.windows(name)} for name in material.texts}
    for held_out in ("validation", "test"):
        for name in set(seen) - {held_out}:
            assert not [text for text in seen[held_out] & seen[name] if len(text) >= 60]


def test_windows_joined_are_the_document(material):
    sides = material.tokenizer("student"), material.tokenizer("teacher")
    document = "A line.\n\n    def f(x):  # " + "é" * 9 + " 終わり\n" + "word " * 50
    windows = cut([document], *sides, 24)
    assert "".join(window.text for window in windows).strip() == document.strip()
    for window in windows:
        assert max(len(window.student), len(window.teacher)) <= 24
        assert sides[0].decode(window.student[1:]) == sides[1].decode(window.teacher[1:]) == window.text
    # What no window has room for is left out.
    assert [window.text for window in cut(["short " + "終" * 16], *sides, 24)] == ["short"]


# --- what is measured -------------------------------------------------------------------------------------


class Table(torch.nn.Module):
    """Predicts by the last token alone, from a table of logits."""

    def __init__(self, logits):
        super().__init__()
        self.table = torch.nn.Parameter(logits)

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.table[input_ids])


def test_uniform_predictions_have_the_bits_of_the_vocabulary(material):
    size = len(material.tokenizer("student"))
    held_out = material.held_out("test", "student")
    found = measure(Table(torch.zeros(size, size)), held_out)
    assert found["bits_per_byte"] == pytest.approx(held_out.tokens.targets * math.log2(size) / held_out.bytes)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_measures_are_what_decoding_word_by_word_gives(material, side):
    tokenizer = material.tokenizer(side)
    model = material.teacher("wide") if side == "teacher" else material.student("pretrained", 0)
    held_out = material.held_out("student", side)  # larger than the held-out splits are here
    found = measure(model, held_out)
    windows = [getattr(window, side) for window in material.windows("student")]
    bits = right = 0
    with torch.no_grad():
        for ids in windows:
            log_probs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
            bits -= sum(float(log_probs[n, ids[n + 1]]) for n in range(len(ids) - 1)) / math.log(2)
        for window, first, after in held_out.words.spans.tolist():
            ids = windows[window]
            word = tokenizer.decode(ids[first:after])
            assert word.startswith(" ")
            assert word[1:].isalpha()
            wrote = ids[:first]
            for _ in range(after - first + 1):
                wrote = [*wrote, int(model(input_ids=torch.tensor([wrote])).logits[0, -1].argmax())]
            ended = tokenizer.decode(wrote[-1:])
            right += wrote[first:after] == ids[first:after] and not ended[:1].isalpha()
    assert found["bits_per_byte"] == pytest.approx(bits / held_out.bytes, rel=1e-5)
    assert found["word_accuracy"] == pytest.approx(right / len(held_out.words.spans))


def test_cloze_compares_the_true_word_with_three_others(material):
    tokenizer = material.tokenizer("student")
    held_out = material.held_out("student", "student")
    rows = held_out.cloze
    assert len(rows) % 4 == 0
    assert len(rows) > 0
    text = {window.text for window in material.windows("student")}
    right = []
    model = material.student("pretrained", 3)
    for n in range(0, len(rows), 4):
        scores, words = [], []
        for ids, labels in zip(rows.ids[n : n + 4], rows.labels[n : n + 4], strict=True):
            places = (labels != -100).nonzero()[:, 0]
            before, word = tokenizer.decode(ids[1 : places[0]]), tokenizer.decode(ids[places])
            words.append(word)
            with torch.no_grad():
                log_probs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
            scores.append(float(sum(log_probs[place - 1, ids[place]] for place in places)))
        assert len(set(words)) == 4
        assert any(one.startswith(before + words[0]) for one in text)
        right.append(scores[0] > max(scores[1:]))
    assert measure(model, held_out)["cloze_accuracy"] == pytest.approx(np.mean(right))


def test_a_model_that_knows_the_text_completes_every_word(material):
    held_out = material.held_out("student", "student")
    known = iter(range(10**6))
    ids = torch.cat([held_out.tokens.ids[:, 1:], held_out.tokens.ids[:, :1]], dim=1)

    class Knows(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids):
            rows = [next(known) % len(ids) for _ in input_ids]
            some = ids[rows, : input_ids.shape[1]]
            width = len(held_out.words.continues)
            return SimpleNamespace(logits=50.0 * torch.nn.functional.one_hot(some, width))

    measured = measure(Knows(), held_out)
    assert (measured["word_accuracy"], measured["bits_per_byte"] < 1e-6) == (1.0, True)
