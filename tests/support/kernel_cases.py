"""Cases for the kernels; `test_kernels` runs this file where they are on, on a GPU or through the interpreter."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import mlot
from mlot.backends.torch import kernels as torch_kernels
from mlot.backends.torch import ops as torch_ops
from mlot.backends.torch import transport_kernels, uld_kernels
from mlot.backends.torch.costs import PairwiseL1
from mlot.backends.torch.read import Request
from mlot.backends.torch.statistics import Settings
from problems import as_numpy, assert_close, make_problem, rounding

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1, 1, 1, 1, 2), (2, 5, 4, 7, 16), (3, 4, 6, 33, 9), (1, 9, 3, 300, 130), (2, 3, 3, 5000, 17)]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Names of the launchers that were called, so that no case passes without its kernel."""
    seen: set[str] = set()
    names = {
        torch_kernels: ("row_totals", "column_sums", "row_gradient"),
        transport_kernels: ("rounds", "rounds_back", "rounds_back_large", "pairwise_l1", "pairwise_l1_back"),
        uld_kernels: ("compare_rows", "gradient_of"),
    }
    for module, name in ((module, name) for module, some in names.items() for name in some):
        original = getattr(module, name)

        def spy(*args: object, name: str = name, original: object = original, **kwargs: object) -> object:
            seen.add(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, spy)
    return seen


def evaluate(problem: object, config: mlot.MultiLevelOTConfig, dtype: torch.dtype) -> tuple:
    p = problem.to("torch", dtype)
    moved = {n: v if v is None else v.to(DEVICE) for n, v in p.arguments().items()}
    leaves = [moved["student"].requires_grad_(), moved["teacher"].requires_grad_()]
    result = mlot.multi_level_ot(**moved, config=config, reduction="none")
    return result, torch.autograd.grad(result.loss.sum(), leaves)


def eager(monkeypatch: pytest.MonkeyPatch, *args: object) -> tuple:
    with monkeypatch.context() as patch:
        patch.setenv("MLOT_KERNELS", "eager")
        return evaluate(*args)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masks", ["none", "gaps", "left"])
@pytest.mark.parametrize("temperatures", [(1.0, 2.0), (0.7, 2.0), (1.5, 1.5)])
def test_loss_and_gradient(
    shape: tuple[int, ...],
    masks: str,
    temperatures: tuple[float, float],
    launched: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = make_problem(0, *shape, masks=masks)
    config = mlot.MultiLevelOTConfig(
        k=6, matching="rank", temperature=temperatures[0], sequence_temperature=temperatures[1]
    )
    want = mlot.multi_level_ot(**problem.arguments(), config=config, reduction="none")
    result, gradients = evaluate(problem, config, torch.float64)
    assert launched == {
        *("row_totals", "column_sums", "row_gradient", "rounds", "rounds_back"),
        *("pairwise_l1", "pairwise_l1_back"),
    }
    floor = rounding(problem, config)
    for name in ("had", "sl", "sd", "loss"):
        assert_close(getattr(result, name), getattr(want, name), 1e-10, floor, name)
    other, eager_gradients = eager(monkeypatch, problem, config, torch.float64)
    for got, expected in zip(gradients, eager_gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(result.student_columns, other.student_columns)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(dtype: torch.dtype, launched: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss as close to the truth as float32 allows; the gradient rounded once to the type of the logits."""
    problem = make_problem(1, 2, 6, 5, 130, 70, masks="gaps")
    rounded = {n: as_numpy(torch.from_numpy(getattr(problem, n)).to(dtype)) for n in ("student", "teacher")}
    problem = problem.with_(**rounded)
    config = mlot.MultiLevelOTConfig(k=6, matching="rank")
    want = mlot.multi_level_ot(**problem.arguments(), config=config, reduction="none")
    result, gradients = evaluate(problem, config, dtype)
    assert "row_gradient" in launched
    assert_close(result.loss, want.loss, 1e-5, 0.0, "loss")
    _, exact = eager(monkeypatch, problem, config, torch.float64)
    for got, expected in zip(gradients, exact, strict=True):
        assert got.dtype == dtype
        error = (got.double() - expected).norm() / expected.norm()
        assert error <= max(torch.finfo(dtype).eps, 1e-5)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_masked_rows_are_not_read(garbage: float) -> None:
    problem = make_problem(2, 2, 5, 4, 40, 30, masks="gaps")
    config = mlot.MultiLevelOTConfig(k=6, matching="rank")
    want, want_gradients = evaluate(problem, config, torch.float64)
    filled = {
        side: np.where(getattr(problem, f"{side}_mask")[..., None], getattr(problem, side), garbage)
        for side in ("student", "teacher")
    }
    got, gradients = evaluate(problem.with_(**filled), config, torch.float64)
    assert torch.equal(got.loss, want.loss)
    for one, two in zip(gradients, want_gradients, strict=True):
        assert torch.equal(one, two)


def test_certain_predictions() -> None:
    student = torch.full((1, 2, 5), -torch.inf, dtype=torch.float64, device=DEVICE)
    student[:, :, 3] = 0.0
    traces = mlot.select(student, k=2)
    assert traces.columns[0, 0] == 3
    assert bool((traces.log_probs[..., 0] == 0).all())
    assert bool(torch.isneginf(traces.log_probs[..., 1]).all())


def test_rows_that_are_not_contiguous() -> None:
    wide = torch.randn(2, 6, 50, dtype=torch.float64, device=DEVICE)
    for view in (wide[:, 1:4, 5:40], wide.transpose(0, 1)):
        got, want = mlot.select(view, k=4), mlot.select(view.contiguous(), k=4)
        assert torch.equal(got.columns, want.columns)
        torch.testing.assert_close(got.log_probs, want.log_probs, rtol=1e-14, atol=0)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (16, 16), (40, 9), (140, 130)])
@pytest.mark.parametrize("weights", ["uniform", "given", "some zero"])
def test_sinkhorn(
    shape: tuple[int, int], weights: str, launched: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small problems in one program; the last shape is too large for that and goes half round by half round."""
    rng = np.random.default_rng(0)
    cost = rng.uniform(0, 2, size=(2, *shape))
    a, b = (None, None) if weights == "uniform" else (rng.dirichlet(np.ones(n), size=2) for n in shape)
    if weights == "some zero" and min(shape) > 1:
        a[:, 0] = 0
        b[:, -1] = 0
        a, b = a / a.sum(1, keepdims=True), b / b.sum(1, keepdims=True)
    n_iter = 3 if max(shape) > 100 else 7
    want = mlot.sinkhorn(cost, a, b, n_iter=n_iter)

    def compute() -> tuple:
        tensors = [torch.from_numpy(cost).to(DEVICE).requires_grad_()]
        if a is not None:
            tensors += [torch.from_numpy(x).to(DEVICE).requires_grad_() for x in (a, b)]
        weights = [x / x.sum(1, keepdim=True) for x in tensors[1:]]
        # The bound on the cost lets CUDA, too, take the exponential form.
        xp = mlot.get_backend("torch")
        if not weights:
            weights = [torch.full((2, n), 1 / n, dtype=torch.float64, device=DEVICE) for n in shape]
        found = xp.sinkhorn(tensors[0], *weights, epsilon=0.1, n_iter=n_iter, tol=None, cost_bound=2.0)
        return found, torch.autograd.grad((found.value + found.plan.square().sum((1, 2))).sum(), tensors)

    found, gradients = compute()
    assert "rounds" in launched
    assert ("rounds_back" in launched) == (max(shape) < 100)
    assert ("rounds_back_large" in launched) == (max(shape) > 100)
    for name in ("plan", "value", "marginal_error"):
        assert_close(getattr(found, name), getattr(want, name), 1e-10, 1e-13, name)
    monkeypatch.setenv("MLOT_KERNELS", "eager")
    for got, expected in zip(gradients, compute()[1], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("vocabulary", [4, 33, 5000])
@pytest.mark.parametrize("extra", [(), (2.0,), (3.0,)])
@pytest.mark.parametrize("listed", ["some", "none of a row", "all"])
def test_sums_without_listed_tokens(
    vocabulary: int,
    extra: tuple[float, ...],
    listed: str,
    launched: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Columns, tokens that are left out of one sum, and tokens that are read only, some the same."""
    if listed == "all":
        vocabulary = min(vocabulary, 100)  # each costs the interpreter a loop's round
    rng = np.random.default_rng(vocabulary)
    shape, without = (2, 5, vocabulary), min(3, vocabulary)
    logits = torch.from_numpy(rng.normal(scale=4, size=shape)).to(DEVICE)
    ids = torch.from_numpy(
        np.stack([rng.permutation(vocabulary)[:without] for _ in range(10)]).reshape(2, 5, -1)
    )
    ids[0, 1, 1:] = -1
    if listed == "none of a row":
        ids[1, 2:] = -1
    elif listed == "all":  # nothing is left
        without = vocabulary
        ids = torch.arange(vocabulary).flip(0).expand(shape).clone()
        logits[..., 1] = -torch.inf
    ids = torch.cat([ids, torch.from_numpy(rng.integers(vocabulary, size=(2, 5, 2)))], 2).to(DEVICE)
    columns = torch.tensor([[0, 2], [3, 1]], device=DEVICE)
    mask = torch.from_numpy(rng.random((2, 5)) < 0.8).to(DEVICE)
    request, settings = Request(None, columns, ids, without=without), Settings(1.0, extra, False)

    def compute() -> tuple:
        leaf = logits.clone().requires_grad_()
        reading = torch_ops.read(leaf, mask, settings, request)
        parts = [reading.kept, reading.listed.masked_fill(ids < 0, 0), reading.log_totals]
        blank = ~mask
        parts = [p.masked_fill(blank if p is parts[2] else blank[..., None], 0) for p in parts]
        generator = torch.Generator(DEVICE).manual_seed(0)
        finite = [p.masked_fill(p.isinf(), 0) for p in parts]
        total = sum(
            (p * torch.randn(p.shape, generator=generator, dtype=p.dtype, device=DEVICE)).sum()
            for p in finite
        )
        return parts, torch.autograd.grad(total, leaf)[0]

    parts, gradient = compute()
    assert launched == {"row_totals", "row_gradient"}
    monkeypatch.setenv("MLOT_KERNELS", "eager")
    expected_parts, expected = compute()
    for got, want in zip(parts, expected_parts, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert bool(gradient.isfinite().all())
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("widths", [(5, 9), (300, 130), (5000, 4097)])
@pytest.mark.parametrize("sharpness", [0.0, 0.01, 3.0, 40.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_uld(
    widths: tuple[int, int],
    sharpness: float,
    dtype: torch.dtype,
    launched: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pairs in any order, some of the same position; flat rows, whose bins decide nothing, and peaked ones."""
    monkeypatch.setattr(uld_kernels, "_FULLEST_BIN", 40)  # the interpreter takes long to compare
    if widths[0] == 5000 and (sharpness, dtype) != (3.0, torch.float32):
        widths = (700, 520)
    rng = np.random.default_rng(0)
    sides = [
        torch.from_numpy(sharpness * rng.normal(size=(2, 4, width))).to(DEVICE, dtype) for width in widths
    ]
    sides[0][1, 0] = float("nan")  # in no pair
    pairs = torch.tensor([[[2, 1], [0, 3], [2, 0], [-1, -1]], [[3, 2], [1, 2], [-1, -1], [-1, -1]]])
    masks = [torch.ones((2, 4), dtype=torch.bool, device=DEVICE) for _ in sides]
    masks[0][0, 3] = False

    def compute(kind: torch.dtype) -> tuple:
        leaves = [side.to(kind).requires_grad_() for side in sides]
        value = mlot.uld(
            *leaves,
            student_mask=masks[0],
            teacher_mask=masks[1],
            pairs=pairs.to(DEVICE),
            reduction="none",
        )
        return value.detach(), torch.autograd.grad(value.sum(), leaves)

    value, gradients = compute(dtype)
    assert launched == {"row_totals", "compare_rows", "gradient_of"}
    assert all(bool((gradient[1, 0] == 0).all()) for gradient in gradients[:1])
    monkeypatch.setenv("MLOT_KERNELS", "eager")
    want, exact = compute(torch.float64)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(value.double(), want.double(), rtol=tolerance, atol=tolerance)
    if sharpness == 0.0 or dtype == torch.bfloat16:
        return  # ties, between which either sign is right
    for got, expected in zip(gradients, exact, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, rtol=1e3 * tolerance, atol=tolerance)


def test_uld_of_rows_that_are_sorted(launched: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a bin is too full to compare each with each, the rows are sorted, with the same result."""
    rng = np.random.default_rng(1)
    sides = [torch.from_numpy(rng.normal(size=(2, 3, width))).to(DEVICE) for width in (90, 200)]
    results = []
    for limit in (2048, 1):
        monkeypatch.setattr(uld_kernels, "_FULLEST_BIN", limit)
        leaves = [side.clone().requires_grad_() for side in sides]
        value = mlot.uld(*leaves)
        results.append((value.detach(), *torch.autograd.grad(value, leaves)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.skipif(DEVICE == "cpu", reason="products of bfloat16 in float32 are for tensor cores")
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_heads_of_bfloat16(softcap: float | None) -> None:
    """As near to the truth as with logits formed, which rounds the gradient of the logits, too."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    hidden, weight, teacher = (
        torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.bfloat16)
        for shape in ((2, 30, 64), (3000, 64), (2, 30, 500))
    )
    weight /= 8

    def gradients(dtype: torch.dtype, *, formed: bool) -> tuple:
        leaves = [hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
        head = mlot.LinearHead(*leaves, softcap=softcap, chunk_bytes=120_000)
        source = head
        if formed:
            source = leaves[0] @ leaves[1].mT
            source = source if softcap is None else softcap * (source / softcap).tanh()
        config = mlot.MultiLevelOTConfig(k=6, matching="rank", sd_weight=0)
        return torch.autograd.grad(mlot.multi_level_ot(source, teacher.to(dtype), config=config).loss, leaves)

    truth = gradients(torch.float64, formed=False)
    naive, ours = gradients(torch.bfloat16, formed=True), gradients(torch.bfloat16, formed=False)
    for got, other, want in zip(ours, naive, truth, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got - want).norm() <= (other - want).norm() + 1e-3 * want.norm()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 4), (17, 33, 50), (70, 20, 3)])
def test_distances(shape: tuple[int, int, int], launched: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances of points, some equal in a coordinate, and the gradient through a transposed cost."""
    n, m, depth = shape
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.normal(size=(2, size, depth)).round(1)).to(DEVICE) for size in (n, m))
    slope = torch.from_numpy(rng.normal(size=(2, m, n))).to(DEVICE)

    def compute() -> tuple:
        leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
        cost = PairwiseL1.apply(*leaves)
        return cost.detach(), *torch.autograd.grad((cost.mT * slope).sum(), leaves)

    got = compute()
    assert launched == {"pairwise_l1", "pairwise_l1_back"}
    monkeypatch.setenv("MLOT_KERNELS", "eager")
    for one, other in zip(got, compute(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_uld_without_pairs_and_with_one_gradient(launched: set[str]) -> None:
    student = torch.randn(1, 2, 30, dtype=torch.float64, device=DEVICE).requires_grad_()
    teacher = torch.randn(1, 3, 20, dtype=torch.float64, device=DEVICE)
    empty = torch.empty((1, 0, 2), dtype=torch.long, device=DEVICE)
    for pairs in (empty, torch.full((1, 1, 2), -1, device=DEVICE)):
        value = mlot.uld(student, teacher, pairs=pairs, reduction="sum")
        (gradient,) = torch.autograd.grad(value, student)
        assert float(value.detach()) == 0
        assert bool((gradient == 0).all())
    assert "gradient_of" in launched


def test_kernels_can_be_switched_off(launched: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    problem, config = make_problem(0), mlot.MultiLevelOTConfig(k=6)
    eager(monkeypatch, problem, config, torch.float64)
    assert launched == set()
    monkeypatch.setenv("MLOT_KERNELS", "fast")
    with pytest.raises(ValueError, match="^MLOT_KERNELS: expected 'auto' or 'eager', got 'fast'"):
        evaluate(problem, config, torch.float64)


def test_what_kernels_do_not_serve_is_eager(launched: set[str]) -> None:
    logits = torch.randn(1, 3, 20, dtype=torch.float64, device=DEVICE)
    mlot.select(logits, k=2, standardize=True)
    mlot.select(logits, k=2, extra_temperatures=(2.0, 3.0))
    mlot.select(mlot.LinearHead(logits, torch.randn(9, 20, dtype=torch.float64, device=DEVICE)), k=2)
    assert launched == set()
