"""Arguments that the tests of errors start from."""

from types import SimpleNamespace

import numpy as np
import torch


def arrays(backend: str) -> SimpleNamespace:
    rng = np.random.default_rng(0)
    made = {
        "student": rng.normal(size=(2, 4, 9)),
        "teacher": rng.normal(size=(2, 5, 11)),
        "student_mask": np.ones((2, 4), dtype=bool),
        "teacher_mask": np.ones((2, 5), dtype=bool),
        "pairs": np.zeros((2, 1, 2), dtype=int),
        "integers": np.zeros((2, 4, 9), dtype=int),
        "complex": np.zeros((2, 4, 9), dtype=complex),
        "cost": rng.uniform(size=(3, 4)),
    }
    if backend == "torch":
        made = {name: torch.from_numpy(value) for name, value in made.items()}
    return SimpleNamespace(**made)
