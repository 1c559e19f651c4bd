"""Readers of what others wrote read it or say what was wrong: a second of what `make fuzz` does for longer."""

import pytest

pytest.importorskip("transformers")

import fuzz


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_changed_bytes_are_read_or_refused_by_name(name: str) -> None:
    assert fuzz.fuzz(name, seconds=1.0, seed=1) > 0


@pytest.mark.parametrize("error", [KeyError("a"), ValueError("'NoneType' object is not subscriptable")])
def test_an_error_that_names_nothing_is_found(error: Exception, tmp_path) -> None:
    def read(data: bytes, place: object) -> None:
        raise error

    with pytest.raises(AssertionError, match="an error (of another kind|that names nothing)"):
        fuzz._try(fuzz.Target([b""], read), b"", tmp_path)
