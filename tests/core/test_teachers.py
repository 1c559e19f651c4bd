"""Several teachers: the weighted sum of what each gives, from one pass over the student's vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mlot
import mlot.nn
from mlot.backends.numpy.backend import NumpyBackend
from mlot.backends.torch.backend import TorchBackend
from problems import BACKENDS, as_numpy, make_problem, random_mask, random_pairs

TERMS = ("loss", "had", "sl", "sd")
CONFIGS = (
    mlot.MultiLevelOTConfig(k=6),
    mlot.MultiLevelOTConfig(k=4, matching="rank", sequence_temperature=3.0),
    mlot.MultiLevelOTConfig(k=9, matching="greedy", temperature=0.7, pool=12),
    mlot.MultiLevelOTConfig(k=3, matching="sinkhorn", standardize=True),
    mlot.MultiLevelOTConfig(k=5, pool=7, sd_weight=0.0),
)


def some_teachers(
    seed: int, count: int, backend: str, batch: int = 2, t_s: int = 6
) -> tuple[object, list[mlot.Teacher]]:
    """A student, and teachers of all kinds: narrower and wider, logits, heads, traces, served; masks and pairs."""
    rng = np.random.default_rng(seed)
    on = torch.from_numpy if backend == "torch" else np.asarray
    student, teachers = on(2 * rng.normal(size=(batch, t_s, 25))), []
    for m in range(count):
        width, length = int(rng.choice([3, 17, 40])), int(rng.integers(1, 8))
        mask = random_mask(rng, batch, length, str(rng.choice(["none", "gaps", "right"])))
        pairs = random_pairs(rng, batch, t_s, length) if rng.random() < 0.5 else None
        config = CONFIGS[int(rng.integers(len(CONFIGS)))]
        logits = 2 * rng.normal(size=(batch, length, width))
        source, kind = on(logits), int(rng.integers(4))
        mask = None if mask is None else on(mask)
        if kind == 1:
            source = mlot.LinearHead(on(rng.normal(size=(batch, length, 4))), on(rng.normal(size=(width, 4))))
        elif kind == 2:
            source = mlot.select(
                source,
                mask,
                k=width,
                temperature=config.temperature,
                extra_temperatures=(config.sequence_temperature,),
                standardize=config.standardize,
            )
        elif kind == 3 and not config.standardize:
            logs = logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)
            ids = np.argsort(-logs, axis=2)[:, :, :5]
            source = mlot.TopKLogprobs(on(ids), on(np.take_along_axis(logs, ids, axis=2)), width)
        weight = float(rng.choice([0.0, 0.3, 1.0])) if m else 0.7
        teachers.append(mlot.Teacher(source, weight, mask, None if pairs is None else on(pairs), config))
    return student, teachers


def separately(student: object, teacher: mlot.Teacher, **settings: object) -> mlot.MultiLevelOTResult:
    given = {"teacher_mask": teacher.mask, "pairs": teacher.pairs, "config": teacher.config}
    return mlot.multi_level_ot(student, teacher.source, **given, **settings)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 4),
    masked=st.booleans(),
    reduction=st.sampled_from(["none", "sum", "mean"]),
)
def test_it_is_the_weighted_sum(backend: str, seed: int, count: int, masked: bool, reduction: str) -> None:
    student, teachers = some_teachers(seed, count, backend)
    mask = np.random.default_rng(seed).random((2, 6)) < 0.7 if masked else None
    mask = mask if mask is None or backend == "numpy" else torch.from_numpy(mask)
    given = {"student_mask": mask, "reduction": reduction}
    got = mlot.multi_teacher_ot(student, teachers, **given)
    total = 0.0
    for teacher, result in zip(teachers, got.results, strict=True):
        want = separately(student, teacher, **given)
        for term in TERMS:
            np.testing.assert_allclose(
                as_numpy(getattr(result, term)), as_numpy(getattr(want, term)), rtol=1e-9, atol=1e-12
            )
        assert (as_numpy(result.student_columns) == as_numpy(want.student_columns)).all()
        assert (as_numpy(result.teacher_columns) == as_numpy(want.teacher_columns)).all()
        total = total + teacher.weight * as_numpy(want.loss)
    np.testing.assert_allclose(as_numpy(got.loss), total, rtol=1e-9, atol=1e-12)
    assert got.weights == tuple(teacher.weight for teacher in teachers)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 4), head=st.booleans())
def test_so_is_its_gradient(seed: int, count: int, head: bool) -> None:
    student, teachers = some_teachers(seed, count, "torch")
    rng = np.random.default_rng(seed)
    leaves = [student]
    if head:
        leaves = [torch.from_numpy(rng.normal(size=shape)) for shape in ((2, 6, 4), (25, 4))]

    def source(leaves: list[torch.Tensor]) -> object:
        return mlot.LinearHead(*leaves) if head else leaves[0]

    found = []
    for loss in (
        lambda s: mlot.multi_teacher_ot(s, teachers).loss,
        lambda s: sum(t.weight * separately(s, t).loss for t in teachers),
    ):
        ready = [leaf.clone().requires_grad_() for leaf in leaves]
        found.append(torch.autograd.grad(loss(source(ready)), ready))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("backend", "kind"), [("numpy", NumpyBackend), ("torch", TorchBackend)])
def test_the_student_is_passed_over_once(backend: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each setting that decides which of its columns are heaviest, whatever the number of teachers."""
    on = torch.from_numpy if backend == "torch" else np.asarray
    rng = np.random.default_rng(0)
    student = on(rng.normal(size=(2, 6, 25)))
    passes = []
    select = kind.select

    def counted(self, source, mask, **settings):
        if source is student:
            passes.append(settings)
        return select(self, source, mask, **settings)

    monkeypatch.setattr(kind, "select", counted)
    teachers = [
        mlot.Teacher(on(rng.normal(size=(2, 5, width))), config=mlot.MultiLevelOTConfig(k=k, pool=k + 3, sequence_temperature=tau))
        for width, k, tau in ((12, 4, 2.0), (30, 9, 3.0), (3, 5, 2.0))
    ]  # fmt: skip
    mlot.multi_teacher_ot(student, teachers)
    assert [(given["k"], given["extra_temperatures"]) for given in passes] == [(12, (2.0, 3.0))]
    other = mlot.Teacher(teachers[0].source, config=mlot.MultiLevelOTConfig(k=4, temperature=0.5))
    mlot.multi_teacher_ot(student, [*teachers, other, other])
    assert [given["temperature"] for given in passes[1:]] == [1.0, 0.5]


def test_backward_passes_once_too(monkeypatch: pytest.MonkeyPatch) -> None:

    from mlot.backends.torch import read as torch_read

    passes = []
    back = torch_read.read_rows_backward
    monkeypatch.setattr(
        torch_read, "read_rows_backward", lambda *a, **k: (passes.append(1), back(*a, **k))[1]
    )
    student = torch.randn(2, 6, 25, requires_grad=True)
    teachers = [mlot.Teacher(torch.randn(2, 5, 30)) for _ in range(3)]
    mlot.multi_teacher_ot(student, teachers, config=mlot.MultiLevelOTConfig(k=4)).loss.backward()
    assert len(passes) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_options(backend: str) -> None:
    student, teachers = some_teachers(5, 2, backend)
    bare = [
        mlot.Teacher(t.source, t.weight, t.mask, t.pairs)
        for t in teachers
        if not isinstance(t.source, mlot.Traces)
    ]
    config = mlot.MultiLevelOTConfig(k=3)
    got = mlot.multi_teacher_ot(student, bare, config=config, num_items=7.0, return_plan=True)
    for teacher, result in zip(bare, got.results, strict=True):
        want = mlot.multi_level_ot(
            student,
            teacher.source,
            teacher_mask=teacher.mask,
            pairs=teacher.pairs,
            config=config,
            num_items=7.0,
        )
        np.testing.assert_allclose(as_numpy(result.loss), as_numpy(want.loss), rtol=1e-10)
        assert result.plan is not None
        assert (result.diagnostics().matching_gap == want.diagnostics().matching_gap).all()


def test_a_backend_can_be_named() -> None:
    student, teachers = some_teachers(1, 3, "numpy")
    got = mlot.multi_teacher_ot(student, teachers, backend="torch")
    assert isinstance(got.loss, torch.Tensor)
    np.testing.assert_allclose(float(got.loss), mlot.multi_teacher_ot(student, teachers).loss, rtol=1e-9)


def test_a_student_of_traces() -> None:
    problem = make_problem(0)
    config = mlot.MultiLevelOTConfig(k=6, pool=10)
    traces = mlot.select(problem.student, k=15)
    teachers = [mlot.Teacher(problem.teacher), mlot.Teacher(problem.teacher[:, :4], 0.5)]
    want = mlot.multi_teacher_ot(problem.student, teachers, config=config)
    assert mlot.multi_teacher_ot(traces, teachers, config=config).loss == want.loss


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
def test_compiles_into_one_graph() -> None:
    torch._dynamo.reset()
    g = torch.Generator().manual_seed(0)
    student, *others = (torch.randn(2, 5, width, generator=g) for width in (20, 30, 12))
    teachers = [mlot.Teacher(other, weight) for other, weight in zip(others, (1.0, 0.3), strict=True)]
    config = mlot.MultiLevelOTConfig(k=4, matching="rank")

    def loss(s: torch.Tensor) -> torch.Tensor:
        return mlot.multi_teacher_ot(s, teachers, config=config).loss

    torch.testing.assert_close(
        torch.compile(loss, fullgraph=True, backend="aot_eager")(student), loss(student)
    )


# -- the module ------------------------------------------------------------------------------------------


@pytest.fixture
def batch() -> dict[str, object]:
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(20, (3, 7), generator=g)
    labels[0, :4] = -100
    teachers = [
        torch.randn(3, 9, 30, generator=g, dtype=torch.float64),
        torch.randn(3, 5, 11, generator=g, dtype=torch.float64),
    ]
    teacher_labels = [torch.randint(11, (3, t.shape[1]), generator=g) for t in teachers]
    teacher_labels[0][1, 6:] = -100
    return {
        "student_logits": torch.randn(3, 7, 20, generator=g, dtype=torch.float64),
        "teacher_logits": [mlot.Teacher(teachers[0], 0.8), mlot.Teacher(teachers[1], 0.4)],
        "student_labels": labels,
        "teacher_labels": teacher_labels,
    }  # fmt: skip


def test_the_module_takes_several(batch: dict[str, object]) -> None:
    criterion = mlot.nn.MultiLevelOTLoss(mlot.MultiLevelOTConfig(k=6))
    terms = criterion.terms(**batch)
    singles = [
        criterion.terms(batch["student_logits"], teacher.source, batch["student_labels"], labels)
        for teacher, labels in zip(batch["teacher_logits"], batch["teacher_labels"], strict=True)
    ]
    want = 0.8 * singles[0].distillation + 0.4 * singles[1].distillation
    torch.testing.assert_close(terms.distillation, want, rtol=1e-10, atol=0)
    torch.testing.assert_close(terms.loss, singles[0].cross_entropy + 0.15 * want, rtol=1e-10, atol=0)
    assert len(terms.ot.results) == 2
    torch.testing.assert_close(criterion(**batch), terms.loss)
    masked = [
        mlot.Teacher(teacher.source, teacher.weight, mlot.mask_from_labels(labels))
        for teacher, labels in zip(batch["teacher_logits"], batch["teacher_labels"], strict=True)
    ]
    torch.testing.assert_close(
        criterion(batch["student_logits"], masked, batch["student_labels"]), terms.loss
    )
    mixed = [batch["teacher_logits"][0], masked[1]]
    labels = [batch["teacher_labels"][0], None]
    torch.testing.assert_close(
        criterion(batch["student_logits"], mixed, batch["student_labels"], labels), terms.loss
    )


def test_the_module_without_distillation(batch: dict[str, object]) -> None:
    terms = mlot.nn.MultiLevelOTLoss(alpha=0).terms(**batch)
    assert terms.distillation == 0
    assert terms.ot is None


def test_what_the_module_refuses(batch: dict[str, object]) -> None:
    criterion, teachers = mlot.nn.MultiLevelOTLoss(), batch["teacher_logits"]
    none = torch.full((3, 1, 2), -1)
    masked = mlot.Teacher(teachers[0].source, mask=torch.ones(3, 9, dtype=torch.bool))
    for changes, kind, message in (
        ({"pairs": none}, ValueError, "^pairs: expected None with several teachers"),
        ({"teacher_labels": None}, TypeError, r"^teacher_labels\[0\]: expected integers \(B, T_t\), got None"),
        ({"teacher_labels": [None]}, ValueError, "^teacher_labels: expected None or one"),
        ({"teacher_labels": batch["teacher_labels"][0]}, ValueError, "^teacher_labels: expected None or one"),
        ({"teacher_labels": batch["teacher_labels"][::-1]}, ValueError, r"^teacher_labels\[0\]: expected shape \(3, 9\)"),
        ({"teacher_logits": [masked, teachers[1]]}, ValueError, r"^teacher_labels\[0\]: expected None for a Teacher with"),
        ({"teacher_logits": [teachers[0].source, teachers[1]]}, TypeError, r"^teacher_logits\[0\]: expected a mlot.Teacher"),
        ({"teacher_logits": [], "teacher_labels": None}, ValueError, "^teachers: expected at least one Teacher"),
    ):  # fmt: skip
        with pytest.raises(kind, match=message):
            criterion(**(batch | changes))


# -- what is refused -------------------------------------------------------------------------------------


def test_bad_input() -> None:
    student, logits = np.zeros((2, 5, 7)), np.zeros((2, 4, 9))
    teacher = mlot.Teacher(logits)
    for teachers, kind, message in (
        (teacher, TypeError, "^teachers: expected a sequence of Teacher, got Teacher"),
        ([], ValueError, "^teachers: expected at least one Teacher"),
        ([teacher, logits], TypeError, r"^teachers\[1\]: expected a Teacher, got ndarray"),
        ([mlot.Teacher(logits, 0.0)], ValueError, "^teachers: expected one with a positive weight"),
        ([teacher, mlot.Teacher(logits[:1])], ValueError, r"^teachers\[1\].source: expected the batch size of student"),
        ([teacher, mlot.Teacher([1.0])], TypeError, r"^teachers\[1\].source: expected an array"),
        ([mlot.Teacher(logits, mask=np.ones((2, 3), dtype=bool))], ValueError, r"^teachers\[0\].mask: expected shape \(2, 4\)"),
        ([mlot.Teacher(logits, pairs=np.full((2, 1, 2), 5))], ValueError, r"^teachers\[0\].pairs: expected student positions"),
        ([mlot.Teacher(torch.zeros(2, 4, 9))], TypeError, r"^teachers\[0\].source: array kinds are mixed"),
        ([mlot.Teacher(mlot.select(logits, k=2))], ValueError, r"^teachers\[0\].source: expected traces of at least 7"),
    ):  # fmt: skip
        with pytest.raises(kind, match=message):
            mlot.multi_teacher_ot(student, teachers)
    with pytest.raises(ValueError, match="^weight: expected a finite number >= 0"):
        mlot.Teacher(logits, -1.0)
    with pytest.raises(TypeError, match="^config: expected a MultiLevelOTConfig"):
        mlot.Teacher(logits, config={"k": 3})
    with pytest.raises(TypeError, match="^config: expected a MultiLevelOTConfig"):
        mlot.multi_teacher_ot(student, [teacher], config={"k": 3})
    with pytest.raises(ValueError, match="^num_items: expected None unless"):
        mlot.multi_teacher_ot(student, [teacher], reduction="sum", num_items=2.0)
    source = mlot.TopKLogprobs(np.zeros((2, 5, 1), dtype=int), np.zeros((2, 5, 1)))
    with pytest.raises(TypeError, match="^student: expected logits, a LinearHead or Traces"):
        mlot.multi_teacher_ot(source, [teacher])
