"""What a closer look along the eigenvectors makes of inexact products: their error, their end, and what is refused.

Ladder: matrices, whose eigenvalues are known. Cannot see: looks that are wrong themselves.
"""

import pytest
import torch

import edgewise as ew
from edgewise.curvature.closer import deviations
from edgewise.curvature.lanczos import top_eigenpairs
from edgewise.curvature.operators import Look, PreconditionedOperator, SymmetricOperator
from edgewise.curvature.solve import top_of_spectrum
from edgewise.errors import SecondDerivativeError
from edgewise.optimizers.preconditioner import Diagonal

SIZE, RTOL = 30, 1e-3
MATRIX = torch.diag(torch.linspace(0.1, 3.0, SIZE, dtype=torch.float64))


class Coarse(SymmetricOperator):
    """A + E in its products, A in its looks, which are off by `change` of their norm; closer products may be A's."""

    def __init__(self, error=0.0, change=0.0, jump=0.0, has_closer=False):
        self.size, self.dtype, self.device = SIZE, torch.float64, torch.device("cpu")
        noise = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.used = MATRIX + error * (noise + noise.T)
        self.change, self.jump, self.has_closer, self.num_closer = change, jump, has_closer, 0

    def matvec(self, vector):
        return self.used @ vector

    def look_along(self, vector):
        product = MATRIX @ vector
        return Look(product, self.change * product, self.jump)

    def take_closer(self, vector):
        if not self.has_closer:
            return False
        self.used, self.has_closer = MATRIX, False
        self.num_closer += 1
        return True


def top(operator):
    return top_of_spectrum(operator, {"w": torch.zeros(SIZE)}, RTOL, 1, None, 200, 0)


def test_products_that_were_off_are_taken_closer():
    operator = Coarse(error=0.1, has_closer=True)
    found = top(operator)
    assert (found.status, operator.num_closer) == (ew.Status.CONVERGED, 1)
    assert found.value == pytest.approx(3.0, rel=RTOL)


def test_products_that_stay_off_are_not_converged():
    found = top(Coarse(error=0.1))
    assert found.status is ew.Status.BUDGET_EXHAUSTED
    assert abs(found.value - 3.0) <= found.hvp_error * found.value


@pytest.mark.parametrize("error", [0.0, 1e-5, 1e-4])
@pytest.mark.parametrize("change", [0.0, 1e-3, 0.04])
def test_the_error_covers_what_products_are_off_by_and_what_the_look_is(error, change):
    operator = Coarse(error=error, change=change)
    found = top(operator)
    assert found.status is ew.Status.CONVERGED
    assert abs(found.value - 3.0) <= (found.hvp_error + RTOL) * 3.0
    assert found.hvp_error >= change
    assert operator.num_closer == 0


@pytest.mark.parametrize("off", [{"change": 0.06}, {"jump": 0.2}])
def test_looks_that_are_off_themselves_are_refused(off):
    with pytest.raises(SecondDerivativeError, match=r"off by about [67]% along the eigenvector"):
        top(Coarse(**off))


def test_the_preconditioned_look_is_that_of_the_preconditioned_matrix():
    diagonal = torch.linspace(0.5, 2.0, SIZE, dtype=torch.float64)
    operator = PreconditionedOperator(Coarse(), Diagonal(entries=diagonal))
    found = top_eigenpairs(
        operator,
        num=2,
        rtol=1e-6,
        max_products=60,
        start=torch.ones(1, SIZE).double(),
        generator=torch.Generator(),
    )
    assert len(each := deviations(operator, found, 1e-6)) == 2
    assert max(deviation.error for deviation in each) < 1e-12
