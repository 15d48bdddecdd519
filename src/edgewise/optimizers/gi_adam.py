"""GI-Adam: Adam whose second moment starts at the first gradient squared."""

import math
import numbers
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW
from torch.optim.optimizer import ParamsT

import edgewise.torch_internals as internals
from edgewise.arguments import a_flag, described, nonnegative_number, number_below_one
from edgewise.errors import warn
from edgewise.optimizers.preconditioner import Options, decayed_gradient, diagonal

_COARSE = (torch.bfloat16, torch.float16)


class _GradientInitialized(Adam):
    """Fills the state that torch's Adam initialises to zero; everything else is torch's."""

    # What the constructor was given, for the `defaults` that torch then makes; no constructor has run: these.
    _own_options: Mapping[str, Any] = {"scale": 1.0, "per_entry": False}

    def __init__(self, params: ParamsT, *, scale: float, per_entry: bool, **torchs: Any) -> None:
        self._own_options = _checked(scale, per_entry)
        super().__init__(params, **torchs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        for name, value in self._own_options.items():
            self.defaults.setdefault(name, value)
        if isinstance(param_group, dict):  # torch refuses what is not
            param_group.update(_own_of(param_group, self.defaults))
            _check_inherited({**self.defaults, **param_group})
        super().add_param_group(param_group)
        _warn_if_v_stands(self.param_groups[-1], type(self).__name__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Groups that torch's Adam has saved lack our options: those of the groups they replace stay.
        defaults = {**self._own_options, **state.get("defaults", vars(self).get("defaults", {}))}
        replaced = vars(self).get("param_groups", [])
        for i, group in enumerate(state["param_groups"]):
            group.update(_own_of(group, replaced[i] if replaced else defaults))
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    def _init_group(self, group: dict[str, Any], parameters: list[Tensor], *lists: Any) -> bool:
        # torch creates missing state here, after the closure and before its kernels run. A pre-hook would be
        # too early (the closure computes the gradients); an overridden step() would run step hooks twice.
        if group["per_entry"] and internals.is_compiling():
            raise NotImplementedError(
                "per_entry=True has no compiled step: torch.compile runs what starts the entries once only; call "
                "step() outside torch.compile, or leave per_entry at False."
            )
        # Of a small model, a look at each parameter would take two per cent of the step: what is new is last.
        if group is self.param_groups[0] and not all(self.state.values()):
            empty = [p for p, state in self.state.items() if not state]  # reading state[p] leaves one
            self._drop_states(empty)
        before = len(self.state)
        try:
            has_complex: bool = super()._init_group(group, parameters, *lists)  # type: ignore[no-untyped-call]
        except Exception:
            self._drop_states(self._states_since(before))  # those made before torch refused another parameter
            raise
        if group["per_entry"] and parameters:
            self._start(group, parameters)
        elif len(self.state) > before:
            self._start(group, self._states_since(before))
        return has_complex

    def _states_since(self, before: int) -> list[Tensor]:
        """Return the parameters whose state came after the first `before`."""
        return list(islice(self.state, before, None))

    def _drop_states(self, parameters: list[Tensor]) -> None:
        for p in parameters:
            del self.state[p]

    def _start(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        # A GradScaler leaves these two for the fused kernels, which unscale, and skip the step, themselves.
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        rejected: Tensor | None = getattr(self, "found_inf", None)
        if rejected is not None and not group["per_entry"] and rejected.item():
            self._drop_states(parameters)  # the first gradient is still to come
            return
        gradients = [_unscaled(p.grad, grad_scale) for p in parameters if p.grad is not None]
        moments = [self.state[p]["exp_avg_sq"] for p in parameters]
        if group["per_entry"] and _has_foreach(group, moments):
            _start_together(group, parameters, gradients, moments, rejected)
            return
        for p, gradient, moment in zip(parameters, gradients, moments, strict=True):
            _start_one(group, p, gradient, moment, rejected)


class GIAdam(_GradientInitialized):
    """Adam with v₀ = scale·g₀² (Kalra & Barkeshli 2024): an automatic warmup by √(1 − β₂ᵗ).

        v₀ = a·g₀²,  vₜ = β₂vₜ₋₁ + (1 − β₂)gₜ²,  θₜ = θₜ₋₁ − η·m̂ₜ / (√(vₜ/(1 − β₂ᵗ)) + ε)

    With a = 1, v_t estimates E[g²] without bias from the start, so the bias correction that is kept acts as
    a learning rate η√(1 − β₂ᵗ). The first step is √(1 − β₂) of Adam's (0.032 at β₂ = 0.999), and so is the
    preconditioned sharpness at initialization. With any a it is √((1 − β₂)/(1 + (a − 1)β₂)) of Adam's; what a
    adds is forgotten as β₂ᵗ. g₀ is the first gradient a parameter receives, coupled weight decay included;
    a step that a GradScaler rejects is none.

    Same arguments, kernels (for-loop, foreach, fused, capturable) and `state_dict` as `torch.optim.Adam`; see
    there for all but the last two arguments, and for the other errors raised. State that torch's Adam has saved
    loads and continues as torch's would, and the other way round; `scale` and `per_entry` are options of the
    groups, and stay where the groups loaded have none. Where a parameter is new under a GradScaler with
    `fused=True`, that one step waits for the device to learn whether it is rejected.

    v has the precision of the parameters, as torch's fused kernels and `load_state_dict` want it. In bfloat16, β₂v
    rounds to v where β₂ > 0.996: v₀ is never forgotten, and a warning says so. Use float32 and autocast there.

    Args:
        scale: a, a finite number ≥ 1.
        per_entry: start single entries too, such as the rows of an embedding or an expert, from their own first
            gradient that is not zero: an entry with v = 0 and g ≠ 0 gets v = a·g². Nothing more needs to be
            saved, as v = 0 exactly as long as every g² was zero. A positive v never decays to zero for
            β₂ > 1/2, since rounding keeps the smallest positive number, unless denormal ones are flushed. Where
            g² underflows (|g| < 2.6e-23 in float32, 1.7e-4 in float16) v stays zero, and the entry waits for a
            larger gradient. The steps are counted per parameter: an entry whose first gradient comes at step t
            moves by

                η·(1 − β₁)/(1 − β₁ᵗ)·√((1 − β₂ᵗ)/(1 + (a − 1)β₂))   (ε aside)

            in that step, which is √((1 − β₂)/(1 + (a − 1)β₂)) of Adam's, late as early. Late, this is
            (1 − β₁)η, with no warmup after it, instead of Adam's (1 − β₁)η/√(1 − β₂) (3.2η at the defaults).
            Coupled weight decay is a gradient from the first step on: with it, no entry is late.
            Costs another pass over v and g at every step, with foreach kernels a temporary copy of all
            gradients: on one CPU core, the step takes 1.3 to 1.8 times as long with foreach, 2 to 3 times with
            fused, and over 5 times with tensors of 10 million entries. Not for a compiled step.

    Raises:
        TypeError: `scale` or a rate is no number, or a flag no bool; also in a group.
        ValueError: `scale` is not finite or below 1, or a rate is not finite; also in a group.
        NotImplementedError: `step()` is inside `torch.compile`, and `per_entry=True`.

    Examples:
        >>> p = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = GIAdam([p], lr=1.0, betas=(0.9, 0.99))
        >>> p.grad = torch.ones(1)
        >>> optimizer.step()
        >>> p.data  # -√(1 - 0.99)
        tensor([-0.1000])

    Reference: arXiv 2406.09405, section 6.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        scale: float = 1.0,
        per_entry: bool = False,
    ) -> None:
        super().__init__(**_given(locals()))


class GIAdamW(_GradientInitialized, AdamW):
    """AdamW with v₀ = scale·g₀²: see `GIAdam`; weight decay is decoupled as in `torch.optim.AdamW`.

    Same arguments, kernels and `state_dict` as `torch.optim.AdamW`, and `GIAdam`'s two own.

    Args:
        scale: a, a finite number ≥ 1; see `GIAdam`.
        per_entry: start single entries too from their own first gradient; see `GIAdam`.

    Raises:
        TypeError: `scale` or a rate is no number, or a flag no bool; also in a group.
        ValueError: `scale` is not finite or below 1, or a rate is not finite; also in a group.
        NotImplementedError: `step()` is inside `torch.compile`, and `per_entry=True`.

    Examples:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = GIAdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()

    Reference: arXiv 2406.09405, section 6.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        scale: float = 1.0,
        per_entry: bool = False,
    ) -> None:
        super().__init__(**_given(locals()))


@diagonal.register(_GradientInitialized)
def _(
    optimizer: _GradientInitialized, group: Options, state: Options, parameter: Tensor, gradient: Tensor
) -> Tensor:
    """Adam's P, with v = scale·g² where there is none yet."""
    start = group["scale"] * decayed_gradient(group, parameter, gradient).square()
    moment = state.get("exp_avg_sq", start)
    if group["per_entry"]:
        moment = torch.where(moment == 0, start, moment)
    return diagonal.dispatch(Adam)(optimizer, group, {**state, "exp_avg_sq": moment}, parameter, gradient)


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what a constructor was given, out of its `locals()`: signatures as torch's say each argument once."""
    return {name: value for name, value in arguments.items() if name not in ("self", "__class__")}


def _warn_if_v_stands(group: Options, name: str) -> None:
    """Say where v is so coarse that β₂v rounds to v, so that it never decays: torch's fused kernels take no other."""
    beta2 = float(group["betas"][1])
    for dtype in {p.dtype for p in group["params"] if p.dtype in _COARSE}:
        if 1 - beta2 < torch.finfo(dtype).eps / 2:
            warn(
                f"{name} keeps v in the parameters' {dtype}, where β₂ = {beta2:g} times v rounds to v: a large first "
                "gradient is never forgotten. Keep the parameters in float32 and use autocast, or take β₂ ≤ "
                f"{1 - torch.finfo(dtype).eps / 2:.5g}."
            )


def _checked(scale: object, per_entry: object) -> dict[str, Any]:
    """Return the two options, or raise what the constructors document."""
    number = isinstance(scale, numbers.Real) and not isinstance(scale, bool)
    if not (number and math.isfinite(scale) and scale >= 1):  # type: ignore[arg-type, operator]
        error = ValueError if number else TypeError
        raise error(
            f"scale must be a finite number, 1 or greater, got {scale!r}: it multiplies the first gradient "
            "squared; pass 1.0 for the paper's GI-Adam, more for smaller first steps."
        )
    if not isinstance(per_entry, bool):
        raise TypeError(
            f"per_entry must be True or False, got {per_entry!r}: pass True to start single entries that "
            "receive their first gradient late from that gradient, too."
        )
    return {"scale": float(scale), "per_entry": per_entry}  # type: ignore[arg-type]


def _check_inherited(options: Options) -> None:
    """Raise where torch takes a value in silence that a run is lost by: True for a rate, "False" for a flag."""
    for name in ("lr", "eps", "weight_decay"):
        if not isinstance(options[name], Tensor):
            nonnegative_number(name, options[name])
    betas = options["betas"]
    if not (isinstance(betas, tuple | list) and len(betas) == 2):
        raise TypeError(f"betas must be two numbers, got {described(betas)}.")
    for beta in betas:
        if not isinstance(beta, Tensor):
            number_below_one("betas", beta)
    for name in ("amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay"):
        a_flag(name, options[name])
    for name in ("foreach", "fused"):
        if options[name] is not None:
            a_flag(name, options[name])


def _own_of(group: Options, otherwise: Options) -> dict[str, Any]:
    """Return a group's own two options, checked."""
    return _checked(**{name: group.get(name, otherwise[name]) for name in ("scale", "per_entry")})


def _has_foreach(group: Options, tensors: list[Tensor]) -> bool:
    """Tell whether torch's kernels take these tensors all at once; of DTensors, `_foreach_sign` does not."""
    if any(type(t) is not Tensor for t in tensors):
        return False
    if group["foreach"] is None and group["fused"] is None:
        return internals.takes_foreach(tensors, group["differentiable"])
    # On a CPU, memory for all tensors at once would take longer than the fused kernel itself.
    return bool(group["foreach"] or (group["fused"] and not tensors[0].is_cpu))


def _start_one(
    group: Options, parameter: Tensor, gradient: Tensor, moment: Tensor, rejected: Tensor | None
) -> None:
    """Add scale·g² to v, with `per_entry` where it is zero."""
    if (decay := _coupled_decay(group)) is not None:
        # The kernel will write to the parameter, which a graph of differentiable=True still needs.
        gradient = gradient + decay * (parameter.clone() if group["differentiable"] else parameter)
    gradient, moment = _as_real(gradient), _as_real(moment)
    if group["per_entry"]:
        gradient = _kept(moment.sign().sub_(1).mul_(gradient), rejected)  # -g where v is zero, else 0
    moment.addcmul_(gradient, gradient, value=group["scale"])


def _start_together(
    group: Options,
    parameters: list[Tensor],
    gradients: list[Tensor],
    moments: list[Tensor],
    rejected: Tensor | None,
) -> None:
    """Do what `_start_one` does with `per_entry`, for all parameters in few kernels."""
    if (decay := _coupled_decay(group)) is not None:
        gradients = list(internals.foreach_add(gradients, parameters, alpha=decay))
    gradients, moments = [_as_real(g) for g in gradients], [_as_real(v) for v in moments]
    masked = internals.foreach_sign(moments)
    internals.foreach_sub_(masked, 1)
    internals.foreach_mul_(masked, gradients)  # -g where v is zero, else 0
    first = [_kept(g, rejected) for g in masked]
    internals.foreach_addcmul_(moments, first, first, value=group["scale"])


def _kept(gradient: Tensor, rejected: Tensor | None) -> Tensor:
    """Return the gradient, or zeros if the step is rejected, which only the device knows."""
    return gradient if rejected is None else torch.where(rejected.to(gradient.device) != 0, 0.0, gradient)


def _coupled_decay(group: Options) -> float | None:
    """Return the factor of the parameter in the gradient that v sees, up to the sign of both; `None` for zero."""
    if group["weight_decay"] == 0 or group["decoupled_weight_decay"]:
        return None
    return -group["weight_decay"] if group["maximize"] else group["weight_decay"]


def _unscaled(gradient: Tensor, grad_scale: Tensor | None) -> Tensor:
    """Divide in the precision of the scale: 65536, where scalers start, is infinite in float16."""
    if grad_scale is None:
        return gradient
    wide = gradient.to(torch.promote_types(gradient.dtype, grad_scale.dtype))
    return (wide / grad_scale.to(gradient.device)).to(gradient.dtype)


def _as_real(tensor: Tensor) -> Tensor:
    """Return a complex tensor as pairs of reals: torch's Adam squares the parts apart."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
