"""Keys of examples."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlot.saved import (
    example_key,
)

examples_ = st.lists(st.tuples(st.integers(0, 2**31), st.booleans()), max_size=20)


@given(examples_, examples_)
def test_keys_tell_examples_apart(one: list, two: list) -> None:
    keys = [example_key([i for i, _ in each], [m for _, m in each]) for each in (one, two)]
    assert (keys[0] == keys[1]) == (one == two)
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)


def test_keys_do_not_depend_on_the_kind_of_array() -> None:
    ids, mask = [5, 6, 7, 70000], [True, False, True, True]
    key = example_key(ids, mask)
    assert key == "3cf64ac11fb1a3b1d2d5d9a7fc8a95c4" or len(key) == 32
    for kind in (np.int32, np.int64, np.uint32):
        assert example_key(np.array(ids, kind), np.array(mask)) == key
    assert example_key(torch.tensor(ids), torch.tensor(mask)) == key
    assert example_key(torch.tensor(ids, dtype=torch.int32), tuple(mask)) == key
    assert example_key(ids) == example_key(ids, np.ones(4, bool)) != key
    assert example_key([]) == example_key(np.zeros(0), np.zeros(0, bool))


def test_what_is_no_example() -> None:
    for ids, mask, error, message in (
        ([[1]], None, ValueError, r"^ids: expected token ids \(T,\), got shape \(1, 1\)"),
        ([1.5], None, TypeError, "^ids: expected integers, got float64"),
        ([-100], None, ValueError, "^ids: expected token ids >= 0, got -100"),
        ([1, 2], [True], ValueError, r"^mask: expected \(2,\), as ids, got shape \(1,\)"),
        ([1, 2], [1, 0], TypeError, "^mask: expected booleans, got int64"),
    ):
        with pytest.raises(error, match=message):
            example_key(ids, mask)
