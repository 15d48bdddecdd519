"""The Hessian as an operator, by whichever route the loss allows.

| route | a product costs | needs |
|---|---|---|
| reverse | one backward through a kept graph (several batches: a gradient more) | a second backward |
| forward | a gradient with tangents, no kept graph | forward derivatives |
| difference | two gradients | nothing but gradients; comes with an error bar |
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from edgewise.arguments import (
    CURVATURE_ORDER,
    a_loss_function,
    a_model,
    a_vector,
    an_optimizer,
    known_name,
    name_patterns,
)
from edgewise.curvature.difference import CentralDifference
from edgewise.curvature.doubts import Doubts, is_finite
from edgewise.curvature.operators import Evidence, PreconditionedOperator, SymmetricOperator
from edgewise.derivatives import WrongDerivativeError
from edgewise.errors import ClosedError, SecondDerivativeError
from edgewise.isolation import isolated
from edgewise.losses import LossFunction
from edgewise.objective import Objective
from edgewise.parameters import unflatten
from edgewise.preconditioner import Diagonal, check_covered, preconditioner_of
from edgewise.ranks import local

Route = Literal["auto", "reverse", "forward", "difference", "checked"]

ROUTES = ("auto", "reverse", "forward", "difference", "checked")
# "auto" and "checked" take the first that the loss allows.
_BY_PREFERENCE = ("reverse", "forward", "difference")


class HessianOperator(SymmetricOperator):
    """∇²L of an objective; counts its products, and says which route they took and why.

    A product that shows that torch's second derivative is wrong, see `Doubts`, ends the exact routes: what is wrong in
    one may be in the other. `in_double` makes the same objective in float64.

    With "checked", the first product is taken by central differences as well. An exact one may be off by three times
    their error bar, or by ε^{1/3} of the dtype (0.5 % in float32), which is far more than their rounding and far
    less than what a wrong second derivative does.
    """

    def __init__(
        self,
        objective: Objective,
        hvp: Route = "auto",
        in_double: Callable[[], Objective] | None = None,
    ) -> None:
        known_name("hvp", hvp, ROUTES)
        self.size, self.dtype, self.device = objective.size, objective.dtype, objective.device
        self.shard = objective.ranks.index if objective.ranks.sharded else 0
        self._objective = objective
        self._difference = CentralDifference(objective)
        self._doubts = Doubts(objective, self._difference, in_double)
        routes = list(_BY_PREFERENCE) if hvp in ("auto", "checked") else [hvp]
        self.route: str = routes.pop(0)
        self._later_routes = routes
        self.reason = ""  # why "auto" did not take an earlier route
        self.closed = False
        self._exact_products = 0
        self._returned = 0  # exact products that are in use
        self._unchecked = hvp == "checked"
        self._disagreement = 0.0  # of the checked product, relative

    @property
    def dimension(self) -> int:
        """The number of parameters."""
        return self._objective.dimension

    def reduce(self, partial: Tensor) -> Tensor:
        """Return the sum over ranks of what each computed of its shard."""
        return self._objective.reduce(partial)

    @property
    def num_products(self) -> int:
        """Products so far, those for checks included; a central difference tried for its step counts as one."""
        return self._exact_products + self._difference.num_products + self._doubts.num_products

    @property
    def relative_error(self) -> float:
        """Error bar of a product relative to its norm; 0 for the exact routes, unless they were checked."""
        return self._difference.relative_error if self.route == "difference" else self._disagreement

    @property
    def graph_bytes(self) -> int:
        """Bytes held by kept graphs, counted where there is a budget."""
        return self._objective.graph_bytes

    @property
    def evidence(self) -> Evidence:
        """What the products so far have cost, and how they came about."""
        return Evidence(
            num_products=self.num_products,
            route=self.route,
            reason=self.reason.strip(),
            relative_error=self.relative_error,
            graph_bytes=self.graph_bytes,
        )

    def check_open(self) -> None:
        """Raise if the `with` block is over: the model may train again, and a product would undo that."""
        if self.closed:
            raise ClosedError(
                "the operator is closed: its with block is over, and the model is no longer held still. Multiply "
                "inside `with edgewise.hessian(...) as operator:`."
            )

    def check_symmetric(self, asymmetry: float, one: Tensor, other: Tensor) -> None:
        """Raise where |vᵀAv′ − v′ᵀAv| is more than rounding; differences have an error bar for that."""
        if self.route != "difference":
            self._doubts.check_symmetric(self.route, asymmetry, one, other)

    def settle_along(self, vector: Tensor, value: float) -> tuple[float, bool]:
        """Return what differences say of vᵀAv, see `CentralDifference`; an exact route has nothing to say."""
        if self.route != "difference":
            return self._disagreement, False
        return self._difference.settle_along(vector, value)

    def matvec(self, vector: Tensor) -> Tensor:
        """Return ∇²L · vector."""
        self.check_open()
        a_vector("vector", vector, self.size, self.dtype, self.device)
        product = self._first_possible(vector)
        if self._unchecked:
            self._unchecked = False
            self._check(vector, product)
        self._doubts.add(vector, product)
        return product

    def _check(self, vector: Tensor, product: Tensor) -> None:
        """Raise if a product by an exact route is not that of central differences."""
        if self.route == "difference" or not is_finite(product):
            return  # there is no other route, or nothing to compare
        difference = self._difference.product(vector)
        off = float((product - difference).norm() / difference.norm().clamp(min=1e-30))
        bar = max(3 * self._difference.relative_error, torch.finfo(self.dtype).eps ** (1 / 3))
        self._disagreement = off if product.norm() > 0 or difference.norm() > 0 else 0.0
        if self._disagreement > bar:
            raise SecondDerivativeError(
                f"routes disagree by {off:.2g}, more than {bar:.2g}: the first product by {self.route} is not that of "
                "central differences. Some function's second derivative is wrong (a custom autograd.Function?), or "
                'the loss has kinks or steps, such as ReLU\'s, where no route is right: hvp="difference" measures the '
                "change of the gradient itself."
            )

    def _first_possible(self, vector: Tensor) -> Tensor:
        while True:
            try:
                return self._product(vector)
            except WrongDerivativeError as error:
                if self._returned > 0:  # earlier products may be wrong as well
                    raise
                self.take_next_route(error)
            except SecondDerivativeError as error:
                self.take_next_route(error)

    def take_next_route(self, error: SecondDerivativeError) -> None:
        """Go on by the next route, or raise: what the loss itself raises without second derivatives, or the error."""
        self._objective.drop_graphs()
        if isinstance(error, WrongDerivativeError):
            self._later_routes = [route for route in self._later_routes if route == "difference"]
        if not self._later_routes:
            failed = not isinstance(error, WrongDerivativeError) and not self._objective.ranks.sharded
            if failed and self.route != "difference":
                self._objective.gradient()
            raise error
        self.reason += f"{error} "
        self.route = self._later_routes.pop(0)

    def _product(self, vector: Tensor) -> Tensor:
        if self.route == "difference":
            product = self._difference.product(vector)
            self._doubts.check_zero(self.route, vector, product)
            return product
        exact: Callable[[Tensor], Tensor] = (
            self._objective.hvp if self.route == "reverse" else self._objective.hvp_forward
        )
        product = exact(vector)
        self._exact_products += 1
        self._doubts.check_finite(self.route, vector, product)
        self._doubts.check_zero(self.route, vector, product)
        if self.route == "forward" and self._returned == 0:
            self._doubts.check_steady(vector, product)
        if self._later_routes and self._returned == 0 and not self._unchecked:
            self._doubts.check_custom(self.route, vector, product)
        self._returned += 1
        return product


@contextmanager
def hessian(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    optimizer: Optimizer | None = None,
    hvp: Route = "auto",
    params: str | Iterable[str] | None = None,
    dtype: torch.dtype | None = None,
    max_graph_bytes: int | None = None,
) -> Iterator[SymmetricOperator]:
    """The Hessian of the loss as an operator, for algorithms of your own; the model is unchanged afterwards.

        H = ∇²L(θ),  with an optimizer P^{-1/2} H P^{-1/2},  L = Σᵢ nᵢLᵢ / Σᵢ nᵢ

    The operator has `size`, `dtype`, `device` and `matvec`, lives inside the `with` block only, and offers
    `to_scipy()`; after the block it raises. Where parameters are sharded, `size` is this rank's and `dimension` that
    of H; pass every sum over entries through `reduce`. The parameters are those of `model.named_parameters()`,
    flattened in order. Products that are not symmetric, which `sharpness` refuses, are for its user to see.

    Args:
        model: as for `sharpness`.
        loss_fn: as for `sharpness`.
        batches: as for `sharpness`.
        optimizer: as for `preconditioned_sharpness`; `None` for the plain Hessian.
        hvp: as for `sharpness`.
        params: as for `sharpness`.
        dtype: as for `preconditioned_sharpness`.
        max_graph_bytes: as for `sharpness`.

    Yields:
        The symmetric operator.

    Raises:
        PreconditionerError: as for `preconditioned_sharpness`.
        TypeError: as for `sharpness`.
        ValueError: as for `sharpness`.
        LossError: as for `sharpness`.
        SecondDerivativeError: as for `sharpness`, by a product.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> batch = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> with hessian(model, lambda model, x: model(x).square().mean(), [batch]) as operator:
        ...     operator.matvec(torch.tensor([1.0, 1.0]))  # H = 2/n XᵀX = diag(9, 1)
        tensor([9., 1.])
    """
    a_model(model, CURVATURE_ORDER)
    a_loss_function(loss_fn, CURVATURE_ORDER)
    if optimizer is not None:
        optimizer = an_optimizer("optimizer", optimizer, CURVATURE_ORDER)
    params = name_patterns("params", params)
    options = {"params": params, "dtype": dtype, "max_graph_bytes": max_graph_bytes}
    with measured_operator(model, loss_fn, batches, optimizer, hvp, repeats=False, **options) as operator:
        yield operator


@contextmanager
def measured_operator(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    optimizer: Optimizer | None,
    hvp: Route,
    *,
    repeats: bool,
    **options: Any,
) -> Iterator[SymmetricOperator]:
    """Yield what `hessian` documents; unless the loss is known to repeat, see whether it does."""
    known_name("hvp", hvp, ROUTES)
    optimizer = None if optimizer is None else an_optimizer("optimizer", optimizer)
    with isolated(model, optimizer) as snapshot:
        objective = Objective(model, loss_fn, batches, snapshot=snapshot, **options)
        if optimizer is not None:
            with objective.ranks.together():
                check_covered(optimizer, list(objective.originals.values()))
        if not repeats:
            objective.check_repeats()
        in_double = partial(
            Objective, model, loss_fn, batches, snapshot=snapshot, **options | {"dtype": torch.float64}
        )
        operator = HessianOperator(objective, hvp, in_double)
        try:
            if optimizer is None:
                yield operator
                return
            gradient = objective.gradient(keep_graph=hvp not in ("forward", "difference"))
            with objective.ranks.together():  # entries of a shard may be refused on one rank only
                preconditioner = _preconditioner(optimizer, objective, gradient)
            yield PreconditionedOperator(operator, preconditioner)
        finally:
            operator.closed = True


def _preconditioner(optimizer: Optimizer, objective: Objective, gradient: Tensor) -> Diagonal:
    """Return P in the precision of the objective, of this rank's shards.

    It is that of the optimizer whose parameters and state are so cast, or so sharded.
    """
    tensors = objective.tensors  # once: of shards, these are new objects
    gradients = unflatten(gradient, tensors)
    cast: dict[Tensor, Tensor] = dict(zip(objective.originals.values(), tensors, strict=True))
    if all(copied is original for original, copied in cast.items()):
        return preconditioner_of(optimizer, tensors, gradients)
    state: dict[Tensor, dict[str, Any]] = defaultdict(dict)
    for parameter, entries in optimizer.state.items():
        state[cast.get(parameter, parameter)] = {
            name: local(value).to(objective.dtype) if _is_moment(value) else value
            for name, value in entries.items()
        }
    groups = [
        {**group, "params": [cast.get(p, p) for p in group["params"]]} for group in optimizer.param_groups
    ]
    twin = object.__new__(type(optimizer))  # shallow, without running a constructor: P is only read from it
    vars(twin).update({**vars(optimizer), "param_groups": groups, "state": state})
    return preconditioner_of(twin, tensors, gradients)


def _is_moment(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0
