"""Damaged, cut and foreign files in the folder of a saved teacher."""

import json
import math
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mlot
from mlot.saved import (
    SavedTeacher,
    TeacherWriter,
    verify_folder,
)
from mlot.saved._pack import empty_example
from problems import as_numpy
from saved_cases import FIELDS, cases, manifest, save


def _rewritten(path: Path, **changes: object) -> None:
    """The same file with other arrays, its header as it was."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    save_file({**load_file(path), **changes}, path, metadata=header)


def _sparse(path: Path, size: int) -> None:
    """A file that says it is large, and takes next to nothing."""
    with path.open("wb") as file:
        file.write((size - 8).to_bytes(8, "little"))
        file.truncate(size)


def _stretched(path: Path, **shapes: tuple[int, ...]) -> None:
    """The same file, but with arrays of zeros of other shapes, which take no room on the disk."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, end = json.loads(content[8 : 8 + length]), 0
    arrays = load_file(path)
    for name, entry in header.items():
        if name != "__metadata__":
            entry["shape"] = list(shapes.get(name, entry["shape"]))
            size = math.prod(entry["shape"]) * arrays[name].itemsize
            entry["data_offsets"], end = [end, end + size], end + size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        file.truncate(start + end)
        for name, array in arrays.items():
            if name not in shapes:
                file.seek(start + header[name]["data_offsets"][0])
                file.write(array.tobytes())


FOREIGN = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "zeros": lambda path: path.write_bytes(b"\0" * 4096),
    "ones": lambda path: path.write_bytes(b"\xff" * 4096),
    "text": lambda path: path.write_text("These are no traces."),
    "a list for a header": lambda path: path.write_bytes((2).to_bytes(8, "little") + b"[]"),
    "other tensors": lambda path: save_file({"weight": np.zeros(3)}, path),
    "a file of traces": lambda path: mlot.select(np.zeros((1, 2, 9)), k=6).save(path),
    "another type": lambda path: _rewritten(path, log_probs=np.zeros((4, 6), np.float32)),
    "other columns": lambda path: _rewritten(path, log_probs=np.zeros((4, 5), np.float16)),
    "no keys": lambda path: _rewritten(path, keys=np.zeros((0, 16), np.uint8)),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a number for an array": lambda path: _rewritten(path, lengths=np.zeros((), np.int32)),
    "numbers for all": lambda path: _rewritten(path, **{n: np.zeros((), np.int32) for n in load_file(path)}),
    "a header without an end": lambda path: _sparse(path, 300_000_000_000),
    "nested deeply": lambda path: path.write_bytes((10**5).to_bytes(8, "little") + b"[" * 10**5),
    "an array more": lambda path: _rewritten(path, more=np.zeros(3)),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_damaged_and_foreign_files(what: str, tmp_path: Path) -> None:
    """Found on opening; the message names the file, the others are as good as before without it."""
    examples = cases(6)
    saved = save(examples, tmp_path / "t", per_shard=2)
    path = saved.folder / "00001.safetensors"
    whole = path.read_bytes()
    FOREIGN[what](path)
    with pytest.raises(
        ValueError, match=r"^folder: .*00001.safetensors' is damaged or no part of this saved"
    ):
        SavedTeacher(saved.folder)
    with pytest.raises(ValueError, match=r"00001.safetensors' is damaged"):
        TeacherWriter(saved.folder, manifest())
    found = verify_folder(saved.folder)
    assert [name for name, problem in found.items() if problem is not None] == ["00001.safetensors"]
    path.unlink()
    rest = SavedTeacher(saved.folder)
    rest.verify()
    assert rest.missing([each.key for each in examples]) == [each.key for each in examples[2:4]]
    assert save(examples, saved.folder, per_shard=2).keys == [each.key for each in examples]
    assert path.read_bytes() == whole


MANY = 3 * 10**9
#: Files of hundreds of gigabytes, of which a few kilobytes were ever written, and whose arrays fit together.
SPARSE = {
    "examples": {
        "keys": (MANY, 16),
        "lengths": (MANY,),
        "counts": (MANY,),
        "columns": (MANY, 6),
        "column_mass": (MANY, 6),
        "masks": (0,),
    }
    | {name: (0, n) for name, n in (("log_probs", 6), ("log_normalizers", 1))},
    "positions": {"log_probs": (MANY, 6), "log_normalizers": (MANY, 1)},
    "masks": {"masks": (MANY,)},
}


@pytest.mark.parametrize("what", SPARSE)
def test_no_memory_for_what_a_file_only_promises(what: str, tmp_path: Path) -> None:
    saved = save(cases(3), tmp_path / "t")
    path = saved.folder / "00000.safetensors"
    _stretched(path, **SPARSE[what])
    assert path.stat().st_size > MANY
    assert path.stat().st_blocks * 512 < 100_000
    tracemalloc.start()
    opened = SavedTeacher(saved.folder)
    for read in (lambda: opened.batch([0]), opened.verify, lambda: opened.keys, lambda: opened.lengths):
        with pytest.raises(ValueError, match=r"00000.safetensors' is damaged"):
            read()
    assert verify_folder(saved.folder)[path.name] is not None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_no_example_is_longer_than_any_model_reads(tmp_path: Path) -> None:
    """A mask of zeros takes no room, and what is read of its example would: 25 GB of these."""
    saved = save(cases(1), tmp_path / "t")
    path = saved.folder / "00000.safetensors"
    length = 2**31 - 1
    arrays = load_file(path)
    _rewritten(path, lengths=np.array([length], np.int32), counts=np.zeros(1, np.int32))
    _stretched(
        path,
        masks=(2**28,),
        **{name: (0, *arrays[name].shape[1:]) for name in ("log_probs", "log_normalizers")},
    )
    for read in (SavedTeacher(saved.folder).verify, lambda: SavedTeacher(saved.folder).batch([0])):
        with pytest.raises(ValueError, match="the sizes of its examples do not add up"):
            read()
    one = cases(1)[0]
    with pytest.raises(
        ValueError, match=f"^traces: expected at most {2**24} positions an example, got {2**24 + 1}"
    ):
        empty_example(manifest(), one.key, 2**24 + 1)


def test_a_file_of_another_saved_teacher(tmp_path: Path) -> None:
    one = save(cases(4), tmp_path / "one", per_shard=2)
    other = save(cases(2, seed=9), tmp_path / "other", manifest(model="other"))
    (one.folder / "00007.safetensors").write_bytes((other.folder / "00000.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"00007.safetensors' .*: it belongs to another saved teacher"):
        SavedTeacher(one.folder)


def test_a_copied_file_is_found(tmp_path: Path) -> None:
    saved = save(cases(4), tmp_path / "t", per_shard=2)
    (saved.folder / "00007.safetensors").write_bytes((saved.folder / "00000.safetensors").read_bytes())
    assert "it holds an example a second time" in verify_folder(saved.folder)["00007.safetensors"]
    with pytest.raises(ValueError, match="^folder: expected each example once in .*, some are there twice"):
        SavedTeacher(saved.folder).verify()


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """Flipped in the header or the content, it is found on opening or by `verify`; reading never crashes."""
    saved = save(cases(6), tmp_path / "t", per_shard=6)
    path = saved.folder / "00000.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    error = saved.storage_error
    for place in [*range(0, header, 3), *rng.integers(header, len(whole), 100).tolist(), len(whole) - 1]:
        torn = bytearray(whole)
        torn[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(torn)
        try:
            opened = SavedTeacher(saved.folder)
            opened.verify()
        except ValueError as raised:
            assert "00000.safetensors' is damaged" in str(raised)  # noqa: PT017
        else:  # the seventeenth digit of a number, which reads as the same number
            assert place < header
            assert opened.storage_error == error
        if place >= header:  # nothing of it is seen on opening
            try:
                SavedTeacher(saved.folder).batch(range(6))
            except ValueError as raised:
                assert "00000.safetensors" in str(raised)  # noqa: PT017
    path.write_bytes(whole)
    SavedTeacher(saved.folder).verify()


def test_damaged_manifests(tmp_path: Path) -> None:
    saved = save(cases(2), tmp_path / "t")
    path = saved.folder / "manifest.json"
    good = path.read_text()
    for text, message in (
        ("", "Expecting value"),
        ("[]", "expected an object, got list"),
        ("[" * 10**5, "expected JSON, got what is nested too deeply"),
        ("{}", "format: expected 'mlot.saved.1', got None"),
        (good.replace("mlot.saved.1", "mlot.saved.9"), "format: expected 'mlot.saved.1', got 'mlot.saved.9'"),
        (good.replace('"k"', '"K"'), "fields: expected"),
        (good.replace('"k": 6', '"k": -6'), "k: expected an integer >= 1, got -6"),
        (good.replace('"k": 6', '"k": "6"'), "k: expected an integer >= 1, got str '6'"),
    ):
        path.write_text(text)
        for act in (SavedTeacher, verify_folder, lambda folder: TeacherWriter(folder, manifest())):
            with pytest.raises(ValueError, match=r"manifest.json' is damaged or no manifest: ") as caught:
                act(saved.folder)
            assert message in str(caught.value)
    path.write_text(good.replace('"k": 6', '"k": 5'))  # fits itself, but not the files
    with pytest.raises(ValueError, match="it belongs to another saved teacher"):
        SavedTeacher(saved.folder)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    saved = save(cases(3), tmp_path / "t")
    (saved.folder / "notes.txt").write_text("mine")
    assert len(SavedTeacher(saved.folder)) == 3
    save(cases(5), saved.folder)
    assert (saved.folder / "notes.txt").read_text() == "mine"


def test_both_kinds_of_array_hold_the_same(tmp_path: Path) -> None:
    saved = save(cases(3), tmp_path / "t")
    one, two = saved.batch([0, 1]), saved.batch([0, 1], backend="torch")
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), as_numpy(getattr(two, name)))
