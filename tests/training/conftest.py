"""Fixtures that tests of several files share."""

import warnings
from typing import Any

import pytest


@pytest.fixture(scope="module")
def gold() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.gold import gold_trainer
    return gold_trainer
