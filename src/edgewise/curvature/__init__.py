"""The top of the Hessian's spectrum, plain and preconditioned."""

from edgewise.curvature.hessian import hessian
from edgewise.curvature.measure import preconditioned_sharpness, sharpness
from edgewise.curvature.results import SharpnessResult

__all__ = ["SharpnessResult", "hessian", "preconditioned_sharpness", "sharpness"]
