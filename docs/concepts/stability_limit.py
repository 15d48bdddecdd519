# %% [markdown]
# # The stability limit of any optimizer
#
# [Gradient descent is stable](sharpness.md) while the learning rate times the curvature is below 2. With
# momentum the number is 3.8, with Adam 38. This page says where such a number comes from, and how edgewise
# finds it for an optimizer it has never seen.
#
# ## Momentum, on a parabola
#
# Take a loss $\frac{1}{2}\lambda\theta^2$ of one parameter $\theta$, with curvature $\lambda$. Its gradient
# is $g = \lambda\theta$. Gradient descent with momentum keeps a running sum $m$ of the gradients. It forgets
# with a factor $\beta$, often 0.9, and steps along the sum with the learning rate $\eta$. The index $t$
# counts the updates:
#
# $$m_t = \beta m_{t-1} + g_t, \qquad \theta_{t+1} = \theta_t - \eta\, m_t$$
#
# Without $m$ in it, this is a rule that makes the next position out of the last two:
#
# $$\theta_{t+1} = (1 + \beta - \eta\lambda)\,\theta_t - \beta\,\theta_{t-1}$$
#
# Such a rule has solutions of the form $\theta_t = z^t$, a number $z$ to the power of $t$. Put it in, divide
# by $z^{t-1}$, and what remains is the **characteristic polynomial**:
#
# $$z^2 - (1 + \beta - \eta\lambda)\, z + \beta = 0$$
#
# If both solutions $z$ are smaller than one in size, the distance to the minimum dies out. If one is larger,
# it grows. A complex $z$ just means that it swings on the way. As the rate grows from zero, one of them
# reaches the size of one at $z = -1$: the parameter jumps from side to side, for ever. With $z = -1$ the
# polynomial says $2(1 + \beta) - \eta\lambda = 0$, so
#
# $$\eta\lambda = 2(1 + \beta)$$
#
# is the **stability limit**. Without momentum it is 2, at $\beta = 0.9$ it is 3.8. Let us see whether that is
# so: torch's optimizer on a parabola of curvature 1, a little below and a little above.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import edgewise as ew


def distances(rate, momentum, num_updates=100):
    """Follow one parameter on a parabola of curvature 1."""
    theta = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([theta], lr=rate, momentum=momentum)
    found = []
    for _ in range(num_updates):
        optimizer.zero_grad()
        (0.5 * theta**2).sum().backward()
        optimizer.step()
        found.append(abs(theta.item()))
    return found


limit = 2 * (1 + 0.9)
below, above = distances(0.99 * limit, 0.9), distances(1.01 * limit, 0.9)
print(
    f"limit {limit:.1f}; distance after 100 updates: "
    f"{below[-1]:.2g} below it, {above[-1]:.2g} above it"
)
for product in (0.99 * limit, 1.01 * limit):
    roots = np.roots([1, -(1 + 0.9 - product), 0.9])
    print(
        f"rate × curvature {product:.3f}: "
        f"the largest z has size {abs(roots).max():.4f}"
    )

# %% [markdown]
# ## Adam
#
# Adam divides each entry of the step by its own number. [Adam's page](adam.md) calls these numbers $P$, and
# measures the curvature with them divided out. What is left is a momentum that is an average, not a sum: it
# multiplies each gradient by $1 - \beta_1$. So its steps are those of a sum at the rate $\eta(1 - \beta_1)$.
# With this in place of $\eta$, and $\beta_1$ in place of $\beta$, the limit becomes
#
# $$\eta\lambda = \frac{2(1 + \beta_1)}{1 - \beta_1}$$
#
# At the usual $\beta_1 = 0.9$ this is 38.
#
# ## Ask the optimizer
#
# Every new optimizer would need such a calculation, and every variant of an old one: Nesterov's momentum,
# dampening, weight decay. edgewise asks the optimizer instead. It makes a copy on a few scratch numbers,
# hands it gradients of its choice, and watches how they move. With $P$ held fixed the update is a weighted
# sum of past gradients,
#
# $$\theta_{t+1} = \theta_t - \eta P^{-1} \sum_{k \ge 0} c_k\, g_{t-k}$$
#
# where $c_k$ is the weight of the gradient $k$ updates ago. Change a single gradient, and all later updates
# show the weights, one by one. The polynomial follows from them, and the limit is the smallest $\eta\lambda$
# at which one of its solutions has the size one. It is also checked that the update is such a sum. If it is
# not, the result says so and there is no number.

# %%
weight = torch.nn.Parameter(torch.zeros(3))
for name, optimizer in {
    "gradient descent": torch.optim.SGD([weight], lr=0.1),
    "momentum 0.9": torch.optim.SGD([weight], lr=0.1, momentum=0.9),
    "Nesterov 0.9": torch.optim.SGD([weight], lr=0.1, momentum=0.9, nesterov=True),
    "Adam": torch.optim.Adam([weight], lr=0.001),
    "NAdam": torch.optim.NAdam([weight], lr=0.001, momentum_decay=0),
    "GI-Adam": ew.GIAdam([weight], lr=0.001),
    "Muon": torch.optim.Muon([torch.nn.Parameter(torch.zeros(3, 3))], lr=0.001),
}.items():
    print(f"{name:17}", ew.stability_limit(optimizer))

# %% [markdown]
# The first number is for the long run. The second is for the very first step, when the momentum is still
# empty: it is the product beyond which that step alone overshoots.
#
# Now ask for many values of the momentum, and lay the answers on the formulas:

# %%
MOMENTA = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95)
KINDS = {
    "momentum": (
        lambda b: torch.optim.SGD([weight], lr=0.1, momentum=b),
        lambda b: 2 * (1 + b),
    ),
    "Nesterov": (
        lambda b: torch.optim.SGD([weight], lr=0.1, momentum=b, nesterov=b > 0),
        lambda b: 2 * (1 + b) / (1 + 2 * b),
    ),
    "Adam": (
        lambda b: torch.optim.Adam([weight], lr=0.001, betas=(b, 0.999)),
        lambda b: 2 * (1 + b) / (1 - b),
    ),
}
measured = {
    name: [ew.stability_limit(make(b)).value for b in MOMENTA]
    for name, (make, _) in KINDS.items()
}
for name, (_, formula) in KINDS.items():
    error = max(
        abs(m / formula(b) - 1)
        for m, b in zip(measured[name], MOMENTA, strict=True)
    )
    print(f"{name}: the largest difference from the formula is {error:.0e} of it")

# %% tags=["remove_input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.semilogy(above, color="#D55E00", lw=1, label="1 % above the limit")
left.semilogy(below, color="#0072B2", lw=1, label="1 % below the limit")
left.set(
    xlabel="update",
    ylabel="distance to the minimum",
    title="momentum 0.9 on a parabola",
)
left.legend()
grid = np.linspace(0, 0.95, 200)
for color, (name, (_, formula)) in zip(
    ("#0072B2", "#009E73", "#D55E00"), KINDS.items(), strict=True
):
    right.semilogy(grid, formula(grid), color=color, lw=1.2, label=name)
    right.plot(MOMENTA, measured[name], "o", ms=4, color=color)
right.set_yticks(
    [1, 2, 4, 10, 20, 38, 80], ["1", "2", "4", "10", "20", "38", "80"], minor=False
)
right.minorticks_off()
right.set(xlabel="momentum (of Adam: β₁)", ylabel="stability limit")
right.legend()
plt.show()

# %% tags=["remove_cell"]
# What the text says of the runs.
assert below[-1] < 1 < above[-1]
assert all(
    abs(m / formula(b) - 1) < 1e-9
    for name, (_, formula) in KINDS.items()
    for m, b in zip(measured[name], MOMENTA, strict=True)
)


# %% [markdown]
# *Left: the same parabola, 1 % below and 1 % above the limit. Right: what the optimizers answer (dots), and
# the formulas (lines).*
#
# Momentum in its plain form raises the limit, at most to 4. Nesterov's form lowers it. Adam's limit is large
# because an average makes smaller steps than a sum, not because Adam bears more.
#
# ## What to take away
#
# - The limit is a property of the optimizer alone. The curvature is one of the loss, and of $P$. Training is
#   at the edge where rate × curvature meets the limit.
# - Limits of different optimizers are not to be compared: their curvatures are measured in different units.
# - This is exact for a parabola, full batches and a fixed $P$. With small batches the edge is met lower.
#
# The method, with weight decay and all its conditions, is in
# [`stability_limit`][edgewise.stability_limit]. `Monitor` uses it to say how near a run is to
# its edge: [following a run](../sharpness.md#following-a-run).
