r"""
A plan against its regularisation
=================================

`mlot.sinkhorn` starts from the kernel :math:`K^0 = e^{-C/\lambda}` and scales its
rows and columns :math:`N` times. The smaller :math:`\lambda`, the nearer the plan
is to the exact one, and the more rounds it takes.

The cost here is that of the loss: two sequences of predictions, :math:`T_t = 14`
and :math:`T_s = 18` positions, that drift from one token to the next at different
speeds, compared by :math:`C_{ij} = \sum_l |t_l(i) - s_l(j)|`.
"""

import matplotlib.pyplot as plt
import numpy as np

import mlot


def drifting_logits(positions, vocabulary=24, seed=0):
    """Logits whose heaviest token moves through the vocabulary."""
    centres = np.linspace(2, vocabulary - 3, positions)[:, None]
    bumps = -0.5 * (np.arange(vocabulary) - centres) ** 2 / 2.0
    return (bumps + 0.3 * np.random.default_rng(seed).normal(size=bumps.shape))[
        None
    ]


teacher = mlot.select(drifting_logits(14, seed=0), k=24)
student = mlot.select(drifting_logits(18, seed=1), k=24)
# Columns of traces come heaviest first; here both vocabularies are the same, so
# match them by their number.
by_number = np.argsort(student.columns[0])[
    np.argsort(np.argsort(teacher.columns[0]))
]
student = mlot.get_backend("numpy").keep(student, by_number[None])
cost = mlot.sequence_cost(student, teacher, temperature=None)[0]

# %%
# Four plans
# ----------
#
# The exact plan has at most :math:`T_t + T_s - 1` entries; entropy spreads it.

exact = mlot.emd(cost)
plans = {"exact": exact.plan}
for epsilon in (0.1, 0.3, 1.0):
    plans[f"$\\lambda$ = {epsilon}"] = mlot.sinkhorn(
        cost, epsilon=epsilon, n_iter=500
    ).plan

figure, axes = plt.subplots(1, 4, figsize=(7.2, 2.4), sharey=True)
for axis, (name, plan) in zip(axes, plans.items(), strict=True):
    axis.imshow(plan, vmin=0, vmax=exact.plan.max())
    axis.set(title=name, xlabel="student position")
axes[0].set_ylabel("teacher position")
# sphinx_gallery_start_ignore
figure.set_label(
    "Four plans between 14 teacher and 18 student positions as heat maps: the "
    "exact one is a thin diagonal staircase; with growing regularisation, "
    "0.1, 0.3 and 1, the diagonal becomes wider and fainter."
)
# sphinx_gallery_end_ignore
print("entries above 1e-9 in the exact plan:", int((exact.plan > 1e-9).sum()))

# %%
# What they cost
# --------------
#
# :math:`\langle P, C \rangle` of a converged plan is never below the exact
# optimum and falls to it with :math:`\lambda`. After the 20 rounds of the paper's
# setting the rows' marginals are not met exactly, so the value may lie on either
# side; ``marginal_error`` says how far the rounds got.

epsilons = np.geomspace(0.02, 2.0, 15)
converged = [
    mlot.sinkhorn(cost, epsilon=e, n_iter=2000, tol=1e-6) for e in epsilons
]
truncated = [mlot.sinkhorn(cost, epsilon=e, n_iter=20) for e in epsilons]
values = np.array([found.value for found in converged])
assert (values >= exact.value - 1e-6).all()
assert (np.diff(values) >= -1e-6).all()

figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.2))
left.axhline(exact.value, color="#8a8f98", linestyle=":", label="exact")
left.plot(epsilons, values, label="converged")
left.plot(epsilons, [found.value for found in truncated], "--", label="20 rounds")
left.set(xscale="log", xlabel=r"$\lambda$", ylabel=r"$\langle P, C\rangle$")
left.legend()
right.plot(
    epsilons,
    [max(found.marginal_error, 1e-17) for found in truncated],
    "--",
    color="#e0782f",
)
right.set(
    xscale="log",
    yscale="log",
    xlabel=r"$\lambda$",
    ylabel="marginal error after 20 rounds",
)
# sphinx_gallery_start_ignore
figure.set_label(
    "Left: cost of the plan against the regularisation, converged and after "
    "20 rounds, above a dotted line for the exact optimum that the converged "
    "curve meets on the left. Right: marginal error after 20 rounds, falling "
    "steeply as the regularisation grows."
)
# sphinx_gallery_end_ignore
