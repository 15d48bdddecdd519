"""The stability limit of an optimizer, by interrogation: what its own `step()` makes of gradients we choose."""

import copy
import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from edgewise.arguments import an_optimizer
from edgewise.errors import PreconditionerError
from edgewise.isolation import isolated
from edgewise.optimizers.groups import measured_rates
from edgewise.optimizers.preconditioner import check_covered, preconditioner_of
from edgewise.status import Status
from edgewise.torch_internals import state_of_constructor, tree_map

Array: TypeAlias = npt.NDArray[np.float64]

# Seven scratch parameters in one tensor: two that only see the gradients ±1 and ±3, three whose gradient is once
# doubled, negated or halved, two that are once moved away from 0. All else they see is equal.
_SCALE = np.array([1.0, 3.0, 1.0, 1.0, 1.0, 1.0, 3.0])
_FACTOR = np.array([1.0, 1.0, 2.0, -1.0, 0.5, 1.0, 1.0])
_POSITION = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0, -2.0])
_REFERENCE = np.array([0, 1, 0, 0, 0, 0, 1])
_COLD, _STEADY, _MOVED = slice(0, 5), slice(2, 5), slice(5, 7)

_NUM_WEIGHTS = 16  # c₀ … c₁₅: enough to identify, and to check, a recursion of order 4
_MAX_ORDER = 4
_BURN_INS = (0, 32, 128, 512, 2048, 8192)  # steps after which the weights are read, until two readings agree
_LATE = 2**23  # a step count at which bias corrections have ended, and that float32 still counts exactly
_AGREE = 1e-7  # relative: far above rounding, far below what a nonlinear update shows


@dataclass(frozen=True, kw_only=True)
class StabilityLimitResult:
    """The largest stable learning rate × preconditioned sharpness; `value / lr` is the sharpness at the edge."""

    value: float  # in the long run; NaN where there is no such limit
    initial: float  # at the very first step
    status: Status  # EXACT, or why there is no limit

    @property
    def ok(self) -> bool:
        """Whether there is a limit; it is exact then."""
        return self.status is Status.EXACT

    def __str__(self) -> str:
        return f"{self.value:.4g} in the long run, {self.initial:.4g} at the first step ({self.status.name})"


def stability_limit(optimizer: Optimizer) -> StabilityLimitResult:
    r"""Find the largest stable η·λ of an optimizer on a frozen quadratic, λ its preconditioned sharpness.

        θₜ₊₁ = (1 − ηγ)θₜ − ηP⁻¹nₜ,  nₜ = Σ_{k≥0} c_k·gₜ₋ₖ,  g = Hθ

    Along an eigenvector of P⁻¹H this is stable as long as all roots of z − 1 + ηγ + ηλ·Σ c_k z⁻ᵏ lie in the unit
    circle. `value` is the first ηλ > 0 at which one does not; `initial` that beyond which the first step overshoots,
    (2 − ηγ)/c₀ with the weight c₀ of a first gradient. In closed form, γ decoupled weight decay, β = β₁ for Adam:

        SGD (2 + 2β)/(1 − dampening) − ηγ,  Nesterov (2 + 2β)/(1 + 2β) − ηγ,  RMSprop 2 + 2·momentum,
        Adam, AMSGrad, RAdam, Adamax (2 − ηγ)(1 + β)/(1 − β),  NAdam (2 − ηγ)(1 + β)/((1 − β)(1 + 2β))

    None of this is tabulated: a scratch copy of the optimizer steps a few numbers, c_k and γ are read from how they
    move, and it is checked that the update is linear. Coupled weight decay acts as H + γI: where P does not
    depend on the gradients (SGD) it is subtracted; elsewhere the limit holds for λ of P⁻¹(H + γI), the loss with
    the decay in it. Gradient noise is not in this picture: small batches lower the edge that training shows.

    Args:
        optimizer: any, in whatever state; only its options and rates are read. Its state and random numbers are
            untouched. Rates that a schedule has taken to zero count as those it started from.

    Returns:
        `StabilityLimitResult`, for ηλ in units of the first group's rate as `preconditioned_sharpness` is. Of
        several groups it is the smallest limit, below which each is stable. NaN, and a status that says why,
        where no P is known (Muon, Adafactor) or the update is not linear at fixed P.

    Raises:
        TypeError: not a `torch.optim.Optimizer`.
        ValueError: a learning rate is negative or not finite, the first group's alone is zero, or a group maximizes:
            its limit would be in units of the sharpness of the negated loss, which nothing here measures.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> adam = torch.optim.Adam(model.parameters(), betas=(0.9, 0.999))
        >>> found = stability_limit(adam)
        >>> round(found.value, 6), round(found.initial, 6)  # 2(1 + β₁)/(1 − β₁), 2/(1 − β₁)
        (38.0, 20.0)
        >>> round(stability_limit(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)).value, 6)
        3.8

    Reference: arXiv 2406.09405, section 2; Cohen et al., arXiv 2207.14484, for Adam.
    """
    optimizer = an_optimizer("optimizer", optimizer)
    for i, group in enumerate(optimizer.param_groups):
        if group.get("maximize", False):
            raise ValueError(
                f"parameter group {i} has maximize=True: where the loss is to rise, its sharpness sets no limit to the "
                "rate. Negate the loss instead and leave maximize=False."
            )
    try:
        check_covered(optimizer, [])
    except PreconditionerError:
        return _no_limit(Status.NO_PRECONDITIONER)
    # Random numbers come back, hooks on all optimizers are silent.
    with torch.device("cpu"), isolated(None, _without_parameters(optimizer)):
        rates = enumerate(measured_rates(optimizer))
        found = [_limits(optimizer, i, rate) for i, rate in rates if rate > 0]  # at rate 0 all is stable
    limits = [limit for limit in found if limit is not None]
    if len(limits) < len(found):
        return _no_limit(Status.NO_LINEAR_LIMIT)
    values, initials = zip(*limits, strict=True)
    return StabilityLimitResult(value=min(values), initial=min(initials), status=Status.EXACT)


def _no_limit(status: Status) -> StabilityLimitResult:
    return StabilityLimitResult(value=math.nan, initial=math.nan, status=status)


def _limits(optimizer: Optimizer, index: int, rate: float) -> tuple[float, float] | None:
    """Return the limits of one parameter group in the long run and at the first step, if it has any."""
    first = _reading(_Scratch(optimizer, index, rate).record(1), rate, cold=True)
    steady = _steady_reading(optimizer, index, rate)
    if first is None or steady is None:
        return None
    poles = _recursion(steady.weights)
    if poles is None:
        return None
    value = _first_crossing(steady.weights, poles, steady.decay) - steady.shift
    initial = _first_overshoot(float(first.weights[0]), first.decay) - first.shift
    return max(0.0, value), max(0.0, initial)


# Interrogation


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What a scratch optimizer saw and did in some consecutive steps; (steps, 7) each."""

    gradients: Array
    divisors: Array  # P
    moved: Array  # θₜ − θₜ₊₁


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What a record says of the optimizer."""

    weights: Array  # (steps,): c_k
    decay: float  # ηγ, decoupled
    shift: float  # ηγ/P of coupled decay, where P does not depend on the gradients


class _Scratch:
    """The optimizer's class with one group's options, over the seven scratch parameters."""

    def __init__(self, optimizer: Optimizer, index: int, rate: float) -> None:
        group = optimizer.param_groups[index]
        options = {k: v for k, v in group.items() if k not in {"params", "param_names"}}
        plain = tree_map(lambda x: x.tolist() if isinstance(x, Tensor) else copy.copy(x), options)
        kernels = dict.fromkeys(("capturable", "differentiable", "foreach", "fused"), False)
        plain |= {name: off for name, off in kernels.items() if name in plain} | {"lr": rate}
        self._parameter = nn.Parameter(torch.zeros(len(_SCALE), dtype=torch.float64))
        self._optimizer = _without_parameters(optimizer)
        self._optimizer.add_param_group({"params": [self._parameter], **plain})
        self._optimizer.state[self._parameter] |= state_of_constructor(self._optimizer, self._parameter)
        self._steps = 0

    def be_late(self) -> None:
        """Count from a late step on, so that what depends on the step has reached its limit."""
        state = self._optimizer.state[self._parameter]
        if isinstance(state.get("step"), Tensor):
            state["step"].fill_(_LATE)
        elif "step" in state:
            state["step"] = _LATE

    def run(self, num_steps: int) -> None:
        """Step on gradients that differ in scale only."""
        for _ in range(num_steps):
            self._step(np.ones_like(_FACTOR), np.zeros_like(_POSITION))

    def record(self, num_steps: int) -> _Record:
        """Return what `num_steps` steps do, the first of them with the differences that are to be seen."""
        first = self._step(_FACTOR, _POSITION)
        later = [self._step(np.ones_like(_FACTOR), np.zeros_like(_POSITION)) for _ in range(num_steps - 1)]
        gradients, divisors, moved = map(np.stack, zip(first, *later, strict=True))
        return _Record(gradients=gradients, divisors=divisors, moved=moved)

    def _step(self, factor: Array, position: Array) -> tuple[Array, Array, Array]:
        """Step from `position`; the signs alternate, for those that subtract the mean gradient."""
        gradient = (-1.0) ** self._steps * _SCALE * factor
        self._steps += 1
        with torch.no_grad():
            self._parameter.copy_(torch.from_numpy(position))
        self._parameter.grad = torch.from_numpy(gradient.copy())
        divisors = preconditioner_of(self._optimizer, [self._parameter], [self._parameter.grad]).entries
        try:
            type(self._optimizer).step(self._optimizer)  # the class's: schedulers patch the instance's
        except Exception as error:
            error.add_note(
                f"raised by a scratch copy of {type(self._optimizer).__name__}, of stability_limit"
            )
            raise
        return gradient, divisors.numpy().copy(), position - self._parameter.detach().numpy()


def _without_parameters(optimizer: Optimizer) -> Optimizer:
    """Return a copy without groups and state, made as unpickling makes it; no constructor, no hooks."""
    plain = {
        name: copy.copy(value)
        for name, value in vars(optimizer).items()
        if isinstance(value, bool | int | float | str | None)
    }
    bare = type(optimizer).__new__(type(optimizer))
    fresh = {"defaults": dict(optimizer.defaults), "state": defaultdict(dict), "param_groups": []}
    bare.__setstate__(plain | fresh)
    return bare


def _steady_reading(optimizer: Optimizer, index: int, rate: float) -> _Reading | None:
    """Return the first reading in the long run that longer waiting does not change."""
    before: _Reading | None = None
    for burn_in in _BURN_INS:
        scratch = _Scratch(optimizer, index, rate)
        scratch.run(1)
        scratch.be_late()
        scratch.run(burn_in)
        reading = _reading(scratch.record(_NUM_WEIGHTS), rate, cold=False)
        if reading is None or (before is not None and _agree(reading.weights, before.weights)):
            return reading
        before = reading
    return None


def _reading(record: _Record, rate: float, *, cold: bool) -> _Reading | None:
    """Return weights and decay, or `None` where the scratch parameters do not agree on them.

    P may divide the mean of gradients, as in Adam, or each gradient in the mean, as in RMSprop: frozen, it is the
    same. Cold, the scratch parameters are compared with rest, else with those that see no difference.
    """
    ones = np.ones_like(record.divisors)
    for inner, outer in ((ones, record.divisors), (record.divisors, ones)):
        inputs, outputs = record.gradients / inner, outer * record.moved / rate
        if not cold:
            inputs, outputs = inputs - inputs[:, _REFERENCE], outputs - outputs[:, _REFERENCE]
        weights = _common_weights(inputs, outputs, _COLD if cold else _STEADY)
        if weights is None:
            continue
        beyond = rate * (outputs - _convolved(weights, inputs)) / outer
        coupled = weights[:, None] * _POSITION / (inner[0] * outer)
        decays = _decays(beyond[:, _MOVED], coupled[:, _MOVED], tolerance=_AGREE * (1 + np.ptp(record.moved)))
        if decays is not None:
            return _Reading(weights=weights, decay=decays[1], shift=_shift(decays[0], record.divisors))
    return None


def _common_weights(inputs: Array, outputs: Array, among: slice) -> Array | None:
    """Return c of outputsₜ = Σ c_k inputsₜ₋ₖ if it is the same for all scratch parameters among these."""
    found = np.zeros_like(outputs[:, among])
    for t, output in enumerate(outputs[:, among]):
        known = _convolved(found[: t + 1], inputs[: t + 1, among])[t]
        found[t] = (output - known) / inputs[0, among]
    weights = found.mean(1)
    return weights if _agree(found, weights[:, None]) else None


def _convolved(weights: Array, inputs: Array) -> Array:
    """Return Σ_k c_k inputsₜ₋ₖ for each t; weights of shape (steps,) or (steps, entries)."""
    weights = weights if weights.ndim == inputs.ndim else weights[:, None]
    steps = range(len(inputs))
    return np.stack([sum(weights[k] * inputs[t - k] for k in range(t + 1)) for t in steps])


def _agree(found: Array, other: Array) -> bool:
    return bool(np.abs(found - other).max() <= _AGREE * np.abs(other).max())  # also when NaN: False


def _decays(moved: Array, coupled: Array, *, tolerance: float) -> tuple[float, float] | None:
    """Return ηγ of coupled and of decoupled decay: what moved the parameters besides the gradients.

    Where the two do the same, as in plain gradient descent, they share it.
    """
    decoupled = np.zeros_like(moved)
    decoupled[0] = _POSITION[_MOVED]
    columns = np.stack([coupled.ravel(), decoupled.ravel()], axis=1)
    if not (np.isfinite(columns).all() and np.isfinite(moved).all()):
        return None
    decays = np.linalg.lstsq(columns, moved.ravel(), rcond=1e-9)[0]
    if np.abs(columns @ decays - moved.ravel()).max() > tolerance:
        return None
    return float(decays[0]), float(decays[1])


def _shift(coupled: float, divisors: Array) -> float:
    smallest = float(divisors.min())
    return coupled / smallest if np.ptp(divisors) <= _AGREE * smallest else 0.0


# From the weights to the limit


def _first_overshoot(weight: float, decay: float) -> float:
    """Return the largest x ≥ 0 with |1 − decay − x·weight| ≤ 1."""
    if weight == 0:
        return math.inf
    return (2 - decay) / weight if weight > 0 else 0.0


def _recursion(weights: Array) -> Array | None:
    """Return the polynomial D, D₀ = 1, of the shortest recursion Σᵢ Dᵢc_{k−i} = 0, k > deg D, that they obey."""
    for order in range(_MAX_ORDER + 1):
        rows = range(order + 1, len(weights))
        earlier = np.array([[weights[k - i] for i in range(1, order + 1)] for k in rows])
        tail = weights[order + 1 :]
        fitted = -np.linalg.lstsq(earlier, tail, rcond=None)[0] if order else np.zeros(0)
        if np.abs(tail + earlier @ fitted).max() <= _AGREE * np.abs(weights).max():
            return np.concatenate([[1.0], fitted])
    return None


def _first_crossing(weights: Array, recursion: Array, decay: float) -> float:
    """Return the smallest x > 0 above which a root of (z − 1 + decay)·D(z) + x·N(z), N/D = Σ c_k z⁻ᵏ, leaves |z| ≤ 1.

    On the circle x = −(z − 1 + decay)·D/N is real, an equation for z; between two of its solutions nothing crosses.
    """
    numerator = np.convolve(recursion, weights)[: len(recursion)]
    if not numerator.any():
        return math.inf  # gradients do not move it
    free = np.convolve([1.0, decay - 1.0], recursion)
    circle = np.polysub(
        np.convolve([1.0, 0.0], np.convolve(free, numerator[::-1])), np.convolve(free[::-1], numerator)
    )
    candidates = [z for z in np.roots(circle) if abs(abs(z) - 1) < 1e-4]
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.array([-1.0, *candidates])
        gains = (-np.polyval(free, z) / np.polyval(numerator, z)).real
    edges = sorted(float(x) for x in gains if 0 < x < math.inf)
    between = [0.0, *edges, 2 * max(edges, default=1.0)]
    for low, high in pairwise(between):
        roots = np.roots(np.polyadd(free, (low + high) / 2 * numerator))
        if np.abs(roots).max() > 1 + 1e-9:
            return low
    return math.inf
