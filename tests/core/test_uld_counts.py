"""ULD from counts: signs and distances are those of a sort, ties and padding included."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mlot
from mlot.backends.torch import rows as torch_rows
from mlot.backends.torch.uld_counts import bins_of_rows, compare

FLOATS = st.one_of(
    st.sampled_from([0.0, 2.0**-70, 2.0**-64, 0.25, 0.5, 1.0]),
    st.floats(0, 1, width=32),
    st.floats(0.25, 0.25 + 2.0**-20, width=32),  # many in one bin
)


@st.composite
def rows_of_numbers(draw):
    rows = draw(st.integers(1, 3))
    sides = []
    for width in (draw(st.integers(1, 40)), draw(st.integers(1, 40))):
        row = st.lists(FLOATS, min_size=width, max_size=width)
        sides.append(np.array(draw(st.lists(row, min_size=rows, max_size=rows))))
    return tuple(sides)


def by_sorting(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance from its definition: both sides in descending order, the narrower padded with zeros."""
    width = max(student.shape[-1], teacher.shape[-1])
    padded = [
        torch.nn.functional.pad(side.sort(-1, descending=True).values, (0, width - side.shape[-1]))
        for side in (student, teacher)
    ]
    return (padded[0] - padded[1]).abs().sum(-1)


@pytest.mark.parametrize("bits", [0, 3, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(sides=rows_of_numbers())
def test_probabilities_times_their_signs_are_the_distance(sides, dtype, bits):
    probs = tuple(torch.from_numpy(side).to(dtype) for side in sides)
    bins = tuple(bins_of_rows(side, bits) for side in probs)
    one, none = probs[0].new_ones(len(probs[0]), 1), probs[0].new_zeros(len(probs[0]), 1)
    signs = [each.spread(own, one, none) for each, own in zip(compare(probs, bins, bits), bins, strict=True)]
    total = sum((sign.double() * side.double()).sum(1) for sign, side in zip(signs, probs, strict=True))
    torch.testing.assert_close(total, by_sorting(*(side.double() for side in probs)), rtol=1e-12, atol=1e-12)
    assert all(bool(((sign == 0) | (sign.abs() == 1)).all()) for sign in signs)


@given(
    seed=st.integers(0, 2**32 - 1),
    widths=st.tuples(st.integers(1, 600), st.integers(1, 600)),
    sharpness=st.sampled_from([0.01, 1.0, 6.0, 40.0]),
    coarse=st.booleans(),
)
def test_distance_and_gradient_are_those_of_a_sort(seed, widths, sharpness, coarse):
    rng = np.random.default_rng(seed)
    student, teacher = (sharpness * rng.normal(size=(1, 3, width)) for width in widths)
    if coarse:  # ties, on one side and between both
        student, teacher = student.round(1), teacher.round(1)
    teacher[0, 0, : widths[1] - 1] = -np.inf  # one token has everything
    leaf = torch.from_numpy(student).requires_grad_()
    value = mlot.uld(leaf, torch.from_numpy(teacher), reduction="sum")
    other = torch.from_numpy(student).requires_grad_()
    want = by_sorting(other.softmax(-1), torch.from_numpy(teacher).softmax(-1)).sum()
    torch.testing.assert_close(value, want, rtol=1e-12, atol=1e-13)
    if not coarse:  # between ties a sort may share the signs out as it likes
        (got,), (gradient,) = torch.autograd.grad(value, leaf), torch.autograd.grad(want, other)
        torch.testing.assert_close(got, gradient, rtol=1e-9, atol=1e-13)


def test_what_accelerators_do_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    student, teacher = (torch.from_numpy(rng.normal(size=(2, 5, width))) for width in (300, 200))
    results = []
    for look in (True, False):
        monkeypatch.setattr(torch_rows, "can_look", lambda device, look=look: look)
        leaf = student.clone().requires_grad_()
        value = mlot.uld(leaf, teacher)
        results.append((value.detach(), *torch.autograd.grad(value, leaf)))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-15)
