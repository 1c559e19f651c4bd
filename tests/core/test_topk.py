"""Teachers of which only the most likely tokens are known: selection, the loss, suppositions about the tail."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import mlot
import mlot.nn
from problems import BACKENDS, as_numpy, assert_close, configs, make_problem, problems, rounding

TAILS = ("fitted", "zero", "renormalize", "uniform")
TERMS = ("loss", "had", "sl", "sd")


def log_softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    return logits / temperature - np.logaddexp.reduce(logits / temperature, axis=-1, keepdims=True)


def likeliest(
    logs: np.ndarray, k: int, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    ids = np.argsort(-logs, axis=2, kind="stable")[:, :, :k]
    if rng is not None:
        ids = rng.permuted(ids, axis=2)
    return ids, np.take_along_axis(logs, ids, axis=2)


def arrays(backend: str, *values: np.ndarray | None) -> list[object]:
    return [
        x if x is None or backend == "numpy" else torch.from_numpy(np.ascontiguousarray(x)) for x in values
    ]


# -- every token listed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25)
@given(
    problem=problems(), config=configs(), tail=st.sampled_from(TAILS), base=st.sampled_from([1.0, 0.5, 2.0])
)
def test_with_every_token_it_is_the_dense_teacher(
    backend: str, problem: object, config: mlot.MultiLevelOTConfig, tail: str, base: float
) -> None:
    config = mlot.MultiLevelOTConfig(**{**vars(config), "standardize": False, "tol": None})
    ids, logs = likeliest(
        log_softmax(problem.teacher, base), problem.teacher.shape[2], np.random.default_rng(0)
    )
    given = problem.to(backend)
    source = mlot.TopKLogprobs(*arrays(backend, ids, logs), problem.teacher.shape[2], tail, base)
    want = mlot.multi_level_ot(**given.arguments(), config=config, reduction="none")
    got = mlot.multi_level_ot(**given.with_(teacher=source).arguments(), config=config, reduction="none")
    floor = 100 * rounding(problem, config)
    mass = as_numpy(
        mlot.select(problem.teacher, problem.teacher_mask, k=None, temperature=config.temperature).column_mass
    )
    if mass.shape[1] > 1:  # columns that tie to rounding may come in another order
        assume(np.abs(np.diff(mass, axis=1)).min(initial=1.0, where=mass[:, 1:] > 0) >= 1e-9)
    for term in TERMS:
        assert_close(getattr(got, term), getattr(want, term), 1e-8, floor, term)


@pytest.mark.parametrize("matching", ["optimal", "rank", "greedy", "sinkhorn"])
def test_gradient_of_the_student(matching: str) -> None:
    problem = make_problem(3, masks="gaps")
    config = mlot.MultiLevelOTConfig(k=6, matching=matching)
    ids, logs = likeliest(log_softmax(problem.teacher), problem.teacher.shape[2])
    given = problem.to("torch")
    source = mlot.TopKLogprobs(*arrays("torch", ids, logs), problem.teacher.shape[2])
    gradients = []
    for teacher in (given.teacher, source):
        leaf = given.student.clone().requires_grad_()
        loss = mlot.multi_level_ot(
            **given.with_(student=leaf, teacher=teacher).arguments(), config=config
        ).loss
        gradients.append(torch.autograd.grad(loss, leaf)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-8, atol=1e-12)


def test_the_module_takes_it() -> None:
    g = torch.Generator().manual_seed(0)
    student = torch.randn(2, 6, 20, generator=g, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 7, 30, generator=g, dtype=torch.float64)
    labels, teacher_labels = torch.randint(20, (2, 6), generator=g), torch.randint(30, (2, 7), generator=g)
    teacher_labels[0, :3] = -100
    criterion = mlot.nn.MultiLevelOTLoss(mlot.MultiLevelOTConfig(k=6))
    ids = teacher.argsort(dim=-1, descending=True)
    source = mlot.TopKLogprobs(ids, teacher.log_softmax(-1).gather(2, ids), 30)
    want = criterion(student, teacher, labels, teacher_labels)
    got = criterion(student, source, labels, teacher_labels)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=0)
    one, two = (torch.autograd.grad(x, student)[0] for x in (got, want))
    torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-12)
    blank = ids.clone()
    blank[:, -1] = -1
    blank[0, :2] = -1
    served = mlot.TopKLogprobs(blank, source.logprobs, 30)
    got = criterion.terms(student, served, labels)  # the positions with an entry count
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[:, -1] = mask[0, :2] = False
    want = mlot.multi_level_ot(
        student,
        teacher,
        student_mask=mlot.mask_from_labels(labels),
        teacher_mask=mask,
        config=criterion.config,
    )
    torch.testing.assert_close(got.distillation, want.loss, rtol=1e-10, atol=0)


# -- some tokens listed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", TAILS)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 12), base=st.sampled_from([1.0, 0.7]))
def test_backends_agree(tail: str, seed: int, k: int, base: float) -> None:
    rng = np.random.default_rng(seed)
    ids, logs = likeliest(log_softmax(2 * rng.normal(size=(2, 5, 12)), base), k)
    ids[np.arange(k) >= rng.integers(1, k + 1, size=(2, 5, 1))] = -1
    order = rng.permuted(np.broadcast_to(np.arange(k), ids.shape), axis=2)
    ids, logs = np.take_along_axis(ids, order, axis=2), np.take_along_axis(logs, order, axis=2)
    source = mlot.TopKLogprobs(ids, logs, 12, tail, base)
    student = rng.normal(size=(2, 4, 9))
    config = mlot.MultiLevelOTConfig(k=5, sequence_temperature=1.4)
    want = mlot.multi_level_ot(student, source, config=config, reduction="none")
    got = mlot.multi_level_ot(
        torch.from_numpy(student), source, config=config, reduction="none", backend="torch"
    )
    for term in TERMS:
        np.testing.assert_allclose(as_numpy(getattr(got, term)), getattr(want, term), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_suppositions_about_the_tail(backend: str) -> None:
    """By hand, at the temperature of the log-probabilities and at twice that."""
    ids, probs = np.array([[[2, 0, -1]]]), np.array([[[0.64, 0.16, np.nan]]])
    with np.errstate(invalid="ignore"):
        logs = np.log(probs)
    total = 0.8 + 0.4
    want = {  # probabilities of columns 2, 0, 1 at temperature 1 and 2
        "zero": ([0.64, 0.16, 0], [0.8, 0.4, 0], total + 0.2 * 0.16**-0.5),
        "renormalize": ([0.8, 0.2, 0], [0.8, 0.4, 0], total),
        "uniform": ([0.64, 0.16, 0.05], [0.8, 0.4, 0.05**0.5], total + 4 * 0.05**0.5),
    }
    for tail, (here, powers, normalizer) in want.items():
        source = mlot.TopKLogprobs(*arrays(backend, ids, logs), 6, tail)
        traces = mlot.select(source, k=3)
        assert as_numpy(traces.columns).tolist() == [[2, 0, 1]]
        np.testing.assert_allclose(np.exp(as_numpy(traces.log_probs))[0, 0], here, rtol=1e-12)
        np.testing.assert_allclose(
            np.exp(as_numpy(traces.at(2.0)))[0, 0], np.array(powers) / normalizer, rtol=1e-12
        )
        twice = mlot.select(source, k=3, temperature=2.0, extra_temperatures=(1.0,))
        np.testing.assert_allclose(as_numpy(twice.log_probs), as_numpy(traces.at(2.0)), rtol=1e-12)
        np.testing.assert_allclose(
            as_numpy(twice.at(1.0)), as_numpy(traces.log_probs), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lower_index(backend: str) -> None:
    ids = np.array([[[7, 3], [3, 7]]])
    source = mlot.TopKLogprobs(*arrays(backend, ids, np.log(np.full((1, 2, 2), 0.5))), 9)
    assert as_numpy(mlot.select(source, k=4).columns).tolist() == [[3, 7, 0, 1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_unknown_vocabulary_is_as_wide_as_its_largest_id(backend: str) -> None:
    source = mlot.TopKLogprobs(*arrays(backend, np.array([[[7, 3]]]), np.log([[[0.5, 0.4]]])))
    assert source.shape == (1, 1, 8)
    assert mlot.select(source, k=50).k == 8


def test_positions_without_an_entry_do_not_count() -> None:
    rng = np.random.default_rng(0)
    ids, logs = likeliest(log_softmax(rng.normal(size=(1, 4, 8))), 3)
    ids[0, 2] = -1
    source, student = mlot.TopKLogprobs(ids, logs, 8), rng.normal(size=(1, 4, 9))
    kept = [0, 1, 3]
    want = mlot.multi_level_ot(student, mlot.TopKLogprobs(ids[:, kept], logs[:, kept], 8))
    assert mlot.multi_level_ot(student, source).loss == want.loss
    with pytest.raises(
        ValueError, match=r"^teacher_mask: expected positions at which teacher has an entry.*position 2"
    ):
        mlot.multi_level_ot(student, source, teacher_mask=np.ones((1, 4), dtype=bool))


@pytest.mark.parametrize("backend", BACKENDS)
def test_traces_of_it_can_be_saved(backend: str, tmp_path) -> None:
    rng = np.random.default_rng(0)
    ids, logs = likeliest(log_softmax(rng.normal(size=(2, 4, 8))), 3)
    source = mlot.TopKLogprobs(*arrays(backend, ids, logs), 8, "uniform")
    (student,) = arrays(backend, rng.normal(size=(2, 4, 9)))
    config = mlot.MultiLevelOTConfig(k=4)
    mlot.select(source, k=4).save(tmp_path / "teacher.safetensors")
    traces = mlot.Traces.load(tmp_path / "teacher.safetensors")
    want = mlot.multi_level_ot(student, source, config=config).loss
    assert mlot.multi_level_ot(student, traces, config=config).loss == want


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    logs = (2 * torch.randn(2, 5, 12, generator=g)).log_softmax(-1).to(dtype)
    ids = logs.argsort(dim=-1, descending=True, stable=True)[:, :, :5]
    source = mlot.TopKLogprobs(ids, logs.gather(2, ids), 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        traces = mlot.select(source, k=5)
    assert traces.log_probs.dtype == torch.float32
    wide = mlot.TopKLogprobs(ids, logs.gather(2, ids).double(), 12)
    want = mlot.select(wide, k=5)
    assert torch.equal(traces.columns, want.columns)
    torch.testing.assert_close(traces.log_probs.double(), want.log_probs, rtol=1e-6, atol=1e-6)


def test_it_is_a_constant() -> None:
    logs = torch.randn(1, 4, 8).log_softmax(-1).requires_grad_()
    source = mlot.TopKLogprobs(torch.arange(8).expand(1, 4, 8), logs, 8)
    assert not mlot.select(source, k=3).log_probs.requires_grad
    student = torch.randn(1, 4, 9, requires_grad=True)
    with torch.no_grad():
        assert not mlot.multi_level_ot(student, source).loss.requires_grad
    assert mlot.multi_level_ot(student, source).loss.requires_grad


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
def test_compiles_into_one_graph() -> None:
    torch._dynamo.reset()
    g = torch.Generator().manual_seed(0)
    logs = torch.randn(2, 6, 40, generator=g).log_softmax(-1)
    ids = logs.argsort(dim=-1, descending=True)[:, :, :9]
    student = torch.randn(2, 5, 30, generator=g)
    config = mlot.MultiLevelOTConfig(k=6, matching="rank")
    sources = {tail: mlot.TopKLogprobs(ids, logs.gather(2, ids), 40, tail) for tail in TAILS}

    def selected() -> tuple[torch.Tensor, ...]:
        traces = [mlot.select(source, k=6) for source in sources.values()]
        return tuple(each for one in traces for each in (one.columns, one.log_probs, one.at(2.0)))

    def loss(s: torch.Tensor) -> torch.Tensor:
        return mlot.multi_level_ot(s, sources["uniform"], config=config).loss

    for one, two in zip(compiled(selected)(), selected(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)
    found = []
    for function in (loss, compiled(loss)):
        leaf = student.clone().requires_grad_()
        found += [value := function(leaf), torch.autograd.grad(value, leaf)[0]]
    torch.testing.assert_close(found[2:], found[:2], rtol=1e-5, atol=1e-7)


def compiled(function: object) -> object:
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def test_memory_does_not_grow_with_the_whole() -> None:
    """A vocabulary of 100000 and 64 positions: 49 MiB if it were dense."""
    rng = np.random.default_rng(0)
    ids = np.stack([rng.choice(100_000, 8, replace=False) for _ in range(64)])[None]
    source = mlot.TopKLogprobs(ids, np.log(np.full(ids.shape, 0.1)), 100_000)
    mlot.select(source, k=50)
    tracemalloc.start()
    mlot.select(source, k=50)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
    given = source.map(torch.from_numpy)
    with torch.profiler.profile(profile_memory=True) as profile:
        mlot.select(given, k=50)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest <= 8 * 100_000 * 1.1


# -- what is refused -------------------------------------------------------------------------------------

IDS, LOGS = np.array([[[0, 1], [2, 1]]]), np.log(np.array([[[0.6, 0.3], [0.7, 0.2]]]))


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"ids": [[1]]}, TypeError, "^ids: expected an array"),
        ({"ids": IDS[0]}, ValueError, r"^ids: expected \(B, T, K\), got shape \(2, 2\)"),
        ({"ids": IDS.astype(float)}, TypeError, "^ids: expected integers, got float64"),
        ({"logprobs": IDS}, TypeError, "^logprobs: expected floating-point numbers"),
        ({"logprobs": LOGS[:, :1]}, ValueError, r"^logprobs: expected the shape of ids, \(1, 2, 2\)"),
        ({"logprobs": torch.from_numpy(LOGS)}, TypeError, "^logprobs: array kinds are mixed"),
        ({"ids": IDS - 3}, ValueError, "^ids: expected tokens, or -1 for none, got -3"),
        ({"vocab_size": 2}, ValueError, "^ids: expected tokens below vocab_size = 2, got 2"),
        ({"vocab_size": 0}, ValueError, "^vocab_size: expected an integer >= 1 or None"),
        ({"ids": IDS * 0}, ValueError, "^ids: expected different tokens at each position, got 0 twice: sequence 0, position 0"),
        ({"logprobs": LOGS * np.nan}, ValueError, "^logprobs: expected numbers, got nan"),
        ({"logprobs": -LOGS}, ValueError, "^logprobs: expected no positive numbers.*are these logits"),
        ({"logprobs": LOGS / 4}, ValueError, "^logprobs: expected probabilities that sum to at most 1"),
        ({"logprobs": LOGS - 3, "vocab_size": 3}, ValueError, "^logprobs: expected the most likely tokens"),
        ({"logprobs": np.where(IDS == 1, -np.inf, LOGS)}, ValueError, "^logprobs: expected the most likely tokens"),
        ({"tail": "none"}, ValueError, "^tail: expected one of"),
        ({"tail": "uniform"}, ValueError, "^vocab_size: expected the width of the teacher's vocabulary"),
        ({"temperature": 0}, ValueError, "^temperature: expected a finite number > 0"),
    ],
)  # fmt: skip
def test_bad_input(changes: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        mlot.TopKLogprobs(**({"ids": IDS, "logprobs": LOGS} | changes))


def test_room_for_the_missing_mass() -> None:
    """Absent tokens have at most the least kept probability each, and no more than that is let through."""
    ids = np.array([[[0, 1]]])
    for kept, width in (([0.4, 0.31], 3), ([0.4, 0.201], 4), ([0.34, 0.331], 3)):
        mlot.TopKLogprobs(ids, np.log([[kept]]), width)
    for kept, width in (([0.5, 0.24], 3), ([0.45, 0.18], 4), ([0.5, 0.4], 2)):
        with pytest.raises(ValueError, match="^logprobs: expected the most likely tokens"):
            mlot.TopKLogprobs(ids, np.log([[kept]]), width)


def test_what_it_cannot_do() -> None:
    source, student = mlot.TopKLogprobs(IDS, LOGS, 4), np.zeros((1, 2, 5))
    with pytest.raises(TypeError, match="^student: expected logits, a LinearHead or Traces, since served"):
        mlot.multi_level_ot(source, source)
    with pytest.raises(ValueError, match="^teacher: expected standardize=False, since the deviation"):
        mlot.multi_level_ot(student, source, config=mlot.MultiLevelOTConfig(standardize=True))
    with pytest.raises(
        TypeError, match="^teacher: expected logits or a LinearHead, since ULD needs every column"
    ):
        mlot.uld(student, source)
    with pytest.raises(
        TypeError, match="^student_logits: expected logits or a LinearHead, since cross-entropy"
    ):
        mlot.nn.MultiLevelOTLoss()(source.map(torch.from_numpy), None, torch.zeros(1, 2, dtype=torch.long))


def test_what_stands_beside_no_token_is_not_read() -> None:
    ids = np.where(IDS == 1, -1, IDS)
    for garbage in (np.nan, np.inf, 5.0):
        source = mlot.TopKLogprobs(ids, np.where(ids < 0, garbage, LOGS), 4)
        np.testing.assert_allclose(
            np.exp(mlot.select(source, k=4).column_mass), [[np.exp(0.7), np.exp(0.6), 1, 1]]
        )
    assert "K=2, vocab_size=4, tail='fitted'" in repr(source)


def test_nothing_at_all() -> None:
    for shape in ((0, 3, 2), (2, 0, 2), (2, 3, 0)):
        source = mlot.TopKLogprobs(np.zeros(shape, dtype=int), np.zeros(shape), 5)
        for each in (source, source.map(torch.from_numpy)):
            assert tuple(mlot.select(each, k=2).log_probs.shape) == (*shape[:2], 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "tail, vocabulary, want",
    [
        ("uniform", 4, [0.25, 0.09, 0.01, 0.01]),
        ("fitted", 4, [0.25, 0.09, 0.01, 0.01]),
        ("zero", 4, [0.25, 0.09, 0.01, 0.01]),
        ("renormalize", 4, [0.25, 0.09, 0.01, 0.0]),
    ],
)
def test_one_absent_token_at_half_the_temperature(
    backend: str, tail: str, vocabulary: int, want: list[float]
) -> None:
    """Powers of 2; with one token absent, its mass is known."""
    ids, logs = np.arange(3)[None, None], np.log([[[0.5, 0.3, 0.1]]])
    source = mlot.TopKLogprobs(*arrays(backend, ids, logs), vocabulary, tail)
    traces = mlot.select(source, k=3, temperature=0.5, extra_temperatures=(1.0,))
    np.testing.assert_allclose(
        np.exp(as_numpy(traces.log_probs))[0, 0], np.array(want[:3]) / sum(want), rtol=1e-12
    )
    at_one = np.exp(as_numpy(mlot.select(source, k=3).log_probs))[0, 0]
    kept = 1.0 if tail != "renormalize" else 0.9
    np.testing.assert_allclose(at_one, np.array([0.5, 0.3, 0.1]) / kept, rtol=1e-12)
