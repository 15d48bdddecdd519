"""Hessian-vector products by a gradient with tangents."""

from torch import Tensor

from edgewise.curvature.routes.route import HvpRoute
from edgewise.curvature.routes.second_derivative import forward_over_reverse
from edgewise.loss.objective import Objective
from edgewise.parameters import FlatSum, unflatten


class ForwardRoute(HvpRoute):
    """∇²L·v, the derivative of ∇L along v: forward-over-reverse, with no kept graph and no second backward.

    Examples:
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
        # Without a snapshot, each evaluation draws anew.
        is_known = self._same_draws or self._evaluation.snapshot is None
        product = self._product(vector, is_known=is_known)
        self._same_draws = True
        self.num_products += 1
        return product

    def product_aside(self, vector: Tensor, step: float) -> Tensor:
        """Return ∇²L(θ + step·vector) · vector, for checks, which count their products themselves.

        Needs a snapshot, from which θ comes back.
        """
        with self._evaluation.shifted(vector, step):
            return self._product(vector, is_known=True)

    def _product(self, vector: Tensor, *, is_known: bool) -> Tensor:
        """Return the product; a loss that is not known not to be another one under torch.func is compared."""
        objective, evaluation = self._objective, self._evaluation
        objective.ranks.check_whole("forward-over-reverse")
        tangents = dict(zip(evaluation.parameters, unflatten(vector, objective.tensors), strict=True))
        primals = {name: parameter.detach() for name, parameter in evaluation.parameters.items()}

        def of_piece(index: int, batch: object) -> list[Tensor | None]:
            expected = None if is_known else evaluation.known_value(index, batch)
            loss = evaluation.function_of(index, batch)
            return forward_over_reverse(loss, primals, tangents, expected, evaluation.noise)

        total = FlatSum(objective.tensors)
        with evaluation.together():
            for i, share, batch in objective.gradients.pieces():
                total.add_all(share, of_piece(i, batch))
        return objective.add_up(total.vector())
