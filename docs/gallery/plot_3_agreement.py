r"""
Agreement with POT
==================

Numbers of this library are held against independent solvers by its tests and by
``python -m mlot.verify``. This page does so where one can see it: two hundred
random problems, Sinkhorn by `ot.sinkhorn` and exact transport by `ot.emd2` on one
side, both backends on the other.
"""

import matplotlib.pyplot as plt
import numpy as np
import ot
import torch

import mlot

rng = np.random.default_rng(0)
problems = []
for _ in range(200):
    rows, columns = rng.integers(2, 30, size=2)
    weights = [rng.dirichlet(np.full(size, 2.0)) for size in (rows, columns)]
    problems.append(
        (
            rng.uniform(0, 2, size=(rows, columns)),
            *weights,
            float(rng.choice([0.05, 0.1, 0.5])),
        )
    )

# %%
# Sinkhorn
# --------
#
# POT's ``sinkhorn`` does columns before rows; on the transposed cost that is rows
# before columns, so that both make the same 20 rounds. Compared is :math:`\langle
# P, C\rangle` after them.


def relative(ours, theirs):
    return abs(float(ours) - theirs) / max(abs(theirs), 1e-300)


errors = {"numpy, float64": [], "torch, float64": [], "torch, float32": []}
for cost, a, b, epsilon in problems:
    theirs = ot.sinkhorn(
        b, a, cost.T, reg=epsilon, numItermax=20, stopThr=0, warn=False
    ).T
    value = float((theirs * cost).sum())
    tensors = [torch.from_numpy(array) for array in (cost, a, b)]
    errors["numpy, float64"].append(
        relative(mlot.sinkhorn(cost, a, b, epsilon=epsilon).value, value)
    )
    errors["torch, float64"].append(
        relative(mlot.sinkhorn(*tensors, epsilon=epsilon).value, value)
    )
    single = [tensor.float() for tensor in tensors]
    errors["torch, float32"].append(
        relative(mlot.sinkhorn(*single, epsilon=epsilon).value, value)
    )

# %%
# Exact transport
# ---------------

exact = {"numpy, float64": [], "torch, float64": []}
for cost, a, b, _ in problems:
    value = ot.emd2(a, b, cost)
    tensors = [torch.from_numpy(array) for array in (cost, a, b)]
    exact["numpy, float64"].append(relative(mlot.emd(cost, a, b).value, value))
    exact["torch, float64"].append(relative(mlot.emd(*tensors).value, value))

# %%
# Differences
# -----------
#
# Those of Sinkhorn, on a logarithmic axis, on which 0 is drawn at :math:`10^{-17}`:

figure, axis = plt.subplots()
bins = np.geomspace(1e-17, 1e-5, 49)
for name, values in errors.items():
    axis.hist(
        np.maximum(values, 1e-17), bins=bins, alpha=0.75, label=f"Sinkhorn, {name}"
    )
axis.set(xscale="log", xlabel="relative difference from POT", ylabel="problems")
axis.legend()
# sphinx_gallery_start_ignore
figure.set_label(
    "Histogram of relative differences from POT over 200 random problems, on "
    "a logarithmic axis: both float64 backends lie near 1e-16, the float32 "
    "one near 1e-7."
)
# sphinx_gallery_end_ignore

# %%
# The worst of each:

for name, values in errors.items():
    print(f"Sinkhorn, {name}: {max(values):.1e}")
for name, values in exact.items():
    print(f"exact transport, {name}: {max(values):.1e}")
