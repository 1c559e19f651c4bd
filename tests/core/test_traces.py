"""Traces: temperatures, and files of them."""

import json
import math
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

import mlot
from problems import BACKENDS, as_numpy, make_problem

backends = pytest.mark.parametrize("backend", BACKENDS)
FIELDS = ("columns", "log_probs", "log_normalizers", "column_mass", "mask")


def traces_of(backend: str, k: int = 6) -> mlot.Traces:
    problem = make_problem(1, masks="gaps").to(backend)
    return mlot.select(problem.teacher, problem.teacher_mask, k=k, extra_temperatures=(2.0, 0.5))


@backends
def test_every_temperature_comes_from_one_trace(backend: str) -> None:
    problem = make_problem(0)
    traces = mlot.select(
        problem.to(backend).teacher, k=5, temperature=1.5, extra_temperatures=(2.0, 0.7, 40.0)
    )
    for temperature in (1.5, 2.0, 0.7, 40.0):
        z = problem.teacher / temperature
        probs = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        want = np.take_along_axis(probs, as_numpy(traces.columns)[:, None, :], axis=2)
        np.testing.assert_allclose(np.exp(as_numpy(traces.at(temperature))), want, rtol=1e-12)
    with pytest.raises(ValueError, match=r"^temperature: expected one that the traces were selected for"):
        traces.at(3.0)


@backends
def test_columns_are_in_order_of_mass(backend: str) -> None:
    traces = traces_of(backend)
    mass = as_numpy(traces.column_mass)
    assert (np.diff(mass, axis=1) <= 0).all()
    probs = np.exp(as_numpy(traces.log_probs))
    np.testing.assert_allclose(probs.sum(1), mass, rtol=1e-12)
    assert (probs[~as_numpy(traces.mask)] == 0).all()


@backends
def test_ties_go_to_the_lower_index(backend: str) -> None:
    logits = np.zeros((1, 3, 7))
    logits[..., 4] = 1.0
    source = torch.from_numpy(logits) if backend == "torch" else logits
    for dtype in (torch.float64, torch.float32, torch.bfloat16) if backend == "torch" else (None,):
        x = source if dtype is None else source.to(dtype)
        np.testing.assert_array_equal(as_numpy(mlot.select(x, k=4).columns), [[4, 0, 1, 2]])


@backends
def test_fewer_columns_of_traces(backend: str) -> None:
    wide, narrow = traces_of(backend, 6), traces_of(backend, 4)
    cut = mlot.select(wide, k=4, extra_temperatures=(2.0,))
    for name in FIELDS:
        np.testing.assert_array_equal(as_numpy(getattr(cut, name)), as_numpy(getattr(narrow, name)))
    assert mlot.select(wide, k=6) is wide


@backends
def test_a_file_gives_back_what_was_saved(backend: str, tmp_path: Path) -> None:
    traces = traces_of(backend)
    traces.save(tmp_path / "teacher.safetensors")
    loaded = mlot.Traces.load(tmp_path / "teacher.safetensors")
    for name in FIELDS:
        want, got = getattr(traces, name), getattr(loaded, name)
        assert type(got) is type(want)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(as_numpy(got), as_numpy(want))
    for name in ("vocab_size", "temperature", "extra_temperatures", "standardize", "shape", "k"):
        assert getattr(loaded, name) == getattr(traces, name)
    assert [p.name for p in tmp_path.iterdir()] == ["teacher.safetensors"]  # no temporary file is left


def test_a_file_can_be_read_by_the_other_backend(tmp_path: Path) -> None:
    traces_of("torch").save(tmp_path / "t")
    assert isinstance(mlot.Traces.load(tmp_path / "t", backend="numpy").log_probs, np.ndarray)
    traces_of("numpy").save(tmp_path / "n")
    assert isinstance(mlot.Traces.load(tmp_path / "n", backend="torch").log_probs, torch.Tensor)
    assert mlot.Traces.load(tmp_path / "n", backend="torch", device="meta").log_probs.device.type == "meta"
    with pytest.raises(ValueError, match=r"^device: the numpy backend has only 'cpu', got 'cuda'"):
        mlot.Traces.load(tmp_path / "n", device="cuda")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_smaller_storage(dtype: str, tmp_path: Path) -> None:
    """The loss from traces stored in a smaller type is off by no more than the rounding of that type."""
    problem = make_problem(1)
    traces = mlot.select(problem.teacher, k=10)
    traces.save(tmp_path / "t", dtype=dtype)
    loaded = mlot.Traces.load(tmp_path / "t")
    assert loaded.log_probs.dtype == np.dtype(dtype)
    assert loaded.log_normalizers.dtype == np.dtype(dtype)
    config = mlot.MultiLevelOTConfig(k=10)
    want = mlot.multi_level_ot(problem.student, traces, config=config).loss
    got = mlot.multi_level_ot(problem.student, loaded, config=config).loss
    assert got != want
    # A log-probability of size up to 16 is off by 16 eps / 2, a probability by that share of itself.
    np.testing.assert_allclose(got, want, rtol=8 * np.finfo(dtype).eps)


def test_gradients_are_left_behind(tmp_path: Path) -> None:
    p = make_problem(0).to("torch")
    traces = mlot.select(p.teacher.requires_grad_(), k=3)
    assert traces.log_probs.requires_grad
    traces.save(tmp_path / "t")
    assert not mlot.Traces.load(tmp_path / "t").log_probs.requires_grad


def _header(path: Path) -> dict:
    content = path.read_bytes()
    return json.loads(
        json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["mlot"]
    )


def _saved(tmp_path: Path) -> Path:
    path = tmp_path / "teacher"
    traces_of("numpy").save(path)
    return path


DAMAGE = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "cut by a byte": lambda content: content[:-1],
    "header overwritten": lambda content: b"\xff" * 16 + content[16:],
    "text": lambda content: b"These are no traces.",
    "another safetensors file": lambda content: save({"weight": np.zeros(3)}),
    "another safetensors file with notes": lambda content: save({"weight": np.zeros(3)}, {"format": "pt"}),
    "a later format": lambda content: content.replace(b"mlot.traces.2", b"mlot.traces.9"),
    "a field missing": lambda content: content.replace(b'"column_mass"', b'"column_mess"'),
    "sizes that contradict": lambda content: content + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_and_foreign_files(damage: str, tmp_path: Path) -> None:
    path = _saved(tmp_path)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(ValueError, match=r"^path: .*teacher' is damaged or no file of traces: "):
        mlot.Traces.load(path)


def test_arrays_that_do_not_fit_together(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    header = {"mlot": json.dumps(_header(path))}
    traces = traces_of("numpy")
    good = {name: np.ascontiguousarray(getattr(traces, name)) for name in FIELDS}
    wrong = {
        "columns": good["columns"][:1],
        "log_probs": good["log_probs"][:, :, :2],
        "log_normalizers": good["log_normalizers"][:, :, :1],
        "column_mass": good["column_mass"][:, :2],
        "mask": good["mask"].astype(np.uint8),
    }
    for name, value in wrong.items():
        path.write_bytes(save({**good, name: np.ascontiguousarray(value)}, header))
        with pytest.raises(ValueError, match=r"^path: .*(expected shape|unexpected type)"):
            mlot.Traces.load(path)
    path.write_bytes(save({**good, "columns": good["columns"] + 31}, header))
    with pytest.raises(ValueError, match=r"columns: expected 0 to 30"):
        mlot.Traces.load(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^path: expected a file of traces, found none at"):
        mlot.Traces.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"^path: expected a file in an existing folder, got"):
        traces_of("numpy").save(tmp_path / "no" / "folder")
    with pytest.raises(
        ValueError, match=r"^dtype: expected one of \('float16', 'float32', 'float64'\) or None"
    ):
        traces_of("numpy").save(tmp_path / "t", dtype="int8")
    with pytest.raises(ValueError, match="^backend: expected one of"):
        mlot.Traces.load(_saved(tmp_path), backend="jax")


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _saved(tmp_path)
    before = path.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        traces_of("numpy", k=3).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_files_are_as_readable_as_others(tmp_path: Path) -> None:
    """The permissions of a new file are those that the process gives to files."""
    (tmp_path / "other").write_bytes(b"")
    assert _saved(tmp_path).stat().st_mode == (tmp_path / "other").stat().st_mode


@backends
def test_temperatures_of_narrow_traces(backend: str, tmp_path: Path) -> None:
    """A ratio of temperatures that float16 does not have is not rounded to it."""
    traces = traces_of(backend)
    traces.save(tmp_path / "t", dtype="float16")
    narrow = mlot.Traces.load(tmp_path / "t")
    mixed = mlot.Traces(
        narrow.columns,
        narrow.log_probs,
        traces.log_normalizers,
        narrow.column_mass,
        narrow.mask,
        31,
        3.0,
        (2.0,),
    )
    got = mixed.at(2.0)
    assert got.dtype == traces.log_normalizers.dtype
    want = 1.5 * as_numpy(narrow.log_probs).astype(float) - as_numpy(traces.log_normalizers)[..., :1]
    np.testing.assert_array_equal(as_numpy(got), want)


def test_without_safetensors(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['safetensors'] = None\n"
        "import numpy as np, mlot\n"
        "traces = mlot.select(np.zeros((1, 2, 3)), k=2)\n"
        "for call in (lambda: traces.save(sys.argv[1]), lambda: mlot.Traces.load(sys.argv[1])):\n"
        "    try: call()\n"
        "    except ImportError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "t")], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("safetensors" in line and 'pip install "mlot[io]"' in line for line in lines)
    assert not list(tmp_path.iterdir())


def test_no_changed_byte_is_read_as_something_else(tmp_path: Path) -> None:
    """A change of any byte is refused, or was one of white space."""
    path = _saved(tmp_path)
    content, good = path.read_bytes(), traces_of("numpy")
    rng = np.random.default_rng(0)
    for at in rng.integers(len(content), size=300).tolist():
        path.write_bytes(content[:at] + bytes([content[at] ^ int(rng.integers(1, 256))]) + content[at + 1 :])
        try:
            read = mlot.Traces.load(path)
        except ValueError:
            continue
        assert repr(read) == repr(good)
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(read, name), getattr(good, name))


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": float("nan")},
        {"temperature": -1.0},
        {"vocab_size": 1e30},
        {"vocab_size": True},
        {"extra_temperatures": [[[2.0]]]},
        {"standardize": "no"},
    ],
)
def test_a_header_is_checked(change: dict, tmp_path: Path) -> None:
    path = _saved(tmp_path)
    header = _header(path) | change
    good = {name: np.ascontiguousarray(getattr(traces_of("numpy"), name)) for name in FIELDS}
    path.write_bytes(save(good, {"mlot": json.dumps(header)}))
    with pytest.raises(ValueError, match=r"^path: .*teacher' is damaged or no file of traces: "):
        mlot.Traces.load(path)


def test_nesting_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "teacher"
    text = b"[" * 200_000
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match="nested too deeply"):
        mlot.Traces.load(path)


def test_a_file_that_says_it_is_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "teacher"
    with path.open("wb") as file:
        file.write((300_000_000_000 - 8).to_bytes(8, "little"))
        file.truncate(300_000_000_000)
    with pytest.raises(ValueError, match="header: expected at most"):
        mlot.Traces.load(path)


def test_no_memory_for_what_a_file_only_promises(tmp_path: Path) -> None:
    """Arrays that fit together, but were never written: zeros that take no room on the disk."""
    path = tmp_path / "t"
    traces_of("numpy").save(path)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    batch, end = 10**6, 0
    for name in FIELDS:
        array = np.asarray(getattr(traces_of("numpy"), name))
        shape = (batch, *array.shape[1:])
        size = math.prod(shape) * array.itemsize
        header[name] |= {"shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    assert path.stat().st_blocks * 512 < 100_000
    tracemalloc.start()
    with pytest.raises(ValueError, match="digest: expected that of what was written"):
        mlot.Traces.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20 < path.stat().st_size / 100
