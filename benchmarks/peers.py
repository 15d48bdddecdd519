"""Cold sharpness beside the peers: PyHessian, hessian-eigenthings and curvlinops with SciPy's eigsh, on the CPU.

Each library measures the top Hessian eigenvalue of the same loss through its own API, at its default setting and at
settings swept for the cheapest with a true relative error of at most 1e-3 (medians over seeds). The sweep counts
products: in it all libraries draw on one store, so that no product is taken twice; those of a part of the samples count
by its share. The settings that reach the goal are then timed, by the processor, with products of their own, in turn
with a plain gradient of the same batch, which is the unit. The true value is edgewise's at rtol 1e-6 in float64, and is
set beside eigsh's on one task.

Fast attention kernels have no second derivative: the peers are measured inside `sdpa_kernel(SDPBackend.MATH)`, as a
user would help them.
"""

import copy
import hashlib
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Any
from unittest import mock

import hessian_eigenthings
import numpy as np
import pyhessian
import torch
from curvlinops import HessianLinearOperator
from scipy.sparse.linalg import eigsh
from tasks import Task, conv_task, fcn_task, lm_task, trained
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import edgewise as ew
from edgewise.curvature.routes.reverse import ReverseRoute
from edgewise.isolation import isolated
from edgewise.loss.objective import Objective
from edgewise.parameters import flatten, unflatten

Row = tuple[str, str, str, str, str]  # task, method and setting, error, products, gradients

SEEDS = (0, 1, 2)
GOAL = 1e-3  # true relative error
MAX_PRODUCTS = 100  # of one measurement: beyond, a setting counts as failed
ROUNDS = 5  # of timing, and
SECONDS = 10.0  # after which a method is not timed again
_HVP = ReverseRoute.product


@dataclass(frozen=True, eq=False)
class Method:
    """A library at one setting."""

    library: str
    measure: Callable[[Task, int], float]  # of a task, from a seed, to the top eigenvalue
    setting: dict[str, Any]
    is_default: bool

    def __str__(self) -> str:
        setting = ", ".join(f"{name}={value}" for name, value in self.setting.items())
        return f"{self.library} {version(self.library)}, {setting or 'default'}"


@dataclass(frozen=True)
class Outcome:
    """What a method reached, by the sweep's count."""

    method: Method
    error: float  # value / true − 1, the median in size over the seeds; infinite beyond `MAX_PRODUCTS`
    products: float  # median over the seeds


class TooManyProducts(Exception):
    """A measurement went past `MAX_PRODUCTS`."""


@dataclass
class Products:
    """Hessian-vector products of one task, each taken once, and a count of those asked for."""

    route: ReverseRoute
    count: float = 0
    _known: dict[bytes, Tensor] = field(default_factory=dict)

    def __call__(self, vector: Tensor) -> Tensor:
        """Return the Hessian times the vector."""
        self.count += 1
        if self.count > MAX_PRODUCTS:
            raise TooManyProducts
        key = hashlib.blake2b(vector.contiguous().numpy().tobytes()).digest()
        if key not in self._known:
            self._known[key] = _HVP(self.route, vector)
        return self._known[key].clone()

    def of_part(self, route: ReverseRoute, vector: Tensor, share: float) -> Tensor:
        """Return a product of a part of the samples, which counts by its share and is not kept."""
        self.count += share
        return _HVP(route, vector)

    def of_lists(self, vectors: list[Tensor]) -> list[Tensor]:
        """Return the product in the parameters' shapes."""
        product = self(flatten(vectors))
        return [
            part.view(like.shape) for part, like in zip(unflatten(product, vectors), vectors, strict=True)
        ]


# --- the libraries, each called as its documentation says ---


def edgewise(task: Task, seed: int, **setting: float) -> float:
    return ew.sharpness(task.model, task.loss_fn, [task.batch], seed=seed, **setting).value


def py_hessian(task: Task, seed: int, **setting: float) -> float:
    torch.manual_seed(seed)
    task.model.zero_grad()
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.filterwarnings("ignore", "Using backward.. with create_graph=True")
        hessian = pyhessian.hessian(task.model, task.criterion, data=task.batch, cuda=False)
        values, _ = hessian.eigenvalues(**setting)
    task.model.zero_grad()
    return values[0]


def eigenthings(task: Task, seed: int, **setting: float | str) -> float:
    with sdpa_kernel(SDPBackend.MATH):
        operator = hessian_eigenthings.HessianOperator(task.model, [task.batch], task.loss_fn)
        return hessian_eigenthings.lanczos(operator, k=1, seed=seed, **setting).eigenvalues[0].item()


class Criterion(nn.Module):
    """A loss as the module that curvlinops takes."""

    reduction = "mean"

    def __init__(self, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss."""
        return self.criterion(outputs, targets)


def curvlinops_eigsh(task: Task, seed: int, *, check: bool = True, **setting: float) -> float:
    torch.manual_seed(seed)
    with sdpa_kernel(SDPBackend.MATH):
        operator = HessianLinearOperator(
            task.model,
            Criterion(task.criterion),
            list(task.model.parameters()),
            [task.batch],
            check_deterministic=check,
        )
        matrix = operator.to_scipy(dtype=torch.empty(0, dtype=operator.dtype).numpy().dtype)
        start = np.random.default_rng(seed).standard_normal(operator.shape[0])
        values = eigsh(matrix, k=1, which="LA", v0=start, return_eigenvectors=False, **setting)
    return float(values[0])


# --- the sweep ---


def num_samples(route: ReverseRoute) -> int:
    return sum(size or 0 for size in route._objective.evaluation.batches.sizes)


Setting = dict[str, Any]
# The first setting is the default. The others are swept from cheap to dear, for a peer up to the first that reaches the
# goal. (eigsh at a loose tolerance stops once its first `ncv` products suffice, which is the least it can take.)
LIBRARIES: tuple[tuple[str, Callable[..., float], list[Setting]], ...] = (
    ("edgewise", edgewise, [{"rtol": rtol} for rtol in (1e-3, 1e-1, 3e-2, 1e-2)]),
    ("pyhessian", py_hessian, [{}, *({"tol": tol} for tol in (1e-4, 1e-5))]),
    ("hessian-eigenthings", eigenthings, [{}, *({"which": "LA", "max_iter": m} for m in range(3, 25))]),
    (
        "curvlinops-for-pytorch",
        curvlinops_eigsh,
        [{}, *({"ncv": ncv, "tol": 0.1, "check": False} for ncv in (3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24))],
    ),
)


@contextmanager
def counted(products: Products) -> Iterator[None]:
    """Have all libraries ask `products` for their products."""

    def product(route: ReverseRoute, vector: Tensor) -> Tensor:
        route.num_products += 1
        share = num_samples(route) / num_samples(products.route)
        return products(vector) if share == 1 else products.of_part(route, vector, share)

    with (
        mock.patch.object(ReverseRoute, "product", product),
        mock.patch("pyhessian.hessian.hessian_vector_product", lambda _, __, v: products.of_lists(v)),
        mock.patch.object(hessian_eigenthings.HessianOperator, "matvec", lambda _, vector: products(vector)),
        mock.patch.object(HessianLinearOperator, "_matmat", lambda _, vectors: products.of_lists(vectors)),
    ):
        yield


def sweep(task: Task, true: float, seeds: Sequence[int]) -> list[Outcome]:
    """Return what each library reaches at each setting, in median over the seeds."""
    outcomes = []
    with isolated(task.model):
        products = Products(ReverseRoute(Objective(task.model, task.loss_fn, [task.batch])))
        with counted(products):
            for library, measure, settings in LIBRARIES:
                own_seeds = seeds[:1] if measure is py_hessian else seeds  # far more products than the others
                for setting in settings:
                    method = Method(library, partial(measure, **setting), setting, setting is settings[0])
                    outcomes.append(outcome(method, task, true, products, own_seeds))
                    if measure is not edgewise and setting and abs(outcomes[-1].error) <= GOAL:
                        break
    return outcomes


def outcome(method: Method, task: Task, true: float, products: Products, seeds: Sequence[int]) -> Outcome:
    """Return the median error and number of products of a method."""
    errors, counts = [], []
    for seed in seeds:
        products.count = 0
        try:
            errors.append(method.measure(task, seed) / true - 1)
        except TooManyProducts:
            errors.append(math.inf)
        counts.append(products.count)
    return Outcome(method, sorted(errors, key=abs)[len(errors) // 2], statistics.median(counts))


def shown(outcomes: list[Outcome]) -> list[Outcome]:
    """Return all of edgewise, and each peer's default and cheapest setting that reaches the goal."""
    kept = []
    for library, _, _ in LIBRARIES:
        own = [outcome for outcome in outcomes if outcome.method.library == library]
        best = cheapest(own)
        kept += [o for o in own if o is best or o.method.is_default or library == "edgewise"]
    return kept


def worth_a_time(reached: Outcome, outcomes: list[Outcome]) -> bool:
    """Whether this is edgewise's default, or the cheapest setting of its library that reaches the goal."""
    own = [outcome for outcome in outcomes if outcome.method.library == reached.method.library]
    return reached is cheapest(own) or (reached.method.library == "edgewise" and reached.method.is_default)


def cheapest(outcomes: list[Outcome]) -> Outcome | None:
    """Return the outcome of fewest products among those that reach the goal."""
    reached = (outcome for outcome in outcomes if abs(outcome.error) <= GOAL)
    return min(reached, key=lambda outcome: outcome.products, default=None)


# --- the clock ---


def time_in_gradients(task: Task, timed: list[Method], seeds: Sequence[int]) -> dict[Method, float]:
    """Return each method's median time in plain gradients; methods and gradients take turns."""
    gradients: list[float] = []
    times: dict[Method, list[float]] = {method: [] for method in timed}
    gradient(task)
    for turn in range(ROUNDS):
        for method, seen in times.items():
            if sum(seen) < SECONDS:
                gradients.append(seconds(partial(gradient, task)))
                task.model.zero_grad()
                seen.append(seconds(partial(method.measure, task, seeds[turn % len(seeds)])))
    unit = statistics.median(gradients)
    return {method: statistics.median(seen) / unit for method, seen in times.items()}


def gradient(task: Task) -> None:
    """Take the unit: a loss and its gradient."""
    task.model.zero_grad()
    task.loss_fn(task.model, task.batch).backward()


def seconds(call: Callable[[], object]) -> float:
    """Return the processor time of a call, on one thread: what others do on the machine is not in it."""
    start = time.process_time()
    call()
    return time.process_time() - start


# --- the table ---


def true_sharpness(task: Task) -> float:
    """Return the sharpness in float64, to 1e-6 in the residual: to about 1e-12 in the value."""
    task = in_double(task)
    found = ew.sharpness(task.model, task.loss_fn, [task.batch], rtol=1e-6)
    assert found.converged, found
    return found.value


def in_double(task: Task) -> Task:
    """Return a copy of the task in float64."""
    inputs, targets = task.batch
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    return replace(task, model=copy.deepcopy(task.model).double(), batch=(inputs, targets))


def compare(task: Task, seeds: Sequence[int]) -> list[Row]:
    """Return the rows of a task: what each method reaches and costs, and edgewise over the best peer."""
    true = true_sharpness(task)
    outcomes = sweep(task, true, seeds)
    listed = shown(outcomes)
    gradients = time_in_gradients(task, [o.method for o in listed if worth_a_time(o, outcomes)], seeds)
    rows = []
    for reached in listed:
        products = f"{reached.products:.3g}" if math.isfinite(reached.error) else f"> {MAX_PRODUCTS}"
        cost = f"{gradients[reached.method]:.1f}" if reached.method in gradients else "–"
        rows.append((task.name, str(reached.method), f"{reached.error:+.1e}", products, cost))
    ours = [cost for method, cost in gradients.items() if method.library == "edgewise"]
    theirs = [cost for method, cost in gradients.items() if method.library != "edgewise"]
    ratio = f"{min(ours) / min(theirs):.2f}" if ours and theirs else "–"
    return [*rows, (task.name, "edgewise ÷ best peer, both within 1e-3", "", "", ratio)]


def fast_attention_rows(task: Task) -> list[Row]:
    """Return what the peers say to the LM as a user writes it, without `sdpa_kernel`."""
    rows = []
    with mock.patch(f"{__name__}.sdpa_kernel", return_value=nullcontext()):
        for library, measure, _ in LIBRARIES:
            try:
                measure(task, SEEDS[0])
                said = "works"
            except RuntimeError as error:
                said = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
            rows.append((f"{task.name}, attention kernels left alone", library, said, "", ""))
    return rows


def check_row(task: Task) -> Row:
    """Return how far the true value is from eigsh's, of the same Hessian in float64, both to 1e-10."""
    difference = curvlinops_eigsh(in_double(task), SEEDS[0], tol=1e-5) / true_sharpness(task) - 1
    return task.name, "true value, edgewise ÷ eigsh − 1, both float64", f"{difference:+.0e}", "", ""


def rows() -> list[Row]:
    """Return the rows of all tasks."""
    lm = lm_task()
    return [
        check_row(conv_task()),
        *compare(conv_task(), SEEDS),
        *fast_attention_rows(lm),
        *compare(lm, SEEDS),
        *compare(trained(lm), SEEDS),
        *compare(fcn_task(), SEEDS),
    ]


def main() -> None:
    torch.set_num_threads(1)
    print("| task | method and setting | true relative error | products | gradients |\n|---|---|---|---|---|")
    for row in rows():
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
