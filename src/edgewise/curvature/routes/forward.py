"""Hessian-vector products by a gradient with tangents."""

from torch import Tensor

from edgewise.curvature.routes.route import HvpRoute
from edgewise.curvature.routes.second_derivative import forward_over_reverse
from edgewise.loss.gradients import summed
from edgewise.loss.objective import Objective
from edgewise.parameters import unflatten


class ForwardRoute(HvpRoute):
    """∇²L·v, the derivative of ∇L along v: forward-over-reverse, with no kept graph and no second backward.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> objective = Objective(model, lambda model, x: 0.5 * model(x).square().mean(), [x])
        >>> ForwardRoute(objective).product(torch.tensor([1.0, 1.0]))
        tensor([0.5000, 2.0000])
    """

    name = "forward"
    is_exact = True

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective)
        self._same_draws = False  # whether torch.func has been seen to evaluate the same loss

    def product(self, vector: Tensor) -> Tensor:
        """Return ∇²L(θ) · vector; both of shape (size,)."""
        product = self.product_aside(vector, 0.0)
        self.num_products += 1
        return product

    def product_aside(self, vector: Tensor, step: float) -> Tensor:
        """Return ∇²L(θ + step·vector) · vector, for checks, which count their products themselves."""
        objective, evaluation = self._objective, self._evaluation
        objective.ranks.check_whole("forward-over-reverse")
        tangents = dict(zip(evaluation.parameters, unflatten(vector, objective.tensors), strict=True))
        primals = {name: parameter.detach() for name, parameter in evaluation.parameters.items()}
        if step:
            primals = {name: primal.add(tangents[name], alpha=step) for name, primal in primals.items()}
        # Without a snapshot, each evaluation draws anew.
        is_known = self._same_draws or step != 0 or evaluation.snapshot is None

        def of_piece(index: int, batch: object) -> list[Tensor | None]:
            expected = None if is_known else evaluation.known_value(index, batch)
            loss = evaluation.function_of(index, batch)
            return forward_over_reverse(loss, primals, tangents, expected, evaluation.noise)

        with evaluation.together():
            pieces = objective.gradients.pieces()
            product = summed(((share, of_piece(i, batch)) for i, share, batch in pieces), objective.tensors)
        self._same_draws = True
        return objective.add_up(product)
