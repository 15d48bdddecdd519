"""Which module's second derivative is wrong: each is differentiated twice by itself, on what a forward gives it.

A sum over parameters would blame those in front of an activation whose formula is wrong; this finds the activation.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.curvature.routes.attention import plain_attention
from edgewise.curvature.routes.second_derivative import gradient_with_graph
from edgewise.loss.objective import Objective

_MOST_NAMES = 3
_CLEARLY = 0.1  # of a product, that it is off from differences whose own error is a fifth of that

Gradient = Callable[[list[Tensor]], list[Tensor]]


def culprits(objective: Objective) -> str:
    """Return the modules at fault on this rank, such as "layers.3.norm (LayerNorm)"; "" if it cannot be told.

    Takes a forward of the first batch, and of each module a few gradients; those around one at fault are not asked.
    """
    evaluation = objective.evaluation
    found: list[str] = []
    try:
        with evaluation.together(), _examined(evaluation.model, found):
            evaluation.value(0, evaluation.first_batch())
    except Exception:  # a module that does not bear it; the error to be explained is another one
        found.clear()
    more = f" and {len(found) - _MOST_NAMES} more" if len(found) > _MOST_NAMES else ""
    return ", ".join(found[:_MOST_NAMES]) + more


@contextmanager
def _examined(model: nn.Module, found: list[str]) -> Iterator[None]:
    """Examine each module when it has first been called, those inside it before, and add those at fault to `found`."""
    names = {module: name for name, module in model.named_modules()}
    clean: set[nn.Module] = set()
    faulty: set[nn.Module] = set()
    examines = False

    def examine(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: object) -> None:
        nonlocal examines
        if examines or module in clean or not faulty.isdisjoint(module.modules()):
            return
        examines = True  # what is called from here on is part of it
        try:
            is_wrong = _is_wrong(module, args, kwargs)
        except Exception:  # it has no derivative by itself; those around it are asked
            is_wrong = False
        finally:
            examines = False
        if is_wrong:
            faulty.add(module)
            found.append(f"{names[module] or 'the model itself'} ({type(module).__name__})")
        else:
            clean.add(module)

    handles = [module.register_forward_hook(examine, with_kwargs=True) for module in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_wrong(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the Hessian of ⟨c, module⟩ in inputs and parameters, c random, shows to be wrong."""
    point = _point(module, args, kwargs)
    if not point:
        return False
    generator = torch.Generator().manual_seed(0)
    scalar = _scalar(module, args, kwargs, generator)
    is_custom = False

    def gradient(tensors: list[Tensor]) -> list[Tensor]:
        nonlocal is_custom
        with torch.enable_grad(), plain_attention():
            found, is_custom = gradient_with_graph(scalar(tensors), tensors)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True)]

    slope = gradient(point)
    one, other = (_random_like(point, generator) for _ in range(2))
    with_one, with_other = _product(slope, point, one), _product(slope, point, other)
    if not (_is_finite(with_one) and _is_finite(with_other)):
        return _is_finite(slope)
    scale = _norm(with_one) * _norm(other) + _norm(with_other) * _norm(one)
    asymmetry = abs(_dot(other, with_one) - _dot(one, with_other))
    if asymmetry > torch.finfo(point[0].dtype).eps ** 0.5 * scale:
        return True
    return is_custom and _is_off(gradient, point, one, with_one)


def _is_off(gradient: Gradient, point: list[Tensor], direction: list[Tensor], product: list[Tensor]) -> bool:
    """Whether a product is not that of central differences, which those of twice the step confirm."""
    step = torch.finfo(point[0].dtype).eps ** (1 / 3) * max(1.0, _norm(point)) / _norm(direction)

    def difference(length: float) -> list[Tensor]:
        sides = []
        for sign in (1, -1):
            aside = [
                (t + sign * length * d).detach().requires_grad_()
                for t, d in zip(point, direction, strict=True)
            ]
            with torch.random.fork_rng(devices=[]):
                sides.append(gradient(aside))
        return [(a - b).detach() / (2 * length) for a, b in zip(*sides, strict=True)]

    short, long = difference(step), difference(2 * step)
    apart = [_norm([a - b for a, b in zip(short, each, strict=True)]) for each in (long, product)]
    return apart[0] <= _CLEARLY / 5 * _norm(short) and apart[1] > _CLEARLY * _norm(short)


def _point(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return leaves with the values of the inputs, then of the parameters, that can be differentiated by."""
    tensors = [each for each in [*args, *kwargs.values()] if _is_real(each)]
    tensors += [parameter for parameter in module.parameters() if _is_real(parameter)]
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def _scalar(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], generator: torch.Generator
) -> Callable[[list[Tensor]], Tensor]:
    """Return ⟨c, module⟩ as a function of the tensors of `_point`, with the same random c in each call."""
    names = [name for name, parameter in module.named_parameters() if _is_real(parameter)]
    seed = int(torch.randint(2**31, (), generator=generator, device="cpu"))

    def scalar(tensors: list[Tensor]) -> Tensor:
        left = iter(tensors)
        own_args = tuple(next(left) if _is_real(each) else each for each in args)
        own_kwargs = {key: next(left) if _is_real(each) else each for key, each in kwargs.items()}
        parameters = dict(zip(names, left, strict=True))
        output = torch.func.functional_call(module, parameters, own_args, own_kwargs)
        outputs = [
            each for each in (output if isinstance(output, tuple | list) else [output]) if _is_real(each)
        ]
        weights = _random_like(outputs, torch.Generator().manual_seed(seed))
        return torch.stack([(c * each).sum() for c, each in zip(weights, outputs, strict=True)]).sum()

    return scalar


def _product(slope: list[Tensor], point: list[Tensor], vector: list[Tensor]) -> list[Tensor]:
    pairs = [(g, v) for g, v in zip(slope, vector, strict=True) if g.requires_grad]
    if not pairs:
        return [torch.zeros_like(t) for t in point]
    found = torch.autograd.grad(
        [g for g, _ in pairs], point, [v for _, v in pairs], retain_graph=True, allow_unused=True
    )
    return [torch.zeros_like(t) if p is None else p for t, p in zip(point, found, strict=True)]


def _random_like(tensors: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(t.shape, generator=generator, device="cpu").to(t) for t in tensors]


def _is_real(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_finite(tensors: list[Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)


def _dot(ones: list[Tensor], others: list[Tensor]) -> float:
    return sum(float((a * b).sum(dtype=torch.float64)) for a, b in zip(ones, others, strict=True))


def _norm(tensors: list[Tensor]) -> float:
    return _dot(tensors, tensors) ** 0.5
