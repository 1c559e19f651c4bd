"""Figures of the pages, drawn from the measurements in ``data`` (see ``measure.py``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DATA = Path(__file__).resolve().parent / "data"
COLUMNS = "columns kept, k"
ROUNDS = "rounds, N"


def measured(name: str) -> dict[str, Any]:
    """One file of measurements."""
    found: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text())
    return found


def panels() -> tuple[Figure, tuple[Axes, Axes]]:
    """A figure of two panels side by side."""
    figure, (left, right) = pyplot.subplots(1, 2)
    return figure, (left, right)


def matching() -> Figure:
    """HAD under the three matchings."""
    data = measured("matching")
    figure, (left, right) = panels()
    styles = {"optimal": "o-", "greedy": "s--", "rank": "^:"}
    for method, style in styles.items():
        left.plot(data["k"], data["by_k"][method], style, label=method, markersize=4)
    left.set(xscale="log", yscale="log", xlabel=COLUMNS, ylabel="HAD for each pair")
    left.legend(title="matching")
    best = data["by_positions"]["optimal"]
    for number, method in enumerate(("greedy", "rank"), start=1):
        ratio = [value / least for value, least in zip(data["by_positions"][method], best, strict=True)]
        right.plot(data["positions"], ratio, styles[method], label=method, markersize=4, color=f"C{number}")
    right.axhline(1, color="C0", linewidth=1)
    right.set(xscale="log", xlabel="paired positions (k = 50)", ylabel="HAD ÷ that of the optimal matching")
    right.set_xticks(data["positions"], [str(n) for n in data["positions"]])
    right.minorticks_off()
    right.legend()
    return figure


def pool() -> Figure:
    """HAD in pools of different sizes, with what the certificate leaves open."""
    data = measured("pool")
    figure, axes = pyplot.subplots(figsize=(6.0, 3.2))
    below = [min(gap, had) for gap, had in zip(data["gap"], data["had"], strict=True)]
    axes.errorbar(
        data["pool"], data["had"], yerr=[below, [0.0] * len(below)], fmt="o-", markersize=4, capsize=4
    )
    axes.set(xscale="log", xlabel="candidates, pool", ylabel="HAD for each pair", ylim=(0, None))
    axes.set_xticks(data["pool"], [str(size) for size in data["pool"]])
    axes.minorticks_off()
    return figure


def rounds() -> Figure:
    """Marginal error against rounds."""
    data = measured("transport")
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6))
    colours = pyplot.get_cmap("viridis")
    last = len(data["epsilon"]) - 1
    for number, epsilon in enumerate(data["epsilon"]):
        errors = [max(error, 1e-16) for error in data["marginal_error"][str(epsilon)]]
        colour = colours(0.32 + 0.5 * number / last)
        axes.plot(data["n_iter"], errors, "o-", markersize=3, color=colour, label=f"{epsilon:g}")
    axes.axvline(20, color="C4", linewidth=1, linestyle="--")
    axes.set(xscale="log", yscale="log", xlabel=ROUNDS, ylabel="marginal error, $L_1$", ylim=(1e-10, 1))
    axes.legend(title=r"$\lambda$", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def epsilon() -> Figure:
    """Value and marginal error against the regularisation."""
    data = measured("transport")
    figure, (left, right) = panels()
    at = {n: data["n_iter"].index(n) for n in (1, 20, 500)}
    for n, style in ((1, "^:"), (20, "s--"), (500, "o-")):
        values = [data["value"][str(e)][at[n]] for e in data["epsilon"]]
        left.plot(data["epsilon"], values, style, markersize=4, label=f"N = {n}")
    left.axhline(data["exact"], color="C3", linewidth=1, linestyle="--", label="exact transport")
    left.axhline(data["mean_cost"], color="C4", linewidth=1, linestyle="-.", label="mean cost")
    left.set(xscale="log", xlabel=r"$\lambda$", ylabel=r"value $\langle P, C\rangle$")
    left.legend(fontsize=8)
    for n, style in ((1, "^:"), (20, "s--")):
        errors = [data["marginal_error"][str(e)][at[n]] for e in data["epsilon"]]
        right.plot(data["epsilon"], [max(e, 1e-16) for e in errors], style, markersize=4, label=f"N = {n}")
    right.set(xscale="log", yscale="log", xlabel=r"$\lambda$", ylabel="marginal error, $L_1$")
    right.legend()
    return figure


def gradient() -> Figure:
    """Error of three gradients against rounds."""
    data = measured("gradient")
    figure, both = panels()
    names = {
        "exact": "through every round",
        "implicit": "implicit, of the limit",
        "plan": "plan as a constant",
    }
    for axes, epsilon in zip(both, ("0.1", "0.02"), strict=True):
        for (name, label), style in zip(names.items(), ("o-", "s--", "^:"), strict=True):
            axes.plot(data["n_iter"], data[epsilon][name], style, markersize=4, label=label)
        axes.set(xscale="log", yscale="log", xlabel=ROUNDS, title=rf"$\lambda$ = {epsilon}", ylim=(3e-10, 3))
    both[0].set_ylabel("relative error of the gradient")
    both[0].legend(fontsize=8, loc="center right")
    return figure


def columns() -> Figure:
    """Kept mass, and HAD with its bound, against the number of columns."""
    data = measured("columns")
    figure, (left, right) = panels()
    left.plot(data["k"], data["teacher_kept"], "o-", markersize=4, label=r"teacher, $\tau = 1$")
    left.plot(data["k"], data["student_kept"], "s--", markersize=4, label=r"student, matched, $\tau = 1$")
    left.plot(data["k"], data["teacher_kept_at_2"], "^:", markersize=4, label=r"teacher, $\tau = 2$")
    left.set(xscale="log", xlabel=COLUMNS, ylabel="kept mass", ylim=(0, 1))
    left.legend(fontsize=8)
    right.fill_between(data["k"], data["had"], data["had_bound"], alpha=0.15)
    right.plot(data["k"], data["had_bound"], "s--", markersize=4, color="C1", label="bound over all columns")
    right.plot(data["k"], data["had"], "o-", markersize=4, color="C0", label="kept columns")
    right.set(xscale="log", xlabel=COLUMNS, ylabel="HAD for each pair", ylim=(0, 2))
    right.legend(fontsize=8)
    return figure


def terms() -> Figure:
    """The three terms against the number of columns."""
    data = measured("columns")
    figure, axes = pyplot.subplots(1, 3, figsize=(7.2, 2.8))
    for one, name in zip(axes, ("had", "sl", "sd"), strict=True):
        one.plot(data["k"], data[name], "o-", markersize=4)
        one.axvline(50, color="C4", linewidth=1, linestyle="--")
        one.set(xscale="log", xlabel="k", title=name.upper(), ylim=(0, None))
    axes[0].set_ylabel("for each pair or position")
    return figure


def temperature() -> Figure:
    """Kept mass and terms against the temperatures."""
    data = measured("temperature")
    figure, (left, right) = panels()
    left.plot(data["temperature"], data["teacher_kept"], "o-", markersize=4)
    left.set(xlabel=r"temperature", ylabel="kept mass of the teacher, k = 50", ylim=(0, 1))
    for (name, label), style in zip(
        {"had": r"HAD, $\tau$", "sl": r"SL, $\tau$", "sd": r"SD, $\tau_s$"}.items(),
        ("o-", "s--", "^:"),
        strict=True,
    ):
        right.plot(data["temperature"], data[name], style, markersize=4, label=label)
    right.set(yscale="log", xlabel="temperature", ylabel="for each pair or position")
    right.legend(fontsize=8)
    return figure


def pairing() -> Figure:
    """Distance in the text of positions of one index, and the terms under both ways to pair."""
    data = measured("pairing")
    figure, (left, right) = panels()
    left.plot(data["index"], data["bytes_apart"], "o-", markersize=4)
    left.set(xlabel="index of the position", ylabel="bytes apart, mean over texts", ylim=(0, None))
    for number, (name, label) in enumerate(
        {"by_index": "by index", "boundary": "by what has been read"}.items()
    ):
        heights = [data[name]["had"], data[name]["sl"]]
        bars = right.bar(
            [n + 0.4 * number for n in range(2)], heights, 0.38, label=label, color=f"C{1 - number}"
        )
        right.bar_label(bars, fmt="%.2f", fontsize=8)
    right.set_xticks([0.2, 1.2], ["HAD", "SL"])
    right.set(ylabel="for each pair", ylim=(0, 1.25 * max(data["by_index"]["sl"], 1)))
    right.legend(fontsize=8)
    return figure


def text_rest() -> Figure:
    """Terms of the plan from the text against the number of listed tokens."""
    data = measured("text")["rest"]
    figure, (left, right) = panels()
    left.plot(data["k"], data["rest"], "o-", markersize=4, label="rest of the targets")
    left.plot(
        data["k"], [sl / data["sl"][-1] for sl in data["sl"]], "s--", markersize=4, label="SL ÷ whole SL"
    )
    left.set(xscale="log", xlabel="tokens listed, k", ylabel="mean over positions", ylim=(0, 1.05))
    left.legend(fontsize=8)
    upper = [had + bound for had, bound in zip(data["had"], data["bound"], strict=True)]
    right.fill_between(data["k"], data["had"], upper, alpha=0.15)
    right.plot(data["k"], upper, "s--", markersize=4, color="C1", label="with what the rest may add")
    right.plot(data["k"], data["had"], "o-", markersize=4, color="C0", label="listed, and the rest as one")
    right.set(xscale="log", xlabel="tokens listed, k", ylabel="HAD for each position", ylim=(0, 2))
    right.legend(fontsize=8)
    return figure


def same_bytes() -> Figure:
    """Share of the kept mass that a matching puts on the token of the same bytes."""
    data = measured("text")
    figure, (left, right) = panels()
    pooled, sharp = data["same_bytes"], data["sharpened"]
    labels = {"possible": "has such a token", "l1": r"$L_1$", "log": "log", "l1_by_index": r"$L_1$, by index"}
    for (name, label), style in zip(labels.items(), (":", "o-", "s--", "^-."), strict=True):
        left.plot(pooled["texts"], pooled[name], style, markersize=4, label=label)
    left.set(
        xscale="log", xlabel="texts read as one sequence", ylabel="share of the kept mass", ylim=(-0.02, 1.02)
    )
    left.set_xticks(pooled["texts"], [str(n) for n in pooled["texts"]])
    left.minorticks_off()
    left.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.08))
    right.plot(sharp["factor"], sharp["overlaps"], ":", color="C0", label="overlap above a half")
    right.plot(sharp["factor"], sharp["l1"], "o-", markersize=4, color="C1", label=r"$L_1$")
    right.plot(sharp["factor"], sharp["log"], "s--", markersize=4, color="C2", label="log")
    right.set(xscale="log", xlabel="factor on the teacher's logits", ylim=(-0.02, 1.02))
    right.set_xticks(sharp["factor"], [str(n) for n in sharp["factor"]])
    right.minorticks_off()
    right.legend(fontsize=8, loc="lower right")
    return figure
