"""The top of the Hessian's spectrum, plain and preconditioned."""

from edgewise.curvature.hessian import hessian
from edgewise.curvature.results import SharpnessResult
from edgewise.curvature.sharpness import preconditioned_sharpness, sharpness

__all__ = ["SharpnessResult", "hessian", "preconditioned_sharpness", "sharpness"]
