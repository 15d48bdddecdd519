"""Budgets for the graphs of gradients: what is kept, what is split, and what is refused.

Ladder: the sizes of saved tensors by hooks of the test's own; the measurement without a budget. Cannot see: memory
that is not autograd's, such as a backward pass's own.
"""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cases import BY_NAME, mse
from edgewise import hessian, sharpness
from edgewise.curvature.routes.reverse import ReverseRoute
from edgewise.errors import LossError
from edgewise.loss.graph_budget import GraphSize, SavedBytes
from edgewise.loss.measuring import Measuring
from edgewise.loss.objective import Objective


def wide_mlp():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    return model, [
        (torch.randn(n, 3, dtype=torch.float64), torch.randn(n, 2, dtype=torch.float64)) for n in (7, 4)
    ]


def graph_bytes(model, batches):
    return sharpness(model, mse, batches, max_graph_bytes=10**9).graph_bytes


def test_graphs_are_kept_as_long_as_they_fit():
    model, batches = wide_mlp()
    calls = []
    counting = lambda m, b: calls.append(len(b[0])) or mse(m, b)
    expected = sharpness(model, mse, batches, rtol=1e-9).value
    both = graph_bytes(model, batches)
    assert both == sum(graph_bytes(model, [batch]) for batch in batches)
    found = sharpness(model, counting, batches, rtol=1e-9, max_graph_bytes=both)
    assert (found.graph_bytes, calls) == (
        both,
        [7, 7, 1, 2, 1, 2, 7, 4],
    )  # repeats, bytes, graphs; no product
    assert found.value == pytest.approx(expected, rel=1e-9)
    calls.clear()
    less = sharpness(model, counting, batches, rtol=1e-9, max_graph_bytes=both - 1)
    assert less.graph_bytes == 0
    assert calls[6:] == [7, 4] * less.num_hvps
    assert less.value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("route", ["auto", "reverse", "forward", "difference"])
def test_a_batch_that_does_not_fit_is_split_by_the_largest_size_that_does(route):
    model, batches = wide_mlp()
    calls = []
    counting = lambda m, b: calls.append(len(b[0])) or mse(m, b)
    expected = sharpness(model, mse, batches, rtol=1e-7).value
    kept = route in ("auto", "reverse")
    budget = held_bytes(model, (batches[0][0][:3], batches[0][1][:3]), create_graph=kept)
    found = sharpness(model, counting, batches, rtol=1e-7, hvp=route, max_graph_bytes=budget)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert calls[-5:] in ([3, 3, 1, 3, 1], [3, 3, 1, 4])  # the first does not fit, the second may
    assert found.graph_bytes == 0


def held_bytes(model, batch, *, create_graph):
    """By hooks of the test's own: the bytes of all saved storages but those of parameters and inputs."""
    held = {}  # address → storage, so that no address is used again
    pack = lambda t: held.__setitem__(t.untyped_storage().data_ptr(), t.untyped_storage()) or t.detach()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        torch.autograd.grad(mse(model, batch), list(model.parameters()), create_graph=create_graph)
    outside = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *batch]}
    return sum(storage.nbytes() for address, storage in held.items() if address not in outside)


def test_the_bytes_are_those_that_autograd_saves():
    model, batches = wide_mlp()
    expected = held_bytes(model, batches[0], create_graph=True)
    assert graph_bytes(model, batches[:1]) == expected


def test_a_budget_below_one_sample_is_refused_with_what_it_needs():
    model, batches = wide_mlp()
    with pytest.raises(
        ValueError, match=r"max_graph_bytes=10 is too small.*single sample of batch 0 holds [\d,]+ bytes"
    ):
        sharpness(model, mse, batches, max_graph_bytes=10)


@pytest.mark.parametrize(
    ("budget", "error"), [(0, ValueError), (-3, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_a_budget_is_a_positive_count(budget, error):
    model, batches = wide_mlp()
    with pytest.raises(error, match="max_graph_bytes must be"):
        sharpness(model, lambda *_: pytest.fail("evaluated"), batches, max_graph_bytes=budget)


def test_batch_norm_in_training_is_not_split():
    case = BY_NAME["conv-batchnorm-xent"]
    model, batches = case.build()
    whole = sharpness(model, case.loss_fn, batches, max_graph_bytes=10**9)
    assert whole.graph_bytes > 0  # it fits: nothing is split
    assert whole.value == pytest.approx(sharpness(model, case.loss_fn, batches).value, rel=1e-9)
    budget = whole.graph_bytes // 4
    with pytest.raises(
        ValueError, match=r"asks to split batch 0.* 1 \(BatchNorm2d\) normalizes over the batch.*eval"
    ):
        sharpness(model, case.loss_fn, batches, max_graph_bytes=budget)
    model.eval()
    split_up = sharpness(model, case.loss_fn, batches, max_graph_bytes=budget, rtol=1e-9)
    assert split_up.value == pytest.approx(sharpness(model, case.loss_fn, batches, rtol=1e-9).value, rel=1e-8)


def test_a_loss_that_is_no_mean_over_samples_is_not_split():
    model, batches = wide_mlp()
    total = lambda m, b: (m(b[0]) - b[1]).square().sum()
    budget = graph_bytes(model, batches[:1]) // 2
    with pytest.raises(
        LossError, match=r"batch 0 was to be split into micro-batches of \d.* not a mean over samples"
    ):
        sharpness(model, total, batches[:1], max_graph_bytes=budget)


def test_a_loader_is_measured_within_a_budget():
    model, (batch, _) = wide_mlp()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch), batch_size=3)
    expected = sharpness(model, mse, [batch], rtol=1e-8).value
    budget = held_bytes(model, (batch[0][:2], batch[1][:2]), create_graph=True)
    found = sharpness(model, mse, loader, rtol=1e-8, max_graph_bytes=budget)
    assert found.value == pytest.approx(expected, rel=1e-8)


def test_the_size_of_a_graph_is_extrapolated_from_two_counts():
    seen = []
    held = GraphSize(torch.ones(9), 2, lambda piece: seen.append(len(piece)) or 10 + 5 * len(piece))
    assert (held.bytes, held.first, seen) == (10 + 5 * 9, 20, [2, 3])
    assert [held.rows_within(budget) for budget in (20, 24, 25, 54)] == [2, 2, 3, 8]
    assert GraphSize(torch.ones(1), 2, len).bytes == 1


def test_saved_bytes_count_each_storage_once_and_no_parameter_or_input():
    """x·w, y = exp(xw): saves x and w (known), y twice (its own derivative, and y·y's factors)."""
    x, w = torch.ones(5, 3), torch.ones(3, 2, requires_grad=True)
    saved = SavedBytes([w])
    with saved.counting((x[1:], 0)):
        y = (x @ w).exp()
        loss = (y * y[:4].sum()).sum()
    scalar = 4
    assert saved.total == 5 * 2 * 4 + scalar
    (gradient,) = torch.autograd.grad(loss, w, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(gradient.sum(), w)[0].isfinite().all(), torch.tensor(True))


def test_a_storage_is_counted_though_its_address_is_used_again():
    saved = SavedBytes([])
    with saved.counting(()):
        for n in range(1, 101):
            torch.full((7,), float(n), requires_grad=True).exp()  # freed at once
    assert saved.total == 100 * 7 * 4


@pytest.mark.parametrize("budget", [None, 10**9])
def test_kept_graphs_go_with_their_route(budget):
    """At once, not when the garbage collector finds them: they may be most of the memory."""
    model, batches = wide_mlp()
    route = ReverseRoute(Objective(model, mse, batches[:1], measuring=Measuring(max_graph_bytes=budget)))
    outputs = []  # of tanh, which the graph of its second derivative saves
    watch = model[1].register_forward_hook(
        lambda m, x, y: outputs.append(StorageWeakRef(y.untyped_storage()))
    )
    route.gradient()
    watch.remove()
    assert not outputs[-1].expired()
    gc.disable()
    try:
        del route
        assert outputs[-1].expired()
    finally:
        gc.enable()


class PeakBytes(TorchDispatchMode):
    """The most bytes that storages made inside held at once."""

    def __init__(self):
        super().__init__()
        self.peak = self.live = 0
        self._known = set()  # addresses

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._known |= {storage.data_ptr() for storage in storages(args)}  # from outside, if not known yet
        result = func(*args, **(kwargs or {}))
        for storage in storages(result):
            address, size = storage.data_ptr(), storage.nbytes()
            if address not in self._known and size > 0:
                self._known.add(address)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._release, address, size)
        return result

    def _release(self, address, size):
        self._known.discard(address)
        self.live -= size


def storages(values):
    """Those inside of torch.func's wrappers as well; tangents that are zero have none."""
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
    while any(map(is_functorch_wrapped_tensor, tensors)):
        tensors = [get_unwrapped(t) if is_functorch_wrapped_tensor(t) else t for t in tensors]
    return [tensor.untyped_storage() for tensor in tensors if not tensor._is_zerotensor()]


@pytest.mark.parametrize(
    ("route", "num_batches", "most"),
    [
        ("reverse", 1, 2.1),
        ("reverse", 2, 2.0 + 1 / 4 + 0.1),
        ("difference", 1, 3.01),
        ("difference", 2, 3.01),
        ("difference in float64", 1, 12.1),
        ("forward", 1, 4.7),
    ],
)
def test_what_a_product_takes_more_than_a_gradient(route, num_batches, most):
    """The snapshot, the sum, what autograd has found of the product but not summed; for graphs, a layer of four more.

    By differences the snapshot, the difference, a gradient and the sum. In float64 the last three count twice, and so
    do the model's copy, the vector and, in the first product, another difference. By forward derivatives the snapshot,
    the vector, the gradient and its derivative; the first product waits while it is compared with another one.
    """
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(256, 256), nn.Tanh())])
    batches = [(torch.randn(4, 256), torch.randn(4, 256)) for _ in range(num_batches)]
    size = sum(p.numel() for p in model.parameters())
    vector = torch.randn(size)
    with PeakBytes() as plain:
        mse(model, batches[0]).backward()
    assert plain.peak == pytest.approx(4 * size, rel=0.05)
    model.zero_grad()
    if route == "difference":  # float32 is good enough where gradients are small beside the curvature
        batches = [(x, model(x).detach() + 0.01 * y) for x, y in batches]
    with PeakBytes() as measured, hessian(model, mse, batches, hvp=route.split()[0]) as operator:
        operator.matvec(vector)
    assert most - 0.5 < (measured.peak - plain.peak) / (4 * size) <= most
