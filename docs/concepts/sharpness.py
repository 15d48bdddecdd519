# %% [markdown]
# # Sharpness, and the edge of stability
#
# Gradient descent changes the parameters of a network a little, against the gradient, again and again. How
# long may a step be? This page measures the answer on a small network. You need to know what a gradient is,
# and nothing else.
#
# ## One parameter
#
# Let $\theta$ be a parameter, and $L(\theta)$ the loss, a number that should become small. The simplest loss
# with a minimum is a parabola,
#
# $$L(\theta) = \frac{1}{2} \lambda \theta^2$$
#
# where $\lambda$ is its curvature: how fast the slope changes as $\theta$ moves. The slope is
# $\lambda\theta$. A step of gradient descent subtracts the slope times the learning rate $\eta$:
#
# $$\theta \leftarrow \theta - \eta\lambda\theta = (1 - \eta\lambda)\,\theta$$
#
# So each step multiplies the distance to the minimum by $1 - \eta\lambda$. While $\eta\lambda$ is between 0
# and 2 this factor is between −1 and 1, and the distance shrinks. Beyond 2 every step lands farther away, on
# the other side:

# %%
for product in (0.5, 1.5, 1.99, 2.01, 2.5):
    theta = 1.0
    for _ in range(20):
        theta = (1 - product) * theta
    print(f"rate × curvature = {product}: distance after 20 steps {abs(theta):.3g}")

# %% [markdown]
# The threshold is $\eta\lambda = 2$, or $\lambda = 2/\eta$. This is the **edge of stability**.
#
# ## Many parameters
#
# A network has many parameters, and its loss curves differently in each direction. The matrix of all second
# derivatives of the loss is called the Hessian, $H$. Its largest eigenvalue is the curvature of the steepest
# valley wall:
#
# $$\lambda = \max_{\|v\| = 1} v^{\top} H v$$
#
# Here $v$ is a direction of length one. This $\lambda$ is called the **sharpness**. If the loss were a
# parabola in all directions, gradient descent would be stable while the sharpness is below $2/\eta$: the
# steepest direction is the first to go wrong.
#
# A network of 9,000 parameters has a Hessian of 81 million entries. `ew.sharpness` never forms it. It
# multiplies it with a few vectors, each for about the price of two gradients ([how](../sharpness.md)). Let us
# take 300 images of handwritten digits and a small network.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import edgewise as ew

images, digits = load_digits(return_X_y=True)
inputs = torch.tensor(images[:300] / 16, dtype=torch.float32)
targets = nn.functional.one_hot(torch.tensor(digits[:300]), 10).float()
batch = (inputs - inputs.mean(0), targets)


def loss_fn(model, batch):
    """Half the squared error, summed over the ten outputs."""
    inputs, targets = batch
    return 0.5 * (model(inputs) - targets).square().sum(1).mean()


def network():
    """Make the same small network each time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 64),
        nn.Tanh(),
        nn.Linear(64, 64),
        nn.Tanh(),
        nn.Linear(64, 10),
    )


print(ew.sharpness(network(), loss_fn, [batch]))

# %% [markdown]
# The line says the value, how far it can be trusted, and what it cost in products with the Hessian.
#
# ## Training sharpens
#
# Now train at a constant rate with all 300 images in every step, and look at the sharpness every eight
# updates. The `Monitor` does that without changing the run. We do it twice, at two rates.

# %%
RATES = (0.5, 0.8)


def train(rate, num_updates=700):
    """Return the loss of each update, and what the monitor measured."""
    model, rows, losses = network(), [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    monitor = ew.Monitor(model, optimizer, loss_fn, every=8, log=rows.append)
    for _ in range(num_updates):
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        monitor.observe(batch)
        optimizer.step()
        losses.append(loss.item())
    return losses, rows


runs = {rate: train(rate) for rate in RATES}

# %% tags=["remove_input"]
figure, (top, bottom) = plt.subplots(
    2, 1, figsize=(7, 5.4), sharex=True, layout="constrained"
)
for color, (rate, (losses, rows)) in zip(
    ("#0072B2", "#D55E00"), runs.items(), strict=True
):
    top.plot(
        [r.step for r in rows],
        [r.sharpness for r in rows],
        color=color,
        label=f"rate {rate}",
    )
    top.axhline(2 / rate, color=color, ls="--", lw=1)
    top.annotate(
        f"2/{rate}",
        (1.01, 2 / rate),
        xycoords=("axes fraction", "data"),
        va="center",
        color=color,
    )
    bottom.semilogy(losses, color=color, lw=1)
top.set_ylabel("sharpness")
top.legend(loc="upper left")
bottom.set(xlabel="update", ylabel="training loss")
bottom.set_yticks([0.05, 0.1, 0.2, 0.4], ["0.05", "0.1", "0.2", "0.4"])
bottom.minorticks_off()
plt.show()

# %% [markdown]
# *Above: the sharpness (solid) and the threshold 2/rate (dashed). Below: the loss of the same two runs.*
#
# Two things happen, and neither is in the parabola.
#
# **Progressive sharpening.** The sharpness is not constant. It rises as the network learns, by itself, until
# it meets the threshold of its rate.
#
# **The edge of stability.** There it stops rising, and hovers near $2/\eta$, here a little above. The smaller
# rate has the higher threshold, and ends in the sharper place. The loss is no longer smooth. It goes up and
# down from one update to the next, and falls all the same. A network is not a parabola: when a step
# overshoots, it lands where the loss curves less, and that brings training back. [The next
# page](catapults.md) looks at this more closely.

# %%
for rate, (losses, rows) in runs.items():
    late = [row.fraction for row in rows[-25:]]
    rises = sum(
        after > before
        for before, after in zip(losses[-200:], losses[-199:], strict=False)
    )
    print(
        f"rate {rate}: sharpness {rows[0].sharpness:.3g} at the start, "
        f"{rows[-1].sharpness:.3g} at the end"
    )
    print(
        f"   in the last 200 updates, rate × sharpness / 2 is "
        f"{sum(late) / len(late):.3f} in the mean"
    )
    print(
        f"   in these the loss rose {rises} times, "
        f"and went from {losses[-200]:.4f} to {losses[-1]:.4f}"
    )
    print(f"   the monitor calls it: {rows[-1].regime}")

# %% tags=["remove_cell"]
# What the text says of the runs.
for losses, rows in runs.values():
    assert rows[-1].sharpness > rows[0].sharpness
    assert all(0.8 < row.fraction < 1.3 for row in rows[-25:])
    assert losses[-1] < losses[0] / 4
    assert any(
        after > before
        for before, after in zip(losses[-200:], losses[-199:], strict=False)
    )


# %% [markdown]
# ## What to take away
#
# - Sharpness is the largest curvature of the loss. Gradient descent is stable while rate × sharpness is below
#   2.
# - The sharpness is not a constant of your problem. It adapts to the learning rate, and often ends at
#   $2/\eta$.
# - So a rate above $2/\lambda$ is not always too large, and one below it is not safe for ever. What counts is
#   how fast one gets there.
# - With momentum, or Adam, the threshold is another one: [Adam's edge](adam.md), [any
#   optimizer](stability_limit.md).
#
# To measure your own run, see [following a run](../sharpness.md#following-a-run) and
# [`sharpness`][edgewise.curvature.measure.sharpness] in the reference.
