"""Saved teachers: the loss and the student's gradient are those from the teacher's logits, to the last bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mlot
from mlot.saved import Manifest, SavedTeacher, TeacherWriter
from problems import BACKENDS, TERMS, as_numpy
from saved_cases import FIELDS, WIDE, cases, in_dtype, manifest, save, select, together

backends = pytest.mark.parametrize("backend", BACKENDS)
dtypes = pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])


def student_logits(backend: str, batch: int, dtype: torch.dtype = torch.float64) -> object:
    logits = np.random.default_rng(5).normal(size=(batch, 8, 33))
    return logits if backend == "numpy" else torch.from_numpy(logits).to(dtype).requires_grad_()


def loss(backend: str, teacher: mlot.Traces, config: mlot.MultiLevelOTConfig, **kwargs: object) -> list:
    """Every term, and the student's gradient where there are gradients."""
    student = student_logits(backend, teacher.shape[0])
    mask = np.random.default_rng(6).random((teacher.shape[0], 8)) < 0.8
    result = mlot.multi_level_ot(
        student,
        teacher,
        student_mask=mask if backend == "numpy" else torch.from_numpy(mask),
        config=config,
        reduction="none",
        **kwargs,
    )
    found = [as_numpy(getattr(result, name)) for name in TERMS]
    if backend == "torch":
        result.loss.sum().backward()
        found.append(as_numpy(student.grad))
    return found


@backends
@dtypes
@pytest.mark.parametrize("matching", ["optimal", "rank", "sinkhorn"])
def test_loss_and_gradient_equal_those_from_logits(
    backend: str, dtype: str, matching: str, tmp_path: Path
) -> None:
    """Interior gaps, ragged lengths, an empty example, and one without a position that counts."""
    examples = cases(7)
    made = manifest(dtype=dtype)
    config = mlot.MultiLevelOTConfig(k=made.k, matching=matching)
    logits, mask, present = together(examples)
    if backend == "torch":
        logits, mask = torch.from_numpy(logits), torch.from_numpy(mask)
    selected = select(logits, mask, made)
    with TeacherWriter(tmp_path, made, examples_per_shard=3) as writer:
        writer.add([each.key for each in examples], selected, present)
    read = SavedTeacher(tmp_path).batch([each.key for each in examples], backend=backend)
    wanted = in_dtype(selected, dtype)
    for name in FIELDS:
        got, want = getattr(read, name), getattr(wanted, name)
        assert got.dtype == want.dtype, name
        np.testing.assert_array_equal(as_numpy(got), as_numpy(want), err_msg=name)
    for got, want in zip(loss(backend, read, config), loss(backend, wanted, config), strict=True):
        np.testing.assert_array_equal(got, want)
    if dtype == "float64":  # that of the selection: the very numbers that the logits give
        teacher_mask = {"teacher_mask": mask}
        for got, want in zip(
            loss(backend, read, config), loss(backend, logits, config, **teacher_mask), strict=True
        ):
            np.testing.assert_array_equal(got, want)


def test_float32_selection_is_stored_exactly_in_float32(tmp_path: Path) -> None:
    """What torch selects from half-precision logits, with a learning student beside it."""
    made = manifest(dtype="float32")
    examples = cases(6)
    logits, mask, present = together(examples)
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        teacher, teacher_mask = torch.from_numpy(logits).to(kind), torch.from_numpy(mask)
        folder = tmp_path / str(kind)
        with TeacherWriter(folder, made) as writer:
            writer.add([each.key for each in examples], select(teacher, teacher_mask, made), present)
        read = SavedTeacher(folder).batch([each.key for each in examples], backend="torch")
        found = []
        for source in (read, teacher):
            student = student_logits("torch", 6, torch.float32)
            result = mlot.multi_level_ot(
                student, source, teacher_mask=teacher_mask, config=mlot.MultiLevelOTConfig(k=made.k)
            )
            result.loss.backward()
            found.append((result.loss.detach(), student.grad))
        (got, got_gradient), (want, want_gradient) = found
        assert torch.equal(got, want)
        assert torch.equal(got_gradient, want_gradient)


@backends
@dtypes
def test_padding_of_the_original_batch_does_not_matter(backend: str, dtype: str, tmp_path: Path) -> None:
    """Added from batches padded on the left: the files are those of batches padded on the right, and alone."""
    examples = [each for each in cases(8) if len(each.ids)]
    made = manifest(dtype=dtype)
    written = []
    for style in ("left", "right", "wide", "alone"):
        folder = tmp_path / style
        with TeacherWriter(folder, made, examples_per_shard=4) as writer:
            groups = [[each] for each in examples] if style == "alone" else [examples[:3], examples[3:]]
            for some in groups:
                logits, mask, present = together(
                    some, left=style == "left", length=13 if style == "wide" else None
                )
                if backend == "torch":
                    logits, mask = torch.from_numpy(logits), torch.from_numpy(mask)
                writer.add([each.key for each in some], select(logits, mask, made), present)
        written.append(SavedTeacher(folder))
    one = written[0].batch(range(len(examples)))
    for other in written[1:]:
        two = other.batch(range(len(examples)))
        for name in FIELDS:
            np.testing.assert_allclose(
                getattr(one, name), getattr(two, name), rtol=0 if backend == "numpy" else 1e-12, err_msg=name
            )


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    temperature=st.sampled_from([1.0, 0.5, 2.0]),
    extra=st.sampled_from([(), (2.0,), (1.0, 4.0)]),
    standardize=st.booleans(),
    per_shard=st.integers(1, 5),
    count=st.integers(1, 8),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    dtype: str,
    temperature: float,
    extra: tuple[float, ...],
    standardize: bool,
    per_shard: int,
    count: int,
) -> None:
    """Whatever was added, in any grouping, is what is read, in any order and with repetitions."""
    made = manifest(
        dtype=dtype, temperature=temperature, extra_temperatures=extra, standardize=standardize, k=4
    )
    examples = cases(count, seed)
    saved = save(examples, tmp_path_factory.mktemp("round") / "t", made, per_shard, batch=3)
    saved.verify()
    rng = np.random.default_rng(seed)
    order = rng.integers(0, count, size=count + 2)
    read = saved.batch([examples[n].key for n in order])
    assert read.shape == (len(order), max(len(examples[n].ids) for n in order), 40)
    assert (read.temperature, read.extra_temperatures) == (temperature, made.extra_temperatures)
    assert read.standardize == standardize
    for row, n in enumerate(order):
        each = examples[n]
        want = in_dtype(select(each.logits[None], each.mask[None], made), dtype)
        length = len(each.ids)
        for name in FIELDS:
            got = getattr(read, name)[row]
            got = got[:length] if name in ("log_probs", "log_normalizers", "mask") else got
            np.testing.assert_array_equal(got, getattr(want, name)[0], err_msg=name)
        assert not read.mask[row, length:].any()
        assert np.isneginf(read.log_probs[row][~read.mask[row]]).all()


@backends
def test_other_temperatures_are_limited_by_storage_alone(backend: str, tmp_path: Path) -> None:
    """A ratio of temperatures that float16 does not have is not rounded to it."""
    examples = cases(3)
    made = manifest(dtype="float16", extra_temperatures=(3.0, 2.0), vocab_size=40, k=40)
    saved = save(examples, tmp_path / "t", made)
    read = saved.batch([0, 1, 2], backend=backend)
    base = as_numpy(read.log_probs).astype(np.float64)
    for n, temperature in enumerate(made.extra_temperatures):
        got = read.at(temperature)
        assert str(got.dtype).endswith("float32")
        want = base / temperature - as_numpy(read.log_normalizers)[..., n : n + 1]
        valid = as_numpy(read.mask)
        np.testing.assert_allclose(as_numpy(got)[valid], want[valid], atol=4e-6)
        # Normalisers are precise enough for the probabilities to sum to 1 up to what log-probabilities lost.
        lost = np.abs(base[valid]).max() * 2.0**-11 / temperature
        np.testing.assert_allclose(np.exp(as_numpy(got)[valid]).sum(-1), 1, atol=lost)


def test_fewer_columns_than_saved(tmp_path: Path) -> None:
    """A saved teacher of k columns serves the loss with fewer."""
    examples = cases(4)
    saved = save(examples, tmp_path / "t", manifest(dtype="float64", k=9))
    narrow = save(examples, tmp_path / "n", manifest(dtype="float64", k=5))
    config = mlot.MultiLevelOTConfig(k=5)
    got = loss("numpy", saved.batch(range(4)), config)
    want = loss("numpy", narrow.batch(range(4)), config)
    for one, two in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, two)


def test_types_that_are_stored() -> None:
    for dtype, wide in WIDE.items():
        size = np.dtype(dtype).itemsize
        made = Manifest("t", "0", "1", vocab_size=9, k=5, dtype=dtype, extra_temperatures=(2.0, 3.0))
        assert made.bytes_per_position == 5 * size + 2 * np.dtype(wide).itemsize
