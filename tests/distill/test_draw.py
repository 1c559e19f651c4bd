"""Charts and heat maps: what is drawn is where and as strong as its value says."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("transformers")

from hypothesis import given, settings
from hypothesis import strategies as st

from mlot._charts import Series, heat_map, line_chart

VALUES = st.floats(-1e9, 1e9, allow_subnormal=False)


def parts(drawing, tag):
    return list(ElementTree.fromstring(str(drawing.svg)).iter(tag))


def lines(drawing, colour):
    """Points of the lines of a colour."""
    return [
        [tuple(map(float, point.split())) for point in re.findall(r"[ML] ([-\d.]+ [-\d.]+)", path.get("d"))]
        for path in parts(drawing, "path")
        if f"stroke: var(--{colour})" in path.get("style")
    ]


def tips(drawing):
    """What each part says, and the part."""
    groups = ((group.find("title"), group) for group in parts(drawing, "g"))
    return {title.text: group for title, group in groups if title is not None}


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 10**6), VALUES), min_size=1, max_size=8), min_size=1, max_size=3
    ),
    st.booleans(),
)
@settings(max_examples=15)
def test_charts_keep_the_order_and_stay_in_their_frame(series, zero):
    drawing = line_chart(
        "title", [Series(str(n), "ce", points) for n, points in enumerate(series)], zero=zero
    )
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in parts(drawing, "circle")]
    points = [point for one in series for point in one]
    assert len(dots) == len(points)
    for (x, y), (a, b) in zip(points, dots, strict=True):
        assert 60 - 1e-6 <= a <= 350 + 1e-6
        assert 10 - 1e-6 <= b <= 176 + 1e-6
        for (u, v), (c, d) in zip(points, dots, strict=True):
            assert not (x < u and a > c + 1e-4)
            assert not (y < v and b < d - 1e-4)  # SVG counts downwards
    assert bool(lines(drawing, "ink")) == zero
    for text in parts(drawing, "text"):
        assert len(text.text) <= 10


def test_ticks_stand_where_they_say():
    drawing = line_chart("bits", [Series("a", "ce", [(0, 1.0), (10, 3.0)])])
    (line,) = lines(drawing, "ce")
    (left, bottom), (right, top) = line
    heights = {path[0][1] for path in lines(drawing, "rule")}
    labels = {}
    for text in parts(drawing, "text"):
        if "end" in text.get("style"):
            labels[text.text] = float(text.get("y"))
    assert {"1.5", "2.0", "2.5"} <= labels.keys()
    for label, place in labels.items():
        height = bottom + (float(label) - 1) / 2 * (top - bottom)
        assert min(abs(each - height) for each in heights) < 0.01
        assert place == pytest.approx(height + 3.8, abs=0.5)  # the middle of the number
    below = [text.text for text in parts(drawing, "text") if "middle" in text.get("style")]
    assert below == ["0", "2", "4", "6", "8", "10", "step"]
    assert (left, right) == (60, 350)
    assert "a from 1 at step 0 to 3 at step 10" in drawing.svg


def test_values_that_are_none_are_left_out():
    nan = float("nan")
    assert line_chart("title", [Series("a", "ce", [(0, nan)]), Series("b", "ce", [])]) is None
    drawing = line_chart("title", [Series("a", "ce", [(0, 1.0), (5, nan), (9, float("inf")), (10, 2.0)])])
    assert sorted(tips(drawing)) == ["a, step 0: 1", "a, step 10: 2"]


def test_long_lines_have_no_dots():
    drawing = line_chart("title", [Series("a", "ce", [(n, float(n % 7)) for n in range(200)])])
    assert parts(drawing, "circle") == []
    assert len(lines(drawing, "ce")[0]) > 50  # straight runs are one stroke


@pytest.mark.parametrize("root", [False, True])
def test_heat_map_colours_by_the_value(root):
    values = np.array([[0.0, 0.25, 1.0], [2.0, 0.5, 0.0]])
    drawing = heat_map(
        "title", values, ["a$b$", "b" * 40], ["x\x00", "漢字" * 10, "z"], colour="mlot",
        tip=lambda i, j: f"{i},{j}", full=1.0, root=root,
    )  # fmt: skip
    strength, corners = {}, {}
    for tip, group in tips(drawing).items():
        style = group.find("path").get("style")
        assert "var(--mlot)" in style
        found = re.search(r"opacity: ([\d.]+)", style)
        strength[tip] = float(found[1]) if found else 1.0
        corners[tip] = tuple(
            map(float, re.match(r"M ([\d.]+) ([\d.]+)", group.find("path").get("d")).groups())
        )
    assert strength == pytest.approx(
        {"0,1": 0.5 if root else 0.25, "0,2": 1.0, "1,0": 1.0, "1,1": 0.5**0.5 if root else 0.5}, abs=1e-5
    )
    assert corners["0,2"][0] - corners["0,1"][0] == pytest.approx(17)
    assert corners["1,1"][1] - corners["0,1"][1] == pytest.approx(17)
    names = [text.text for text in parts(drawing, "text")]
    assert names == ["a$b$", "b" * 15 + "…", "x\\u{0}", "漢字" * 3 + "漢" + "…", "z"]


def test_an_empty_plan_is_an_empty_map():
    drawing = heat_map("title", np.zeros((0, 0)), [], [], colour="ce", tip=lambda i, j: "", full=0.0)
    assert tips(drawing) == {}
