"""The numbers of the study of what helps: presets, splits, statistics, and the words made of them."""

import dataclasses

import numpy as np
import pytest
import scipy
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.efficacy import store, texts
from benchmarks.efficacy.analysis import MEASURES, by_seed, contrast, rows, settings
from benchmarks.efficacy.claim import claim
from benchmarks.efficacy.methods import BY_NAME, CE, FULL
from benchmarks.efficacy.sizes import SIZES, STARTS
from benchmarks.efficacy.statistics import estimate, holm, p_value, paired
from benchmarks.efficacy.student import written
from benchmarks.efficacy.training import batches, order
from benchmarks.efficacy.trials import Cell, Trial, cells, check, choose, grid, search

TINY = SIZES["tiny"]
floats = st.floats(-100, 100).map(lambda value: round(value, 3))


@pytest.mark.parametrize("name", ["small", "large"])
def test_presets_compare_at_least_five_seeds(name):
    assert len(SIZES[name].seeds) >= 5
    wide, narrow = SIZES[name].teachers
    assert wide.width * wide.layers * wide.steps > narrow.width * narrow.layers * narrow.steps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tuning_seeds": (1,)}, "tuning_seeds: expected none of seeds"),
        ({"generated": 33}, "expected a multiple of pool 16"),
        ({"windows": 17}, "at most as many"),
        ({"plain_learning_rates": (1e-3,)}, "plain_learning_rates: expected 2, as many as"),
        ({"plain_learning_rates": (2e-3, 3e-3)}, "expected all of learning_rates"),
    ],
)
def test_unfair_or_impossible_presets_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_the_share_of_the_teachers_text_grows_with_alpha():
    assert [written(alpha, 4) for alpha in (0.15, 0.9, 5.4)] == [1, 2, 3]
    assert [written(alpha, 32) for alpha in (0.15, 0.9, 5.4)] == [4, 15, 27]
    assert written(1e9, 8) == 7


def test_splits_share_no_document_and_no_longer_paragraph(monkeypatch):
    shared = "a paragraph that many sources repeat, word for word, again and again"
    documents = [f"{shared}\n\nonly of document {n}: " + "words of it " * (5 + n) + "\n" for n in range(40)]
    others = [f"{shared}\n\nother text {n} " + "of another kind " * 9 + "\n" for n in range(9)]
    monkeypatch.setattr(
        texts, "standard_library_documents", lambda root=None: documents if root is None else others
    )
    found = texts.collect(2_000)
    splits = [getattr(found, name) for name in ("test", "validation", "student", "teacher", "other")]
    assert all(splits)
    for n, one in enumerate(splits):
        long = {part for text in one for part in texts.paragraphs(text) if len(part) >= 60}
        for other in splits[n + 1 :]:
            assert set(one).isdisjoint(other)
            assert long.isdisjoint(part for text in other for part in texts.paragraphs(text))
    assert any(shared in text for text in found.test)
    assert len("".join(found.teacher)) > 2 * len("".join(found.student))
    assert texts.collect(2_000) == found


@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 9), st.integers(0, 5))
def test_every_window_comes_before_any_comes_again(count, batch, steps, seed):
    found = torch.cat(list(batches(count, batch, steps, seed)))
    assert len(found) == batch * steps
    times = np.bincount(found.numpy(), minlength=count)
    assert times.max() - times.min() <= 1
    assert torch.equal(found, order(count, batch * steps, seed))


@given(st.lists(floats, min_size=2, max_size=12))
def test_estimates_are_scipys(values):
    found = estimate(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.standard_error == pytest.approx(scipy.stats.sem(values), abs=1e-12)
    if np.ptp(values) > 0:
        low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values))
        assert (found.low, found.high) == pytest.approx((low, high))


@given(st.lists(st.tuples(floats, floats), min_size=3, max_size=8))
def test_paired_differences_are_scipys(values):
    first, second = (dict(enumerate(side)) for side in zip(*values, strict=True))
    differences = [a - b for a, b in values]
    if np.ptp(differences) < 1e-6:
        return
    expected = scipy.stats.ttest_rel(list(first.values()), list(second.values()))
    assert p_value(first, second) == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    found = paired(first, second)
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert paired({**first, 99: 1.0}, second) == found


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holms_adjustment_rejects_what_the_step_down_test_does(values):
    adjusted = holm({str(n): value for n, value in enumerate(values)})
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for rank, n in enumerate(sorted(range(len(values)), key=lambda n: values[n])):
            if values[n] * (len(values) - rank) > level:
                break
            rejected.add(str(n))
        assert {name for name, value in adjusted.items() if value <= level} == rejected


def made_up(difference, noise=0.001, checked=0.0):
    """Trainings whose methods differ from cross-entropy alone by what a function says."""
    found = []
    for method, start, gap in [(cell.method, cell.start, cell.gap) for cell in cells()]:
        for seed in range(5):
            bits = 3.0 + 0.1 * seed + difference(method, start, gap) + noise * ((seed * 7 + len(method)) % 5)
            one = {"purpose": "final", "method": method, "start": start, "gap": gap, "seed": seed}
            one |= {"bits_per_byte": bits, "word_accuracy": 0.1, "cloze_accuracy": 0.5}
            found.append({**one, "learning_rate": 1e-3, "alpha": 0.9, "processor_seconds": 1.0})
            if method == CE:
                found.append({**found[-1], "purpose": "check", "bits_per_byte": bits + checked})
    return found


def test_the_claim_follows_the_numbers():
    def difference(method, start, gap):
        if method == FULL:
            return -0.5 if start == "scratch" else 0.25
        return {"uld": 0.1, "released": 0.0, "sequence-kd": -0.1}.get(method, 0.0)

    results = made_up(difference, noise=0.02, checked=1.0)
    table = rows(results)
    text = claim(results, table, 5)
    assert "With 5 seeds in each of 4 settings" in text
    means = [contrast(results, FULL, CE, setting, "bits_per_byte").mean for setting in settings(results)]
    own = f"{BY_NAME[FULL].label}, {min(means):+.3f} to {max(means):+.3f}: better in 2 of 4, worse in 2 of 4."
    assert own in text
    for name, said in (
        ("uld", "worse in 4 of 4"),
        ("sequence-kd", "better in 4 of 4"),
        ("released", "no difference shown in 4 of 4"),
    ):
        start = text.index(f"{BY_NAME[name].label}, ")
        assert text[start:].splitlines()[0].endswith(f": {said}.")
    assert "sequence-level KD in 2 of 4, MultiLevelOT: optimal matching, boundary pairs in 2 of 4" in text
    assert "boundary instead of index pairs (optimal matching): better in 2 of 4, worse in 2 of 4" in text
    assert "Of 12 differences shown, ablations included" in text
    assert f"against it at a rate that all were tried with, {BY_NAME[FULL].label} is better in 4 of 4" in text
    assert "Of 36 comparisons with cross-entropy alone, intervals show the cloze test 0 better and 0" in text
    verdicts = {row.method: row.verdict for row in table["pretrained", "wide"]}
    assert (verdicts[FULL], verdicts["uld"], verdicts["sequence-kd"], verdicts[CE]) == (
        "worse",
        "worse",
        "better",
        "",
    )


def test_rows_pair_every_method_with_cross_entropy_of_its_start():
    results = made_up(lambda method, start, gap: -0.3 if (method, gap) == (FULL, "wide") else 0.0)
    for found in results:
        if found["method"] == CE and found["start"] == "pretrained":
            found["bits_per_byte"] += 1
    table = rows(results)
    for start, gap in settings(results):
        row = next(row for row in table[start, gap] if row.method == FULL)
        expected = (-0.3 if gap == "wide" else 0.0) - (1 if start == "pretrained" else 0)
        assert row.differences["bits_per_byte"].mean == pytest.approx(expected, abs=0.01)
        assert row.differences["bits_per_byte"].count == 5
        assert set(row.values) == set(MEASURES)
        assert by_seed(results, CE, (start, gap), "bits_per_byte").keys() == set(range(5))


def test_the_check_gives_cross_entropy_the_best_rate_of_the_others():
    size = SIZES["small"]
    found = {trial.name: {"bits_per_byte": 3.0 + trial.learning_rate} for trial in search(size)}
    for start in STARTS:
        own = {rate for rate, _ in grid(size, Cell(FULL, start, "wide"))}
        trials = check(size, found, (start,))
        assert {trial.learning_rate for trial in trials} == {min(own)}
        assert [trial.seed for trial in trials] == list(size.seeds)
        assert {(trial.method, trial.start, trial.gap, trial.alpha) for trial in trials} == {
            (CE, start, "", 0.0)
        }


def test_the_search_chooses_the_fewest_bits():
    found = {trial.name: {"bits_per_byte": 3.0} for trial in search(TINY)}
    cell = Cell(FULL, "scratch", "wide")
    rate, alpha = grid(TINY, cell)[1]
    found[Trial("search", FULL, "scratch", "wide", rate, alpha, 1000).name] = {"bits_per_byte": 2.9}
    chosen = choose(TINY, found)
    assert chosen[cell] == (rate, alpha)
    assert chosen[Cell(FULL, "scratch", "narrow")] == grid(TINY, cell)[0]
    assert set(chosen) == set(cells())


def test_what_is_written_is_whole_or_not_there(tmp_path):
    path = tmp_path / "found.json"
    store.write_json(path, {"value": 0.1 + 0.2})
    assert store.read_json(path) == {"value": 0.1 + 0.2}
    with pytest.raises(ValueError):
        store.write_json(path, {"value": float("nan")})

    def breaks_off(passing):
        passing.write_text("half", encoding="utf-8")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.write(path, breaks_off)
    assert store.read_json(path) == {"value": 0.1 + 0.2}
    assert [one.name for one in tmp_path.iterdir()] == ["found.json"]
