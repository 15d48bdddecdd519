# %% [markdown]
# # Catapults, and what warmup does
#
# Below the [edge of stability](sharpness.md) each step of gradient descent lowers the loss. The edge is where
# the learning rate $\eta$ times the sharpness $\lambda$, the largest curvature of the loss, is 2. What
# happens beyond? On a parabola, the end: every step lands farther away than the one before. A network is not
# a parabola. It is often thrown to where the loss curves less, and goes on from there. This is called a
# **catapult**.
#
# ## One large step
#
# Here is a network that starts sharp: its first weights are three times as large as usual. Let $\lambda_0$ be
# its sharpness at the start.

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
    """Make a network that starts sharp, the same each time."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


first = ew.sharpness(network(), loss_fn, [batch]).value
print(
    f"sharpness at the start {first:.1f}: "
    f"the edge is at rate 2/{first:.1f} = {2 / first:.3f}"
)

# %% [markdown]
# We train at three constant rates $\eta$ and measure the sharpness before every update. What we choose is the
# product $\eta\lambda_0$: at 1 it is below the edge, at 6 and 24 above.


# %%
def train(product, warmup_steps=1, num_updates=24):
    """Train at product / first sharpness; return losses, sharpnesses, rates."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=product / first)
    # Over one update it is a constant rate.
    warmup = ew.LinearWarmup(optimizer, warmup_steps=warmup_steps)
    rows, losses = [], []
    monitor = ew.Monitor(model, optimizer, loss_fn, every=1, log=rows.append)
    for _ in range(num_updates):
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        if not loss < 1e6:
            break  # lost
        loss.backward()
        monitor.observe(batch)
        optimizer.step()
        warmup.step()
        losses.append(loss.item())
    return losses, [row.sharpness for row in rows], [row.lr for row in rows]


constant = {product: train(product) for product in (1, 6, 24)}
for product, (losses, sharpnesses, _) in constant.items():
    print(f"rate × first sharpness = {product}:")
    print("   loss     ", " ".join(f"{loss:8.3g}" for loss in losses[:6]))
    print("   sharpness", " ".join(f"{value:8.3g}" for value in sharpnesses[:6]))

# %% [markdown]
# At 1 the loss falls, as it should. At 6, three times the edge, the first step *raises* the loss. But look at
# the sharpness one update later: it is a fraction of what it was, and the rate is below the edge of the new
# place. Training goes on from there as if nothing had happened. At 24 the throw is too far, and nothing
# catches it.
#
# So a catapult has four parts: the rate is above the edge, the loss rises, the sharpness falls, the loss
# falls again.
#
# ## Many small ones
#
# A rate that is too large for one step may be fine after a few. That is what **warmup** does: the rate starts
# low and rises a little each update. Whenever it crosses the edge there is a small catapult, the sharpness
# falls a little, and the edge moves up. Now the same target, 24 over the first sharpness, where the constant
# rate was lost; the rate takes 60 updates to get there.

# %%
warmed = train(24, warmup_steps=60, num_updates=120)
losses, sharpnesses, rates = warmed
print(
    f"after {len(losses)} updates: loss {losses[0]:.3g} → {losses[-1]:.3g}, "
    f"sharpness {sharpnesses[0]:.3g} → {sharpnesses[-1]:.3g}"
)
print(f"without warmup it was lost after {len(constant[24][0])} updates")
products = [rate * value for rate, value in zip(rates, sharpnesses, strict=True)]
print(
    f"rate × sharpness was above 2 before {sum(p > 2 for p in products)} updates, "
    f"{max(products):.1f} at most"
)

# %% tags=["remove_input"]
figure, axes = plt.subplots(
    2, 2, figsize=(9, 5.6), sharex="col", sharey="row", layout="constrained"
)
COLORS = {1: "#0072B2", 6: "#009E73", 24: "#D55E00"}
for product, (losses, sharpnesses, _) in constant.items():
    axes[0, 0].semilogy(
        losses, color=COLORS[product], label=f"rate {product / first:.2g}"
    )
    axes[1, 0].semilogy(sharpnesses, color=COLORS[product])
    if product < 24:
        axes[1, 0].axhline(
            2 * first / product, color=COLORS[product], ls="--", lw=1
        )
losses, sharpnesses, rates = warmed
axes[0, 1].semilogy(losses, color=COLORS[24], label=f"warmup to {24 / first:.2g}")
axes[1, 1].semilogy(sharpnesses, color=COLORS[24])
axes[1, 1].semilogy([2 / rate for rate in rates], color=COLORS[24], ls="--", lw=1)
axes[0, 0].set(ylabel="training loss", title="constant rates", ylim=(None, 1e3))
axes[0, 1].set_title("the rate rises over 60 updates")
axes[1, 0].set(xlabel="update", ylabel="sharpness", ylim=(0.3, 200))
axes[1, 1].set_xlabel("update")
axes[0, 0].set_yticks([0.1, 1, 10, 100, 1000], ["0.1", "1", "10", "100", "1000"])
axes[1, 0].set_yticks([1, 10, 100], ["1", "10", "100"])
axes[0, 0].legend()
axes[0, 1].legend()
plt.show()

# %% tags=["remove_cell"]
# What the text says of the runs.
assert constant[6][0][1] > constant[6][0][0] > constant[6][0][2]
assert constant[6][1][2] < 2 * first / 6 < constant[6][1][0]
assert constant[1][0] == sorted(constant[1][0], reverse=True)
assert len(constant[24][0]) < 24
assert warmed[0][-1] < warmed[0][0] / 10
assert warmed[1][-1] < warmed[1][0] / 5
assert (
    max(rate * value for rate, value in zip(warmed[2], warmed[1], strict=True)) < 24
)


# %% [markdown]
# *Above the loss, below the sharpness (solid) and 2/rate (dashed). Left: constant rates. Right: warmup to the
# rate that is lost on the left.*
#
# On the right, the dashed edge comes down as the rate rises, and passes below the sharpness. Some updates
# later the loss has a peak and the sharpness drops. After that the peaks are small: the network is at the
# edge, and stays there. No single jump was as far as the one that is lost on the left.
#
# ## What to take away
#
# - Beyond the edge the loss rises and the sharpness falls. A small excess heals itself, a large one does not.
# - Warmup makes a large jump into many small ones. It lets a network bear a rate that it could not have begun
#   with.
# - So how long a warmup has to be depends on how sharp the start is, and how large the target.
# - [`CatapultWarmup`][edgewise.CatapultWarmup] does this on purpose: it measures [the
#   critical rate](critical_rate.md), goes a little beyond, waits, and repeats. [Choosing and trusting a
#   warmup](../warmups.md) compares all of them.
