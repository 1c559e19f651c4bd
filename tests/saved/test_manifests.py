"""Manifests: what is compared, and how a mismatch is told."""

from dataclasses import replace
from pathlib import Path

import pytest

import mlot
from mlot.saved import (
    Manifest,
    SavedTeacher,
    TeacherWriter,
)
from saved_cases import cases, files_of, manifest, save


def test_a_manifest_survives_its_file() -> None:
    made = manifest(
        revision="main", extra_temperatures=[2, 0.1, 1.0], settings={"b": 1, "a": None, "c": "x", "d": True}
    )
    assert Manifest.from_json(made.to_json()) == made
    assert made.extra_temperatures == (2.0, 0.1)  # that of the log-probabilities needs no normaliser
    assert made.digest == Manifest.from_json(made.to_json()).digest
    assert made.digest == manifest(**{**made.as_dict(), "mlot_version": "9"}).digest
    for name, value in (("k", 5), ("model", "b"), ("settings", {"b": 2}), ("revision", None)):
        assert manifest(**{**made.as_dict(), name: value}).digest != made.digest


def test_what_is_expected(tmp_path: Path) -> None:
    """A mismatch names every field that differs, with both values."""
    made = manifest(settings={"computed_in": "float32"})
    saved = save(cases(2), tmp_path / "t", made)
    SavedTeacher(tmp_path / "t", expect=made)
    SavedTeacher(tmp_path / "t", expect=replace(made, mlot_version="9.9.9"))
    SavedTeacher(tmp_path / "t", expect={"k": 6, "extra_temperatures": [2.0], "settings": {}})
    other = replace(
        made, tokenizer_fingerprint="b2", k=5, dtype="float32", settings={"computed_in": "bfloat16", "x": 1}
    )
    with pytest.raises(ValueError) as caught:
        SavedTeacher(tmp_path / "t", expect=other)
    assert str(caught.value) == (
        f"folder: the teacher saved in {str(saved.folder)!r} is another one: "
        "tokenizer_fingerprint: expected 'b2', it has 'a1'; k: expected 5, it has 6; "
        "dtype: expected 'float32', it has 'float16'; "
        "settings['computed_in']: expected 'bfloat16', it has 'float32'; "
        "settings['x']: expected 1, it has None"
    )
    before = files_of(tmp_path / "t")
    with pytest.raises(ValueError, match="k: expected 5, it has 6; dtype: expected"):
        TeacherWriter(tmp_path / "t", other)
    assert files_of(tmp_path / "t") == before
    with pytest.raises(ValueError, match="model: expected 'b', it has 'teacher'"):
        SavedTeacher(tmp_path / "t", expect={"model": "b"})
    with pytest.raises(ValueError, match=r"^expect: expected fields of a Manifest .* got 'tokens'"):
        SavedTeacher(tmp_path / "t", expect={"tokens": "b"})
    with pytest.raises(TypeError, match="^expect: expected a Manifest or a mapping, got str"):
        SavedTeacher(tmp_path / "t", expect="teacher")


def test_whether_a_loss_can_be_served() -> None:
    made = manifest()
    made.serves(mlot.MultiLevelOTConfig(k=6))
    manifest(k=40).serves(mlot.MultiLevelOTConfig(k=50))
    manifest(k=40).serves(mlot.MultiLevelOTConfig(k=None, matching="rank"))
    made.serves(mlot.MultiLevelOTConfig(k=3, sequence_temperature=1.0))
    for settings, message in (
        ({"k": 7}, "^k: expected a teacher saved with at least 7 columns, it has 6"),
        ({"k": None, "matching": "rank"}, "^k: expected a teacher saved with at least 40 columns, it has 6"),
        ({"k": 6, "temperature": 0.5}, "^temperature: expected a teacher saved at 0.5, got 1.0"),
        ({"k": 6, "sequence_temperature": 3.0}, "^sequence_temperature: .* serves 3.0, it serves 1.0, 2.0"),
        ({"k": 6, "standardize": True}, "^standardize: expected a teacher saved with True, got False"),
    ):
        with pytest.raises(ValueError, match=message):
            made.serves(mlot.MultiLevelOTConfig(**settings))
    standardized = manifest(standardize=True)
    standardized.serves(mlot.MultiLevelOTConfig(k=6, standardize=True))
    with pytest.raises(ValueError, match="^standardize: expected a teacher saved with False, got True"):
        standardized.serves(mlot.MultiLevelOTConfig(k=6))


def test_what_a_manifest_refuses() -> None:
    for changes, error, message in (
        ({"model": 3}, TypeError, "^model: expected a string, got int"),
        ({"revision": 3}, TypeError, "^revision: expected a string or None, got int"),
        ({"k": 0}, ValueError, "^k: expected an integer >= 1, got 0"),
        ({"k": 41}, ValueError, "^k: expected at most vocab_size, 40, got 41"),
        ({"dtype": "int8"}, ValueError, "^dtype: expected one of"),
        ({"temperature": 0.0}, ValueError, "^temperature: expected a finite number > 0"),
        ({"extra_temperatures": 2.0}, TypeError, "^extra_temperatures: expected a tuple"),
        ({"standardize": 1}, TypeError, "^standardize: expected True or False"),
        ({"settings": [1]}, TypeError, "^settings: expected a mapping"),
        ({"settings": {"a": [1]}}, TypeError, "^settings: expected strings, finite numbers"),
        ({"settings": {"a": float("nan")}}, TypeError, "^settings: expected strings, finite numbers"),
    ):
        with pytest.raises(error, match=message):
            manifest(**changes)
