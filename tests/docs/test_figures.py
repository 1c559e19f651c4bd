"""The documentation's figures are drawn from committed measurements, and what pages say of them is so."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "docs" / "figures"
PAGES = [path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts]
DRAWN = {
    name for path in PAGES for name in re.findall(r"\{drawn\} figures/plots\.py (\w+)", path.read_text())
}


def data(name: str) -> dict:
    return json.loads((FIGURES / "data" / f"{name}.json").read_text())


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(FIGURES))
    yield
    for name in ("plots", "gradients"):
        sys.modules.pop(name, None)


def _module(name: str) -> ModuleType:
    return __import__(name)


def test_every_figure_is_drawn_and_shown(figures: None) -> None:
    import matplotlib

    matplotlib.use("agg")
    plots = _module("plots")
    own = {n for n, f in vars(plots).items() if getattr(f, "__annotations__", {}).get("return") == "Figure"}
    assert own == DRAWN
    for name in sorted(own):
        figure = getattr(plots, name)()
        assert all(axes.has_data() for axes in figure.axes), name
        plots.pyplot.close(figure)


def test_matchings() -> None:
    """Greedy is close to the optimum, ranking more than twice it at 50 columns; nothing beats the optimum."""
    found = data("matching")
    optimal, greedy, rank = (np.array(found["by_k"][m]) for m in ("optimal", "greedy", "rank"))
    at = found["k"].index(50)
    assert rank[at] > 2 * optimal[at]
    assert (optimal <= greedy + 1e-9).all()
    assert (greedy <= 1.03 * optimal).all()
    assert (rank > 1.9 * optimal).all()


def test_pools() -> None:
    """A pool of k is far off, one of three times k is not, and each certificate holds."""
    found = data("pool")
    had, gap = np.array(found["had"]), np.array(found["gap"])
    best = had[-1]
    assert found["pool"][-1] == data("setting")["student_vocabulary"]
    assert gap[-1] == 0
    assert (had - gap <= best + 1e-4).all()
    assert had[0] > 1.5 * best
    assert had[found["pool"].index(150)] < 1.002 * best


def test_columns() -> None:
    """No term has levelled off at 50 columns; the bound holds; less is kept at the higher temperature."""
    found = data("columns")
    at = found["k"].index(50)
    for term in ("had", "sl", "sd"):
        assert found[term][at + 1] > 1.2 * found[term][at]
        assert (np.diff(found[term]) > 0).all()
    assert (np.array(found["had_bound"]) >= max(found["had"])).all()
    assert (np.diff(found["had_bound"]) < 0).all()
    assert (np.array(found["teacher_kept_at_2"]) < found["teacher_kept"]).all()
    assert found["teacher_kept_at_2"][at] < 0.15
    assert found["sl"][at] > 4 * max(found["had"][at], found["sd"][at])  # SL is the largest by far


def test_transport() -> None:
    """The value lies between exact transport and the mean cost, at 0.1 nearer to the latter."""
    found = data("transport")
    settled = np.array([found["value"][str(e)][-1] for e in found["epsilon"]])
    assert (np.diff(settled) > 0).all()
    assert found["exact"] < settled[0]
    assert settled[-1] < found["mean_cost"]
    assert found["value"]["0.1"][-1] > (found["exact"] + found["mean_cost"]) / 2
    assert 0.05 < found["mean_cost"] < 0.2
    twenty = found["n_iter"].index(20)
    assert found["marginal_error"]["0.1"][twenty] < 1e-15
    assert 0.005 < found["marginal_error"]["0.01"][twenty] < 0.03
    assert max(found["marginal_error"]["1.0"][2:]) < 1e-15


def test_gradients() -> None:
    """Exact for every number of rounds; implicit in the limit; the plan as a constant never."""
    found = data("gradient")
    for epsilon in ("0.1", "0.02"):
        errors = found[epsilon]
        assert max(errors["exact"]) < 1e-7
        assert errors["implicit"][0] > 0.01
        assert errors["implicit"][-1] < 1e-7
        assert min(errors["plan"]) > 0.3
    assert found["0.1"]["implicit"][found["n_iter"].index(20)] < 1e-8


def test_the_three_gradients_are_what_they_are_called(figures: None) -> None:
    gradients = _module("gradients")
    cost = np.random.default_rng(0).uniform(0, 1, size=(5, 4))
    for n_iter, implicit_is_exact in ((1, False), (300, True)):
        truth = gradients.finite_differences(cost, 0.1, n_iter)
        exact = gradients.exact_gradient(cost, 0.1, n_iter)
        implicit = gradients.implicit_gradient(cost, 0.1, n_iter)
        np.testing.assert_allclose(exact, truth, atol=1e-7)
        assert np.allclose(implicit, truth, atol=1e-6) == implicit_is_exact


def test_temperatures() -> None:
    found = data("temperature")
    for name in ("teacher_kept", "had", "sl", "sd"):
        assert (np.diff(found[name]) < 0).all()
    assert found["teacher_kept"][0] > 0.7
    assert found["teacher_kept"][-1] < 0.1


def test_pairs() -> None:
    """By index, 96 % of the pairs are at different places, and both terms are larger."""
    found = data("pairing")
    assert round(100 * (1 - found["same_place"])) == 96
    assert (np.diff(found["bytes_apart"]) > 0).all()
    assert found["bytes_apart"][-1] > 50
    assert found["by_index"]["had"] > 1.4 * found["boundary"]["had"]
    assert found["by_index"]["sl"] > 1.5 * found["boundary"]["sl"]


def test_the_setting_that_the_pages_tell() -> None:
    found = data("setting")
    text = (ROOT / "docs" / "choosing.md").read_text()
    assert f"{found['texts']} passages" in text
    assert f"a vocabulary of {found['teacher_vocabulary']}" in text
    assert f"and {found['student_vocabulary']} (Unigram)" in text


def test_the_plan_from_the_text() -> None:
    """Each bound holds; by index nothing is found; the log cost gains where L1 and the overlap lose."""
    numbers = data("text")
    assert (
        numbers["boundaries"] + numbers["inside"]
        == numbers["targets_canonical"]
        == numbers["targets_longest"]
    )
    assert numbers["served_mass"]["canonical"] < numbers["served_mass"]["longest"]
    rest = {name: np.array(values) for name, values in numbers["rest"].items()}
    assert (rest["had"] <= rest["had"][-1] + 1e-4).all()
    assert (rest["had"] + rest["bound"] >= rest["had"][-1] - 1e-4).all()
    assert (np.diff(rest["sl"]) >= 0).all()
    at = numbers["rest"]["k"].index(256)
    assert rest["rest"][at] < 0.03
    assert rest["sl"][at] > 0.95 * rest["sl"][-1]
    pooled, sharp = numbers["same_bytes"], numbers["sharpened"]
    assert max(pooled["l1_by_index"]) < 0.005
    assert min(pooled["possible"]) > 0.94
    assert 0.55 < min(pooled["l1"]) < max(pooled["l1"]) < 0.65
    assert 0.4 < min(pooled["log"]) < max(pooled["log"]) < 0.5
    assert sharp["l1"][0] > sharp["log"][0]
    assert sharp["l1"][-1] < sharp["log"][-1]
    assert (np.diff(sharp["overlaps"]) < 0).all()
    assert (np.diff(sharp["log"]) > 0).all()
    assert (np.diff(sharp["l1"]) < 0).all()
