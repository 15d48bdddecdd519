"""The Hessian as an operator, by whichever route the loss allows.

| route | a product costs | needs |
|---|---|---|
| reverse | one backward through a kept graph (several batches: a gradient more) | a second backward |
| forward | a gradient with tangents, no kept graph | forward derivatives |
| difference | two gradients | nothing but gradients; comes with an error bar |
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
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
from edgewise.curvature.doubts import Doubts
from edgewise.curvature.measured_preconditioner import measured_preconditioner
from edgewise.curvature.operators import Evidence, Look, PreconditionedOperator, SymmetricOperator
from edgewise.curvature.routes.difference import CentralDifference
from edgewise.curvature.routes.forward import ForwardRoute
from edgewise.curvature.routes.reverse import ReverseRoute
from edgewise.curvature.routes.route import HvpRoute
from edgewise.curvature.routes.second_derivative import WrongDerivativeError
from edgewise.errors import ClosedError, EdgewiseError, SecondDerivativeError
from edgewise.isolation import isolated
from edgewise.isolation.compiled import runs_compiled
from edgewise.loss.checks import LossFunction
from edgewise.loss.measuring import Measuring
from edgewise.loss.objective import Objective
from edgewise.loss.parts import Part, can_be_parted
from edgewise.loss.repeats import check_repeats
from edgewise.optimizers.preconditioner import check_covered

Route = Literal["auto", "reverse", "forward", "difference", "checked"]

_RTOL = 1e-3  # that eigenvalues of the products are wanted to

ROUTES = ("auto", "reverse", "forward", "difference", "checked")


class HessianOperator(SymmetricOperator):
    """∇²L of an objective; counts its products, and says which route they took and why.

    A product that shows that torch's second derivative is wrong, see `Doubts`, ends the exact routes: what is wrong in
    one may be in the other. `in_double` makes the same objective in float64, or raises;
    `of_part` that of a part of the samples.

    With "checked", the first product is taken by central differences as well. An exact one may be off by three times
    their error bar, or by ε^{1/3} of the dtype (0.5 % in float32), which is far more than their rounding and far
    less than what a wrong second derivative does.
    """

    def __init__(
        self,
        objective: Objective,
        hvp: Route = "auto",
        in_double: Callable[[], Objective] | None = None,
        of_part: Callable[[Part], Objective | None] | None = None,
        rtol: float = _RTOL,
    ) -> None:
        known_name("hvp", hvp, ROUTES)
        self.size, self.dtype, self.device = objective.size, objective.dtype, objective.device
        self.shard = objective.ranks.index if objective.ranks.sharded else 0
        self._objective = objective
        self._difference = CentralDifference(objective, in_double, rtol)
        self._doubts = Doubts(objective, self._difference, in_double)
        self._hvp, self._of_part = hvp, of_part
        self._routes: list[HvpRoute] = [ReverseRoute(objective), ForwardRoute(objective), self._difference]
        self._left = [
            route for route in self._routes if hvp in ("auto", "checked", route.name)
        ]  # to be taken, in order of preference
        self._route = self._left.pop(0)
        self.reason = ""  # why "auto" did not take an earlier route
        self.closed = False
        self._returned = 0  # exact products that are in use
        self._unchecked = hvp == "checked"
        self._disagreement = 0.0  # of the checked product, relative

    @property
    def dimension(self) -> int:
        """The number of parameters."""
        return self._objective.dimension

    @property
    def route(self) -> str:
        """The name of the route that products take now."""
        return self._route.name

    def reduce(self, partial: Tensor) -> Tensor:
        """Return the sum over ranks of what each computed of its shard."""
        return self._objective.reduce(partial)

    @property
    def num_products(self) -> int:
        """Products so far, those for checks included; a central difference tried for its step counts as one."""
        return sum(route.num_products for route in self._routes) + self._doubts.num_products

    @property
    def relative_error(self) -> float:
        """Error bar of a product relative to its norm; 0 for the exact routes, unless they were checked."""
        return self._disagreement if self._route.is_exact else self._route.relative_error

    @property
    def graph_bytes(self) -> int:
        """Bytes held by kept graphs, counted where there is a budget."""
        return self._route.graph_bytes

    @property
    def evidence(self) -> Evidence:
        """What the products so far have cost, and how they came about."""
        return Evidence(
            num_products=self.num_products,
            route=self.route,
            reason=(self.reason + self._difference.reason).strip(),
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

    def check_symmetric(
        self, asymmetry: float, one: Tensor, other: Tensor, allowed: float = math.inf
    ) -> None:
        """Raise where |vᵀAv′ − v′ᵀAv| is more than rounding; differences have an error bar for that."""
        self._doubts.check_symmetric(self._route, asymmetry, one, other, allowed)

    @property
    def is_spent(self) -> bool:
        """Whether differences are to be taken in float64 before there are more."""
        return not self._route.is_exact and self._difference.is_spent

    def look_along(self, vector: Tensor) -> Look | None:
        """Return what differences say of A · vector, see `CentralDifference`; exact routes have no better product."""
        return None if self._route.is_exact else self._difference.look_along(vector)

    def take_closer(self, vector: Tensor) -> bool:
        """Let differences be as precise as along the vector, see `CentralDifference`."""
        return not self._route.is_exact and self._difference.take_closer(vector)

    def gradient(self) -> Tensor:
        """Return ∇L, with what products to come need of it, too."""
        return self._route.gradient()

    def part(self, share: float) -> "HessianOperator | None":
        """Return ∇²L of a part of the samples; `None` where shards need whole batches, or the loss refuses it."""
        objective = self._objective
        if self._of_part is None or objective.ranks.sharded:
            return None
        batches = objective.evaluation.batches
        if not can_be_parted(batches, share, objective.ranks):
            return None
        try:
            part = self._of_part(Part(batches, share))
        except Exception:  # what the loss cannot do for a part, it may for the whole
            return None
        return (
            None if part is None else HessianOperator(part, "auto" if self._hvp == "checked" else self._hvp)
        )

    def matvec(self, vector: Tensor) -> Tensor:
        """Return ∇²L · vector."""
        self.check_open()
        a_vector("vector", vector, self.size, self.dtype, self.device)
        product = self._first_possible(vector)
        if self._unchecked:
            self._unchecked = False
            self._disagreement = self._doubts.disagreement(self._route, vector, product)
        self._doubts.add(vector, product)
        return product

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
        self._route.release()
        is_wrong = isinstance(error, WrongDerivativeError)
        if is_wrong:
            self._left = [route for route in self._left if not route.is_exact]
        if not self._left:
            if self._route.is_exact and not is_wrong and not self._objective.ranks.sharded:
                self._objective.gradient()
            raise error
        self.reason += f"{error} "
        self._route = self._left.pop(0)

    def _product(self, vector: Tensor) -> Tensor:
        route, doubts = self._route, self._doubts
        product = route.product(vector)
        doubts.check_finite(route, vector, product)
        doubts.check_zero(route, vector, product)
        if not route.is_exact:
            return product
        if self._returned == 0:
            doubts.check_steady(route, vector, product)
            if self._left and not self._unchecked:
                has_custom = any(each.has_custom_functions for each in self._routes)
                doubts.check_custom(route, has_custom, vector, product)
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
        model: any module; measured in the train or eval mode it is in. Unchanged afterwards, bit for bit.
        loss_fn: `loss_fn(model, batch)` returns the mean loss over the batch as a scalar tensor.
        batches: a list of batches (`[batch]` for one) or another re-iterable, such as a data loader that does not
            shuffle, of which one batch is held at a time; weighted by their sizes nᵢ. A batch holds tensors, one row
            per sample, in any nest of tuples, mappings and dataclasses.
        optimizer: whose next update has the preconditioner P, with the gradient of `loss_fn` on `batches` already
            in it; over all of the parameters. `None` for the plain Hessian. With `dtype`, its state is cast as the
            parameters are.
        hvp: how to take products: "reverse" (over a kept graph), "forward" (over reverse) or "difference" (of
            gradients, with an error bar). "auto" takes the first of these that the loss allows; "checked" does as
            well, and compares the first product with that of differences.
        params: name patterns of the parameters to differentiate by, for the Hessian of one block; names are those
            inside `DistributedDataParallel`.
        dtype: precision to measure in, float32 or float64; `None` for that of the parameters, float32 if they are of
            half precision. A model of another precision is measured as a cast copy, and the batch with it; autocast is
            off, also where the model or `loss_fn` enters it.
        max_graph_bytes: what autograd's kept graphs may hold; a batch whose graph does not fit is split into
            micro-batches along the first dimension. `None` keeps the graph of a single batch, whatever its size.
            A product needs further memory for its backward pass.

    Yields:
        The symmetric operator.

    Raises:
        PreconditionerError: the optimizer has no known diagonal preconditioner.
        TypeError: `batches` is not a collection, a parameter is complex, or an argument has the wrong type.
        ValueError: an argument is out of range, no parameter requires a gradient or one is not in the optimizer, a
            loader shuffles, the budget cannot be met, or the model is distributed in a way that is not known.
        LossError: the loss is not a finite scalar with a graph to the selected parameters, does not repeat, differs
            between passes, calls backward() itself, or is not the mean over the micro-batches of a batch that is split.
        SecondDerivativeError: raised by a product, where no route gives one, none is precise enough, or routes
            disagree.
        ClosedError: raised by a product after the block.
        EdgewiseError: another rank raised one of these.

    Examples:
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
    measuring = Measuring(params=params, dtype=dtype, max_graph_bytes=max_graph_bytes)
    with measured_operator(model, loss_fn, batches, optimizer, hvp, measuring, repeats=False) as operator:
        yield operator


@contextmanager
def measured_operator(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    optimizer: Optimizer | None,
    hvp: Route,
    measuring: Measuring,
    *,
    repeats: bool,
    rtol: float = _RTOL,
) -> Iterator[SymmetricOperator]:
    """Yield what `hessian` documents; unless the loss is known to repeat, see whether it does."""
    known_name("hvp", hvp, ROUTES)
    optimizer = None if optimizer is None else an_optimizer("optimizer", optimizer)
    with isolated(model, optimizer) as snapshot:
        make = partial(Objective, model, loss_fn, snapshot=snapshot)
        objective = make(batches, measuring=measuring)
        if optimizer is not None:
            with objective.ranks.together():
                check_covered(optimizer, list(objective.originals.values()))
        if not repeats:
            check_repeats(objective.evaluation)

        def in_double() -> Objective:
            if runs_compiled(model, loss_fn):
                raise EdgewiseError("what is compiled would be compiled anew, which takes long.")
            return make(batches, measuring=replace(measuring, dtype=torch.float64))

        def of_part(part: Part) -> Objective | None:
            # A graph of a part would be one more than the budget counts, and what is compiled would be compiled anew.
            is_whole = measuring.max_graph_bytes is not None or runs_compiled(model, loss_fn)
            return None if is_whole else make(part, measuring=measuring)

        operator = HessianOperator(objective, hvp, in_double, of_part, rtol)
        try:
            if optimizer is None:
                yield operator
                return
            gradient = operator.gradient()
            with objective.ranks.together():  # entries of a shard may be refused on one rank only
                preconditioner = measured_preconditioner(optimizer, objective, gradient)
            yield PreconditionedOperator(operator, preconditioner)
        finally:
            operator.closed = True
