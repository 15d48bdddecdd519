# %% [markdown]
# # Adam's edge
#
# [Gradient descent has an edge of stability](sharpness.md): it trains where the largest curvature of the
# loss, the sharpness $\lambda$, is up to two over the learning rate $\eta$. What about Adam? Its sharpness
# says almost nothing. The reason is that Adam measures lengths in units of its own.
#
# ## What Adam divides by
#
# Let $g_t$ be the gradient of update $t$. Adam keeps two running averages for each parameter. One is of the
# gradients, $m_t$, with a memory $\beta_1$, usually 0.9. The other is of their squares, $v_t$, with a memory
# $\beta_2$, usually 0.999:
#
# $$m_t = \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2$$
#
# Both start at zero, so at first they are too small. Adam corrects this: $\hat{m}_t = m_t / (1 - \beta_1^t)$
# and $\hat{v}_t = v_t / (1 - \beta_2^t)$. Then it divides one by the root of the other. The small number
# $\epsilon$ only prevents a division by zero, and $\theta_t$ are the parameters:
#
# $$\theta_{t+1} = \theta_t - \eta\, \frac{\hat{m}_t}{\sqrt{\hat{v}_t} + \epsilon}$$
#
# The same step, written with $m_t$ itself, divides it entry by entry by a number $P$:
#
# $$\theta_{t+1} = \theta_t - \eta P^{-1} m_t, \qquad P = (1 - \beta_1^t) \left( \sqrt{\hat{v}_t} + \epsilon \right)$$
#
# This $P$ is called the **preconditioner**. A parameter with large gradients gets a large entry, and so
# smaller steps.
#
# ## The curvature that Adam feels
#
# Measure each parameter in steps of Adam, that is multiply it by the root of its entry of $P$. In these units
# nothing is divided any more: Adam is gradient descent with a momentum that is an average. And the matrix of
# second derivatives, $H$, becomes $P^{-1/2} H P^{-1/2}$. Its largest eigenvalue
#
# $$\lambda_P = \lambda_{\max}\left( P^{-1/2} H P^{-1/2} \right)$$
#
# is the **preconditioned sharpness**. This is the one that has an edge. Long after the start it is at
#
# $$\eta \lambda_P = \frac{2 + 2\beta_1}{1 - \beta_1}$$
#
# which is 38 at $\beta_1 = 0.9$. [The page on limits](stability_limit.md) derives it. Let us train a small
# network with Adam, on 300 images of digits, all of them in each update.

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


def train(rate, num_updates=360):
    """Return the loss of each update, and what the monitor measured."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 64),
        nn.Tanh(),
        nn.Linear(64, 64),
        nn.Tanh(),
        nn.Linear(64, 10),
    )
    rows, losses = [], []
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    monitor = ew.Monitor(model, optimizer, loss_fn, every=8, log=rows.append)
    for _ in range(num_updates):
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        monitor.observe(batch)
        optimizer.step()
        losses.append(loss.item())
    return losses, rows


runs = {rate: train(rate) for rate in (0.003, 0.006)}

# %% tags=["remove_input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for color, (rate, (_, rows)) in zip(
    ("#0072B2", "#D55E00"), runs.items(), strict=True
):
    steps = [row.step for row in rows]
    left.semilogy(
        steps,
        [row.preconditioned_sharpness for row in rows],
        color=color,
        label=f"rate {rate}",
    )
    left.axhline(38 / rate, color=color, ls="--", lw=1)
    right.semilogy(
        steps, [row.sharpness for row in rows], color=color, label=f"rate {rate}"
    )
    right.axhline(2 / rate, color=color, ls=":", lw=1)
left.set(
    xlabel="update",
    ylabel="preconditioned sharpness",
    title="38/rate (dashed) holds it",
)
right.set_yticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
right.set(
    xlabel="update", ylabel="sharpness", title="2/rate (dotted) means nothing here"
)
left.legend()
plt.show()

# %% [markdown]
# *Left: the preconditioned sharpness of two runs of Adam, and 38/rate. Right: the plain sharpness of the same
# runs, and the threshold 2/rate of gradient descent.*

# %%
for rate, (losses, rows) in runs.items():
    late = [row.fraction for row in rows[-15:]]
    print(f"rate {rate}: loss {losses[0]:.3f} → {losses[-1]:.4f}")
    print(
        f"   first update: preconditioned sharpness "
        f"{rows[0].preconditioned_sharpness:.2g}, "
        f"{rows[0].fraction:.1f} times 38/rate"
    )
    print(f"   mean of the last 15: {sum(late) / len(late):.2f} times 38/rate")
    print(
        f"   last sharpness: {rows[-1].sharpness:.3g}, "
        f"{rows[-1].sharpness * rate / 2:.2g} times 2/rate"
    )

# %% tags=["remove_cell"]
# What the text says of the runs.
for losses, rows in runs.values():
    assert rows[0].fraction > 2
    assert min(row.fraction for row in rows) < 0.5
    assert all(0.7 < row.fraction < 1.3 for row in rows[-15:])
    assert all(row.sharpness * row.lr / 2 < 0.1 for row in rows)
    assert rows[-1].sharpness > rows[0].sharpness
    assert losses[-1] < losses[0] / 4


# %% [markdown]
# Three things are worth a look.
#
# **Adam starts sharp.** In the first update $\sqrt{\hat{v}_1}$ is the size of the gradient itself. Many
# gradients of a fresh network are tiny, so many entries of $P$ are tiny, and what is divided by them is
# large. The first value is far above all that follow, here above the edge as well. It falls within the first
# updates, as the average $v$ fills. This is why Adam likes a warmup, and what [GI-Adam](gi_adam.md) changes.
#
# **Then it sharpens, up to 38/rate.** After the fall the preconditioned sharpness rises, meets the edge of
# its rate and hovers there, as that of gradient descent does at 2/rate.
#
# **The plain sharpness knows nothing of it.** It is a small part of 2/rate all the time, and nothing in it
# tells when a run has come to its edge.
#
# ## What to take away
#
# - For Adam, look at the preconditioned sharpness. Its edge is 38/rate at the usual settings.
# - The value at the first update is much higher than those that follow. It is a fact of Adam's start, not of
#   your network.
# - $P$ is that of the *next* update: it already holds the gradient of the batch it is measured on. So measure
#   between `backward()` and `step()`, or let [`Monitor`](../sharpness.md#following-a-run) do it.
# - With small batches the edge is met lower than 38/rate.
#
# For what is read from which optimizer, see
# [`preconditioned_sharpness`][edgewise.curvature.measure.preconditioned_sharpness].
