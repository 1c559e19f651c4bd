"""The page that a run leaves: self-contained, well-formed, everything escaped, all figures on it."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("transformers")

from hypothesis import given
from hypothesis import strategies as st

from mlot._charts import legible
from mlot.align import AlignmentReport
from mlot.distill.page import render
from mlot.distill.report import (
    CE,
    MLOT,
    TEACHER,
    ModelReport,
    RunReport,
    table,
    verdict,
)
from mlot.training._inspect import Match, Pictures, Segment
from mlot.training._inspect_text import PositionTarget, TextPicture
from mlot.training._logs import bits_curve, logged_terms
from mlot.training._score import Score

NASTY = (
    "</pre><script>alert('x')</script>\" onload='1' {{ 7*7 }} {% endif %} &amp; \u202e\x00\x1b[31m 漢字 🤖"
)
VOID = {"meta", "path", "line", "circle", "rect"}


class Page(HTMLParser):
    """Parses a page strictly: every tag that opens closes, in order."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.text, self.declaration = [], [], [], None
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_decl(self, declaration):
        self.declaration = declaration

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def make_report(*, text="text", documents=12, nasty=False, twins=True, loaded=True):
    """A report of made-up figures."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 200, documents).astype(float)
    strange = NASTY if nasty else "plain"

    def model(name, level, loaded=True):
        return ModelReport(
            name=name,
            parameters=1234567 if loaded else None,
            vocabulary=4321,
            bytes_per_token=3.21,
            steps=0 if name == TEACHER else 40,
            seconds=12.6,
            score=Score(level * sizes * rng.uniform(0.9, 1.1, documents), sizes) if loaded else None,
            curve=[] if name == TEACHER else [(0, level + 1), (20, level + 0.2), (40, level)],
            logged={} if name == TEACHER else {"loss": [(20, 5.0), (40, float("nan"))], strange: [(20, 1.0)]},
            samples=[(strange, strange)] * 2 if loaded else [],
        )

    models = [model(TEACHER, 2.0, loaded), *([model(CE, 2.5)] if twins else []), model(MLOT, 2.4)]
    tokens = (strange, "b", "␣c")
    pictures = Pictures(
        cut=False,
        seen_in_training=False,
        segments=(Segment((strange, "b"), (strange,), True), Segment(("c",), ("c",), False)),
        student_tokens=tokens,
        teacher_tokens=tokens[:2],
        plan=np.array([[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]]),
        matches=(Match(strange, "b", 1.25, 0.75, 0.625), Match("c", strange, 0.5, 0.25, 0.375)),
        teacher_traces=np.array([[0.5, 0.75], [0.25, 0.25]]),
        student_traces=np.array([[0.5, 0.25], [0.0, 0.25]]),
        paired_tokens=(strange, "b"),
    )
    sizes_of_text = {"documents": 12, "bytes": 1234, "windows": 56}
    return RunReport(
        models=tuple(models),
        text={"source": text, "train": sizes_of_text, "held_out": sizes_of_text},
        settings={
            "seed": 0,
            "text": strange,
            "pairs": "boundary",
            "length": 128,
            "baseline": None,
            "resume": False,
        },
        environment={"mlot": "0", "device": strange},
        alignment=AlignmentReport(3, 20, 30, 25, 0.8, 0.9, 0, 1, 0.5, 0.25),
        diagnostics={
            "pairs": np.array([4.0, 6.0]),
            "teacher_kept_mass": np.array([0.5, 0.75]),
            "student_kept_mass": np.array([0.25, 0.5]),
            "matching_gap": np.array([np.nan, np.nan]),
            "marginal_error": np.array([0.125, 0.375]),
        },
        pictures=pictures,
        notices=[strange],
        seconds=125.0,
        text_picture=TextPicture(
            f"student {strange}",
            (
                PositionTarget(strange, strange, ((strange, 0.625), ("b", 0.25))),
                PositionTarget("c", None, ()),
            ),
        ),
    )


# -- the page --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nasty", [False, True])
@pytest.mark.parametrize(("twins", "loaded"), [(True, True), (False, True), (False, False)])
def test_page_stands_alone_and_is_well_formed(nasty, twins, loaded):
    source = render(make_report(nasty=nasty, twins=twins, loaded=loaded, text=NASTY if nasty else "text"))
    page = Page(source)
    assert page.declaration == "DOCTYPE html"
    names = [tag for tag, _ in page.tags]
    assert {"script", "link", "iframe", "object", "embed", "img", "base", "form", "foreignObject"}.isdisjoint(
        names
    )
    assert names.count("style") == names.count("h1") == names.count("main") == 1
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "xlink:href")], (
            tag
        )
        if "href" in attributes:
            assert attributes["href"][1:] in identifiers
            assert attributes["href"][0] == "#"
        if tag == "svg":
            assert attributes["role"] == "img"
            assert len(attributes["aria-label"]) > 10
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert not re.search("https?:", source)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_what_comes_from_models_and_texts_is_shown_and_not_run():
    source = render(make_report(nasty=True, text=NASTY))
    assert "<script" not in source
    assert "alert('x')" not in source  # the quotes are escaped, too
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", source)
    words = Page(source).words
    shown = " ".join(legible(NASTY).split())
    # samples of three models and their prompts, notice, source, settings, environment, pictures, ...
    assert words.count(shown) > 20


def test_every_figure_is_on_the_page():
    report = make_report()
    words = Page(render(report)).words
    assert verdict(report) in words
    low, high = report.models[1].interval(0)
    for figure in (
        *(f"{model.score.bits_per_byte:.4f}" for model in report.models),
        f"{low:.4f} to {high:.4f}",
        "1,234,567",
        "4,321",
        "3.21",
        "2 min 5 s",
        "66.7%",  # 20 of 30 positions of the student are paired
        "80.0%",
        "50.0%",
        "1.250 0.750 0.625",  # masses of the first match, and what it adds to HAD
        "no bound",
        "student plain",  # the drawing of the plan from the text
        "plain plain plain 62%, b 25%",  # a token, what has been read, and the likeliest in the target
        "c no target -",
        "0.25 0.125 0.375",  # mean, least and most of the marginal error
    ):
        assert figure in words, figure
    for option in report.settings:
        assert f"--{option}" in words
    assert "changes text" in words  # the alignment's warning


def test_what_was_not_measured_is_not_claimed():
    alone = make_report(twins=False, loaded=False)
    words = Page(render(alone)).words
    assert "no student was trained by cross-entropy alone" in words
    assert "3.4000 to 2.4000 bits per byte" in words
    assert "Both students" not in words
    assert "less CE alone" not in words
    assert alone.difference is None
    assert alone.as_dict()["difference"] is None
    assert alone.as_dict()["models"]["teacher"]["bits_per_byte"] is None
    assert "Samples" in words
    few = make_report(documents=3)
    assert few.interval is None
    assert few.models[0].interval(0) is None
    assert "Too few held-out documents" in verdict(few)


def test_verdict_says_no_more_than_the_interval():
    report = make_report()
    plain, distilled = report.models[1:]
    sizes = plain.score.sizes

    def with_gap(gap):
        better = replace(distilled, score=Score(plain.score.bits + gap * sizes, sizes))
        return verdict(replace(report, models=(report.models[0], plain, better)))

    assert "MultiLevelOT is better here; another seed may say otherwise" in with_gap(-0.1)
    assert "MultiLevelOT is worse here; another seed may say otherwise" in with_gap(0.1)
    assert "does not tell them apart" in with_gap(0.01 * np.where(np.arange(len(sizes)) % 2, 1, -1))


def test_terminal_table_has_dashes_for_what_is_not_known():
    shown = table(make_report(twins=False, loaded=False))
    columns = [list(column.cells) for column in shown.columns]
    assert columns[0] == ["teacher", "student, MultiLevelOT"]
    assert columns[1][0] == columns[2][0] == columns[4][0] == "-"


def test_reports_of_a_trainers_log():
    history = [
        {"step": 0, "eval_bits_per_byte": 4.0, "epoch": 0},
        {"step": 5, "loss": 2.0, "had": 0.5, "learning_rate": 1e-3, "epoch": 0.5},
        {"step": 5, "eval_bits_per_byte": 3.0, "eval_loss": 1.0},
        {"step": 10, "loss": 1.0, "had": 0.25, "epoch": 1.0},
        {"step": 10, "train_runtime": 3.0, "total_flos": 1.0},
    ]
    assert bits_curve(history) == [(0, 4.0), (5, 3.0)]
    assert logged_terms(history) == {
        "loss": [(5, 2.0), (10, 1.0)],
        "had": [(5, 0.5), (10, 0.25)],
        "learning_rate": [(5, 1e-3)],
    }


@given(st.text())
def test_legible_text_keeps_what_can_be_seen(text):
    shown = legible(text)
    assert shown.isprintable() or set(shown) & set("\n\t\u2028\u2029\xa0") or any(c.isspace() for c in shown)
    assert legible(shown) == shown
    if text.isascii() and text.isprintable():
        assert shown == text
