"""Dense answers in float64, by other routes than the library's: forward-over-reverse, and plain scans."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian

from cases import Attention


class PlainBatchNorm(nn.Module):
    """Batch normalization in train mode, spelled out.

    torch 2.13's forward derivative of the fused kernel's backward gives an unsymmetric Hessian.
    """

    def __init__(self, fused: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = fused.weight, fused.bias, fused.eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean((0, 2, 3), keepdim=True)
        scale = (centred.square().mean((0, 2, 3), keepdim=True) + self.eps).rsqrt()
        return centred * scale * self.weight[:, None, None] + self.bias[:, None, None]


def as_function(
    model: nn.Module, loss_fn: Any, batch: Any, names: Sequence[str]
) -> Callable[[Tensor], Tensor]:
    """Return θ ↦ L(θ) with θ the named parameters as one flat vector."""
    stateless = copy.deepcopy(model).requires_grad_(False)
    for name, module in list(stateless.named_children()):
        if isinstance(module, nn.BatchNorm2d):
            stateless.add_module(name, PlainBatchNorm(module))
    if isinstance(stateless, Attention):
        stateless.spelled_out = True
    shapes = [dict(model.named_parameters())[name].shape for name in names]
    sizes = [shape.numel() for shape in shapes]

    def loss(theta: Tensor) -> Tensor:
        parts = [part.view(shape) for part, shape in zip(theta.split(sizes), shapes, strict=True)]
        return loss_fn(
            lambda x: functional_call(stateless, dict(zip(names, parts, strict=True)), (x,)), batch
        )

    return loss


def trainable(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


def theta_of(model: nn.Module, names: Sequence[str]) -> Tensor:
    return torch.cat([dict(model.named_parameters())[name].detach().reshape(-1) for name in names])


def dense(
    model: nn.Module, loss_fn: Any, batches: Sequence[Any], transform: Any, names: Any = None
) -> Tensor:
    """Return transform(L)(θ) summed over batches with the weights nᵢ/Σn, n read from the first tensor."""
    names = names or trainable(model)
    total = sum(len(batch[0]) for batch in batches)
    return sum(
        len(batch[0]) / total * transform(as_function(model, loss_fn, batch, names))(theta_of(model, names))
        for batch in batches
    )


def dense_hessian(model: nn.Module, loss_fn: Any, batches: Sequence[Any], names: Any = None) -> Tensor:
    """Return ∇²L, (n, n), by `torch.func.hessian` (forward over reverse)."""
    return dense(model, loss_fn, batches, hessian, names)


def dense_gradient(model: nn.Module, loss_fn: Any, batches: Sequence[Any]) -> Tensor:
    return dense(model, loss_fn, batches, torch.func.grad)


def dense_value(model: nn.Module, loss_fn: Any, batches: Sequence[Any]) -> float:
    return float(dense(model, loss_fn, batches, lambda f: f))


def preconditioned(hessian_: Tensor, entries: Tensor) -> Tensor:
    """Return P^{-1/2} H P^{-1/2} for a diagonal P."""
    root = torch.diag(entries.rsqrt())
    return root @ hessian_ @ root


def top(matrix: Tensor, num: int = 1) -> Tensor:
    """Return the `num` most positive eigenvalues, descending."""
    return torch.linalg.eigvalsh(matrix).flip(0)[:num]


def loss_after_step(model: nn.Module, optimizer: Any, loss_fn: Any, batch: Any, scale: float) -> float:
    """Return the loss after one real step on a deep copy, all groups' rates times `scale`, from `.grad`."""
    twin, stepper = copy.deepcopy((model, optimizer))
    for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        ours.grad = None if theirs.grad is None else theirs.grad.clone()
    for group in stepper.param_groups:
        group["lr"] = group["lr"] * scale
    stepper.step()
    with torch.no_grad():
        return float(loss_fn(twin, batch))


def scan_critical_scale(model: nn.Module, optimizer: Any, loss_fn: Any, batch: Any, scales: Tensor) -> float:
    """Return the smallest scale of the grid at which one real step raises the loss."""
    with torch.no_grad():
        base = float(loss_fn(model, batch))
    for scale in scales.tolist():
        if not loss_after_step(model, optimizer, loss_fn, batch, scale) <= base:
            return scale
    raise AssertionError("no scale of the grid raises the loss")


def bits(tensor: Tensor) -> list[int]:
    """Return the bytes of a tensor: NaN payloads and signed zeros count."""
    return list(tensor.detach().contiguous().cpu().numpy().tobytes())
