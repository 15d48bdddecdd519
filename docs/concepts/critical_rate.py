# %% [markdown]
# # The critical learning rate
#
# [The edge of stability](sharpness.md) is a statement about many steps. There is a simpler question: how
# large may *this one* step be before it makes things worse? It can be asked of any optimizer, and answered by
# looking at the loss alone.
#
# ## Definition
#
# Let $\theta$ be the parameters of a network and $L(\theta)$ the loss on one batch. The optimizer has
# computed a direction $u$ in which it wants to move. For gradient descent it is the gradient $g$ with the
# sign turned, $u = -g$. A step with the learning rate $\eta$ goes to $\theta + \eta u$. For small rates the
# loss falls. The **critical learning rate** $\eta_c$ is where it stops being an improvement:
#
# $$\eta_c = \min\{\eta > 0 : L(\theta + \eta u) > L(\theta)\}$$
#
# In words: the smallest rate at which one step raises the loss on the same batch. `ew.critical_lr` finds it.
# It takes the direction from the optimizer's own `step()`, tries a few rates, and puts everything back. Each
# try is a forward pass and no more.

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


torch.manual_seed(0)
model = nn.Sequential(
    nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
found = ew.critical_lr(model, optimizer, loss_fn, batch, rtol=0.01)
print(found)

# %% [markdown]
# The bracket says between which two rates the loss begins to rise; with `rtol=0.01` it is at most 1 % wide.
# Let us check it by walking along the update by hand.


# %%
def gradients(parameters):
    """Return the gradient of the loss at the model as it stands."""
    return torch.autograd.grad(loss_fn(model, batch), parameters)


parameters = list(model.parameters())
start = [p.detach().clone() for p in parameters]
update = [-g for g in gradients(parameters)]


@torch.no_grad()
def loss_at(rate):
    """Return the loss after one step at a rate; the model stays as it was."""
    for p, origin, u in zip(parameters, start, update, strict=True):
        p.copy_(origin + rate * u)
    value = loss_fn(model, batch).item()
    for p, origin in zip(parameters, start, strict=True):
        p.copy_(origin)
    return value


low, high = found.bracket
print(f"loss at the start {loss_at(0):.5f}")
print(
    f"after a step at {low:.4f}: {loss_at(low):.5f}, "
    f"at {high:.4f}: {loss_at(high):.5f}"
)

# %% [markdown]
# ## How it relates to the sharpness
#
# Suppose the loss were a parabola along the update. Write $H$ for the matrix of second derivatives of the
# loss. Then
#
# $$L(\theta + \eta u) = L(\theta) + \eta\, g^{\top} u + \frac{1}{2} \eta^2\, u^{\top} H u$$
#
# The second term is the slope, and negative. The third is the curvature, and wins when $\eta$ is large. They
# cancel at
#
# $$\eta_c = -\frac{2\, g^{\top} u}{u^{\top} H u}$$
#
# For gradient descent, where $u = -g$, this is
#
# $$\eta_c = \frac{2}{\lambda_g}, \qquad \lambda_g = \frac{g^{\top} H g}{g^{\top} g}$$
#
# Here $\lambda_g$ is the curvature *along the gradient*. The sharpness $\lambda$ is the largest curvature
# along any direction, so it is at least as large. On a parabola, therefore,
#
# $$\eta_c \ge \frac{2}{\lambda}$$
#
# with equality where the gradient points in the sharpest direction. Far from there $\eta_c$ can be much
# larger: the sharpest direction is then hardly used by this step, though it will be by those that follow.

# %%
sharpness = ew.sharpness(model, loss_fn, [batch])
with ew.hessian(model, loss_fn, [batch]) as operator:
    g = torch.cat([-u.flatten() for u in update]).to(operator.dtype)
    along = float(g @ operator.matvec(g) / (g @ g))
print(f"sharpness {sharpness.value:.3f}: 2/sharpness = {2 / sharpness.value:.3f}")
print(f"curvature along the gradient {along:.3f}: 2/curvature = {2 / along:.3f}")
print(f"critical learning rate {found.lr:.3f}: the loss is not quite a parabola")

# %% [markdown]
# ## Critical is not best
#
# At $\eta_c$ one step gains nothing: the loss is where it was. On a parabola the lowest point is at half of
# it. And even the best *single* step is not the best rate for *training*. That is decided by many steps,
# other batches, and the curvature they will meet. The picture shows the loss along one update, now and after
# 100 updates at rate 0.1.

# %%
rates = torch.linspace(0, 1.3 * found.lr, 60).tolist()
early = [loss_at(rate) for rate in rates]
for _ in range(100):
    optimizer.zero_grad()
    loss_fn(model, batch).backward()
    optimizer.step()
later_found = ew.critical_lr(model, optimizer, loss_fn, batch, rtol=0.01)
later_sharpness = ew.sharpness(model, loss_fn, [batch])
start = [p.detach().clone() for p in parameters]
update = [-g for g in gradients(parameters)]
later_rates = torch.linspace(0, 1.3 * later_found.lr, 60).tolist()
late = [loss_at(rate) for rate in later_rates]
for name, at, losses, tried in (
    ("start", found, early, rates),
    ("later", later_found, late, later_rates),
):
    best = tried[losses.index(min(losses))]
    print(
        f"{name}: critical rate {at.lr:.3f}; "
        f"the loss along the update is lowest at {best:.3f}, "
        f"{best / at.lr:.2f} of it"
    )
print(f"later, 2/sharpness is {2 / later_sharpness.value:.3f}")

# %% tags=["remove_input"]
figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
shown = (
    ("at the start", rates, early, found, sharpness),
    ("after 100 updates", later_rates, late, later_found, later_sharpness),
)
for panel, (title, tried, losses, at, sharp) in zip(panels, shown, strict=True):
    panel.plot(tried, losses, color="#0072B2")
    panel.axhline(
        losses[0], color="gray", lw=1, ls=":", label="loss before the step"
    )
    panel.axvline(
        at.lr, color="#D55E00", ls="--", label=f"critical rate {at.lr:.2f}"
    )
    panel.axvline(
        2 / sharp.value,
        color="#009E73",
        ls="-.",
        label=f"2/sharpness {2 / sharp.value:.2f}",
    )
    panel.set(
        xlabel="learning rate of the one step", ylabel="loss after it", title=title
    )
    panel.legend(fontsize=8, loc="upper center")
plt.show()

# %% tags=["remove_cell"]
# What the text says of the runs.
assert found.ok
assert later_found.ok
assert loss_at(0) < loss_at(later_found.lr)
assert early[0] > min(early)
assert 2 / along >= 2 / sharpness.value
assert later_found.lr > 2 * 2 / later_sharpness.value


# %% [markdown]
# *The loss after one step of gradient descent, over the rate of that step. Beyond the dashed line the step
# raises the loss.*
#
# ## What to take away
#
# - $\eta_c$ needs no second derivatives, works with every optimizer, and costs a few forward passes.
# - It belongs to one update on one batch. It is a largest rate, not a best one.
# - It is at least about 2/sharpness, and often well above. An update that avoids the sharp directions bears
#   more.
# - For the first step of Adam it says little, as that step is unlike all that follow: [why](gi_adam.md).
# - [`LinearWarmup`](../warmups.md) with `lr_init="critical"` starts a warmup from it.
#
# All options, and what the search may miss, are in [`critical_lr`][edgewise.critical_lr] and
# in the [caveats](../caveats.md).
