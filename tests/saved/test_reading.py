"""Reading saved teachers: batches, sizes, workers."""

import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mlot
from mlot.saved import (
    Manifest,
    SavedTeacher,
    TeacherWriter,
    example_key,
    verify_folder,
)
from saved_cases import FIELDS, cases, files_of, manifest, read_log_probs, save, select


def test_what_a_saved_teacher_tells(tmp_path: Path) -> None:
    examples = cases(8)
    saved = save(examples, tmp_path / "t", per_shard=3)
    assert len(saved) == 8
    assert saved.keys == list(saved) == [each.key for each in examples]
    assert saved.lengths.tolist() == [len(each.ids) for each in examples]
    assert saved.positions == sum(int(each.mask.sum()) for each in examples)
    assert sorted(files_of(saved.folder)) == [*(f"0000{n}.safetensors" for n in range(3)), "manifest.json"]
    assert saved.nbytes == sum(len(data) for name, data in files_of(saved.folder).items() if name[0] == "0")
    other = cases(2, seed=77)
    assert examples[3].key in saved
    assert other[0].key not in saved
    assert "nonsense" not in saved
    assert 3 not in saved
    asked = [other[0].key, examples[1].key, other[1].key, other[0].key]
    assert saved.missing(asked) == [other[0].key, other[1].key]
    assert "8 examples" in repr(saved)
    saved.verify()
    assert set(verify_folder(saved.folder).values()) == {None}


def test_bytes_per_token(tmp_path: Path) -> None:
    """50 columns in float16: at most 220 bytes for each token, the headers of the files included."""
    rng = np.random.default_rng(0)
    made = Manifest("teacher", "0f", "a1", vocab_size=60, k=50)
    assert (made.bytes_per_position, made.bytes_per_example) == (104, 424)
    for length, per_token in ((4, 220), (32, 120), (128, 109), (512, 106)):
        count = 64
        folder = tmp_path / str(length)
        with TeacherWriter(folder, made) as writer:
            logits = rng.normal(size=(count, length, 60)).astype(np.float32)
            traces = select(torch.from_numpy(logits), None, made)
            writer.add([example_key(rng.integers(0, 60, length)) for _ in range(count)], traces)
        saved = SavedTeacher(folder)
        masks = count * -(-length // 8)
        content = saved.positions * made.bytes_per_position + count * made.bytes_per_example + masks
        assert content < saved.nbytes < content + 2000
        assert saved.bytes_per_token == saved.nbytes / (count * length) <= per_token
    assert np.isnan(save([cases(4)[3]], tmp_path / "empty").bytes_per_token)


def test_padding_and_order(tmp_path: Path) -> None:
    examples = cases(6)
    saved = save(examples, tmp_path / "t")
    one = saved.batch([2, 0, 2])
    for name in FIELDS:
        values = getattr(one, name)
        np.testing.assert_array_equal(values[0], values[2])
    longest = max(len(examples[n].ids) for n in (2, 0))
    assert one.shape == (3, longest, 40)
    assert saved.batch([2, 0, 2], length=longest + 4).shape == (3, longest + 4, 40)
    assert saved.batch(np.array([1, 0])).shape[0] == 2
    assert saved.batch(range(2)).shape[0] == 2
    assert saved.batch(torch.tensor([1, 0])).shape[0] == 2
    assert saved.batch(np.array([examples[0].key])).shape[0] == 1
    empty = saved.batch([])
    assert (empty.shape, empty.k) == ((0, 0, 40), 6)
    assert saved.batch([3], length=0).shape == (1, 0, 40)
    on_meta = saved.batch([0], backend="torch", device="meta")
    assert all(getattr(on_meta, name).device.type == "meta" for name in FIELDS)


def test_nothing_saved_yet(tmp_path: Path) -> None:
    TeacherWriter(tmp_path / "t", manifest()).close()
    saved = SavedTeacher(tmp_path / "t")
    assert (len(saved), saved.keys, saved.positions, saved.lengths.tolist()) == (0, [], 0, [])
    assert saved.missing([]) == []
    key = cases(1)[0].key
    assert saved.missing([key]) == [key]
    assert saved.batch([]).shape == (0, 0, 40)
    assert saved.storage_error.positions == 0
    saved.verify()
    assert verify_folder(saved.folder) == {}
    with pytest.raises(ValueError, match="^examples: expected saved ones, but 1 of 1 keys are not in"):
        saved.batch([key])
    with pytest.raises(ValueError, match="^examples: expected indices >= 0 and < 0, got 0"):
        saved.batch([0])


def test_what_a_batch_refuses(tmp_path: Path) -> None:
    examples, other = cases(3), cases(1, seed=50)
    saved = save(examples, tmp_path / "t")
    key = examples[0].key
    for asked, error, message in (
        (key, TypeError, "^examples: expected a sequence of keys or indices, got str"),
        (3, TypeError, "^examples: expected a sequence of keys or indices, got int"),
        ([key, other[0].key], ValueError, "^examples: expected saved ones, but 1 of 2 keys are not in"),
        ([key, 1], TypeError, "^examples: expected keys as example_key makes them, got int"),
        (["abc"], ValueError, "^examples: expected 32 hexadecimal digits, got 'abc'"),
        ([key.upper()], ValueError, "^examples: expected 32 hexadecimal digits"),
        ([0, 3], ValueError, "^examples: expected indices >= 0 and < 3, got 3"),
        ([-1], ValueError, "^examples: expected indices >= 0 and < 3, got -1"),
        ([0.5], TypeError, "^examples: expected keys or integers, got float64"),
        ([[0]], ValueError, r"^examples: expected a sequence of keys or indices, got shape \(1, 1\)"),
    ):
        with pytest.raises(error, match=message):
            saved.batch(asked)
    with pytest.raises(ValueError, match=r"^length: expected at least \d+, as the longest example, got 0"):
        saved.batch([0], length=0)
    with pytest.raises(ValueError, match="^backend: expected one of"):
        saved.batch([0], backend="jax")
    with pytest.raises(ValueError, match="^device: the numpy backend has only 'cpu'"):
        saved.batch([0], device="cuda")


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers(start: str, tmp_path: Path) -> None:
    """Objects go to other processes, with files already mapped or not."""
    examples = cases(5)
    saved = save(examples, tmp_path / "t", per_shard=2)
    want = saved.batch([4]).log_probs
    copy = pickle.loads(pickle.dumps(saved))
    assert copy.keys == saved.keys
    assert copy.manifest == saved.manifest
    if start == "fork":  # through a DataLoader, as in training
        loader = torch.utils.data.DataLoader(
            range(5),
            batch_size=2,
            num_workers=1,
            collate_fn=_Collate(saved),
            multiprocessing_context="fork",
        )
        found = [traces.log_probs for traces in loader]
        assert torch.equal(found[2], torch.from_numpy(want))
        return
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        got = pool.apply(read_log_probs, (saved, examples[4].key))
    np.testing.assert_array_equal(got, want)


class _Collate:
    def __init__(self, saved: SavedTeacher) -> None:
        self.saved = saved

    def __call__(self, indices: list[int]) -> mlot.Traces:
        return self.saved.batch(indices, backend="torch")


def test_only_what_is_asked_for_is_mapped(tmp_path: Path) -> None:
    saved = save(cases(9), tmp_path / "t", per_shard=3)
    saved.batch([7])
    assert sorted(saved._open) == [2]


def test_reading_needs_numpy_alone(tmp_path: Path) -> None:
    saved = save(cases(4), tmp_path / "t")
    code = (
        "import sys\n"
        "import mlot.saved\n"
        "from mlot.saved import SavedTeacher\n"
        "saved = SavedTeacher(sys.argv[1])\n"
        "print(saved.batch([0, 1]), len(saved.keys), saved.storage_error.positions > 0)\n"
        "saved.verify()\n"
        "loaded = {'torch', 'transformers', 'tokenizers', 'safetensors', 'rich', 'filelock'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, str(saved.folder)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
