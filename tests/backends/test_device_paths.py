"""What accelerators do differently, on the host: masked positions are computed and blanked, not stepped over."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import mlot
import mlot.nn
from mlot import _arguments
from mlot.backends.torch import rows as torch_rows
from problems import Problem, assert_close, configs, make_problem, problems, rounding


@pytest.fixture(autouse=True, scope="module")
def _like_an_accelerator() -> object:
    patch = pytest.MonkeyPatch()
    patch.setattr(torch_rows, "can_look", lambda device: False)
    patch.setattr(_arguments, "can_look", lambda array: False)
    yield
    patch.undo()


@given(problem=problems(), config=configs(), garbage=st.sampled_from([0.0, np.inf, np.nan]))
def test_garbage_under_the_mask_is_blanked(
    problem: Problem, config: mlot.MultiLevelOTConfig, garbage: float
) -> None:
    want = mlot.multi_level_ot(**problem.arguments(), config=config, reduction="none")
    p = problem.to("torch")
    filled = {}
    for side in ("student", "teacher"):
        logits, mask = getattr(p, side), getattr(p, f"{side}_mask")
        filled[side] = logits if mask is None else torch.where(mask[..., None], logits, garbage)
    leaf = filled["student"].clone().requires_grad_()
    p = p.with_(student=leaf, teacher=filled["teacher"])
    result = mlot.multi_level_ot(**p.arguments(), config=config, reduction="none")
    floor = rounding(problem, config)
    for name in ("had", "sl", "sd", "loss"):
        assert_close(getattr(result, name), getattr(want, name), 1e-10, floor, name)
    distance = mlot.uld(**p.arguments(), reduction="none")
    assert_close(distance, mlot.uld(**problem.arguments(), reduction="none"), 1e-10, floor, "uld")
    (result.loss.sum() + distance.sum()).backward()
    assert bool(torch.isfinite(leaf.grad).all())
    if p.student_mask is not None:
        assert bool((leaf.grad[~p.student_mask] == 0).all())


@pytest.mark.parametrize("loss", ["loss", "uld", "module"])
def test_gradients_of_a_head_do_not_see_garbage(loss: str) -> None:
    rng = np.random.default_rng(0)
    mask = torch.tensor([[True, False, True, True], [False, True, True, False]])
    teacher = torch.from_numpy(rng.normal(size=(2, 4, 12)))
    weight = torch.from_numpy(rng.normal(size=(9, 3)))
    clean = torch.from_numpy(rng.normal(size=(2, 4, 3)))
    labels = torch.where(torch.nn.functional.pad(mask, (1, 0))[:, :4], 3, -100)

    def gradients(hidden: torch.Tensor) -> list[torch.Tensor]:
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        head = mlot.LinearHead(*leaves, torch.zeros(9, dtype=torch.float64), softcap=4.0)
        if loss == "module":
            value = mlot.nn.MultiLevelOTLoss()(head, teacher, labels, labels)
        elif loss == "uld":
            value = mlot.uld(head, teacher, student_mask=mask)
        else:
            value = mlot.multi_level_ot(head, teacher, student_mask=mask).loss
        return list(torch.autograd.grad(value, leaves))

    counted = mlot.mask_from_labels(labels) if loss == "module" else mask
    for garbage in (np.nan, np.inf):
        dirty = torch.where(counted[..., None], clean, garbage)
        for got, want in zip(gradients(dirty), gradients(clean), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


class _NoWaiting(TorchDispatchMode):
    """Fails on operations whose result the host would have to wait for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = str(func)
        if any(waits in name for waits in ("_local_scalar_dense", "nonzero", "masked_select", "unique")):
            pytest.fail(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("matching", ["rank", "greedy", "sinkhorn"])
@pytest.mark.parametrize("standardize", [False, True])
def test_nothing_waits_for_the_device(matching: str, standardize: bool) -> None:
    """Forward and backward, without the matching that the host solves: no value is looked at."""
    p = make_problem(0, masks="gaps").to("torch", torch.float32)
    student = p.student.requires_grad_()
    config = mlot.MultiLevelOTConfig(k=6, matching=matching, standardize=standardize)
    bound = torch.tensor(20.0)  # what a trainer passes
    with _NoWaiting():
        result = mlot.multi_level_ot(**p.arguments(), config=config, num_items=bound)
        distance = mlot.uld(**p.arguments(), num_items=bound)
        torch.autograd.grad(result.loss + distance, student)


def test_the_watch_sees_what_waits() -> None:
    with pytest.raises(pytest.fail.Exception, match="waits for the device"), _NoWaiting():
        bool(torch.ones(3).sum() > 2)


@pytest.mark.parametrize(
    "settings", [{}, {"matching": "sinkhorn"}, {"standardize": True}, {"matching": "greedy"}]
)
@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_those_of_the_host(
    seed: int, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = mlot.MultiLevelOTConfig(k=5, **settings)

    def gradient() -> torch.Tensor:
        p = make_problem(seed, masks="gaps").to("torch")
        leaf = p.student.clone().requires_grad_()
        arguments = p.with_(student=leaf).arguments()
        loss = mlot.multi_level_ot(**arguments, config=config).loss + mlot.uld(**arguments)
        return torch.autograd.grad(loss, leaf)[0]

    elsewhere = gradient()
    monkeypatch.setattr(torch_rows, "can_look", lambda device: True)
    torch.testing.assert_close(gradient(), elsewhere, rtol=1e-10, atol=1e-12)
