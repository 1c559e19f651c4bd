"""Writing saved teachers: what is written, and what is refused."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mlot
from mlot.saved import (
    FolderLockedError,
    SavedTeacher,
    TeacherWriter,
)
from saved_cases import cases, files_of, manifest, save, select, together


def test_equal_examples_are_saved_once(tmp_path: Path) -> None:
    examples = cases(4)
    twice = [examples[0], examples[1], examples[0], examples[2], examples[1], examples[3]]
    assert save(twice, tmp_path / "twice", per_shard=2).keys == [each.key for each in examples]
    assert files_of(tmp_path / "twice") == files_of(save(examples, tmp_path / "once", per_shard=2).folder)


def test_a_folder_can_be_continued(tmp_path: Path) -> None:
    examples = cases(7)
    save(examples[:4], tmp_path / "t", per_shard=2)
    before = files_of(tmp_path / "t")
    logits, mask, present = together(examples)
    with TeacherWriter(tmp_path / "t", manifest(mlot_version="0.0.1"), examples_per_shard=2) as writer:
        assert writer.missing([each.key for each in examples]) == [each.key for each in examples[4:]]
        assert examples[0].key in writer
        writer.add([each.key for each in examples], select(logits, mask, manifest()), present)
        assert len(writer) == 7
        assert writer.missing([each.key for each in examples]) == []
    after = files_of(tmp_path / "t")
    assert before.items() <= after.items()
    assert len(SavedTeacher(tmp_path / "t")) == 7
    assert after == files_of(save(examples, tmp_path / "at once", per_shard=2).folder)


def test_a_reader_beside_a_writer_sees_what_was_complete(tmp_path: Path) -> None:
    examples = cases(6)
    logits, mask, present = together(examples)
    traces = select(logits, mask, manifest())
    with TeacherWriter(tmp_path / "t", manifest(), examples_per_shard=4) as writer:
        writer.add([each.key for each in examples], traces, present)
        reader = SavedTeacher(tmp_path / "t")
        assert len(reader) == 4
    assert len(reader) == 4
    assert len(SavedTeacher(tmp_path / "t")) == 6
    assert reader.batch([3]).shape[0] == 1


def test_an_exception_keeps_complete_files_alone(tmp_path: Path) -> None:
    examples = cases(5)
    logits, mask, present = together(examples)
    writer = TeacherWriter(tmp_path / "t", manifest(), examples_per_shard=2)

    def interrupted() -> None:
        with writer:
            writer.add([each.key for each in examples], select(logits, mask, manifest()), present)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(SavedTeacher(tmp_path / "t")) == 4
    with pytest.raises(ValueError, match="^writer: expected one that is open"):
        writer.add([examples[0].key], select(logits[:1], mask[:1], manifest()))
    writer.close()


def test_a_failing_disk_loses_nothing_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    examples = cases(4)
    logits, mask, present = together(examples)
    traces, keys = select(logits, mask, manifest()), [each.key for each in examples]
    synced = os.fsync

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with TeacherWriter(tmp_path / "t", manifest(), examples_per_shard=2) as writer:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            writer.add(keys, traces, present)
        assert sorted(files_of(tmp_path / "t")) == ["manifest.json"]
        monkeypatch.setattr(os, "fsync", synced)
        writer.add(keys, traces, present)
    assert files_of(tmp_path / "t") == files_of(save(examples, tmp_path / "good", per_shard=2).folder)


def test_what_a_writer_refuses(tmp_path: Path) -> None:
    examples = cases(3)
    logits, mask, present = together(examples)
    traces, keys = select(logits, mask, manifest()), [each.key for each in examples]
    nan = replace(traces, log_probs=np.where(traces.mask[..., None], np.nan, traces.log_probs))
    with TeacherWriter(tmp_path / "t", manifest()) as writer:
        for arguments, error, message in (
            ((keys[:2], traces), ValueError, "^keys: expected 3, one for each example of traces, got 2"),
            ((["x"] * 3, traces), ValueError, "^keys: expected 32 hexadecimal digits, got 'x'"),
            ((keys[0], traces), TypeError, "^keys: expected several keys, got one string"),
            ((keys, logits), TypeError, "^traces: expected Traces"),
            ((keys, nan, present), ValueError, "^traces: expected log-probabilities, got NaN"),
            ((keys, traces, present[:2]), ValueError, r"^attention_mask: expected shape"),
            ((keys, traces, present * 0.5), TypeError, "^attention_mask: expected booleans or integers"),
            ((keys, traces, present & False), ValueError, "^attention_mask: expected valid positions"),
            ((keys, mlot.select(logits, mask, k=5)), ValueError, "^traces: expected k=6, as the manifest"),
            ((keys, select(logits[..., :39], mask, manifest())), ValueError, "expected vocab_size=40"),
            (
                (keys, mlot.select(logits, mask, k=6, temperature=2.0)),
                ValueError,
                "expected temperature=1.0, as the manifest says, got 2.0",
            ),
            (
                (keys, mlot.select(logits, mask, k=6, extra_temperatures=())),
                ValueError,
                r"expected extra_temperatures=\(2.0,\), as the manifest says, got \(\)",
            ),
            ((keys, mlot.select(logits, mask, k=6, standardize=True)), ValueError, "standardize=False"),
        ):
            with pytest.raises(error, match=message):
                writer.add(*arguments)
        assert len(writer) == 0
    assert sorted(files_of(tmp_path / "t")) == ["manifest.json"]
    with pytest.raises(TypeError, match="^manifest: expected a Manifest, got dict"):
        TeacherWriter(tmp_path / "u", {})
    with pytest.raises(ValueError, match="^examples_per_shard: expected an integer >= 1, got 0"):
        TeacherWriter(tmp_path / "u", manifest(), examples_per_shard=0)
    assert not (tmp_path / "u").exists()


def test_folders_that_are_something_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="^folder: expected a folder, but .*file' is a file"):
        TeacherWriter(tmp_path / "file", manifest())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("x")
    with pytest.raises(ValueError, match=r"^folder: expected a folder that is new, .* holds precious.txt"):
        TeacherWriter(tmp_path / "full", manifest())
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["precious.txt"]
    for folder in (tmp_path / "none", tmp_path / "full"):
        with pytest.raises(FileNotFoundError, match=r"^folder: expected a saved teacher, found no manifest"):
            SavedTeacher(folder)


@pytest.mark.parametrize("missing", ["safetensors", "filelock"])
def test_without_what_writing_needs(missing: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules[sys.argv[1]] = None\n"
        "from mlot.saved import Manifest, TeacherWriter\n"
        "try: TeacherWriter(sys.argv[2], Manifest('a', 'b', 'c', vocab_size=9, k=3))\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, missing, str(tmp_path / "t")], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("folder: ")
    assert f'{missing}, which is not installed; pip install "mlot[io]"' in done.stdout
    assert not (tmp_path / "t").exists()


def test_two_writers(tmp_path: Path) -> None:
    with TeacherWriter(tmp_path / "t", manifest()):
        with pytest.raises(FolderLockedError, match="^folder: another writer has .* open"):
            TeacherWriter(tmp_path / "t", manifest())
        code = (
            "import sys\n"
            "sys.path.insert(0, 'tests/support')\n"
            "from saved_cases import manifest\n"
            "from mlot.saved import TeacherWriter\n"
            "TeacherWriter(sys.argv[1], manifest())\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "t")], capture_output=True, text=True
        )
        assert "FolderLockedError" in done.stderr
    TeacherWriter(tmp_path / "t", manifest()).close()
