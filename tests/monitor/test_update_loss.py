"""A monitor that observes an UpdateLoss: the curvature of the update's own loss.

Ladder: dense float64 Hessian of Σ shareᵢ·Lᵢ → a monitor on the batch that is not split. Cannot see: a loss_fn that
returns another loss in a measurement than in training.
"""

import pytest
import torch

import edgewise as ew
from cases import MLP, OPT, mse
from loss.test_update_loss import FACTORS, added, every_factor
from oracles import dense_gradient, dense_hessian, preconditioned, top

SHARES = (0.2, 1.3, 0.7)


def weighted(dense, model, batches, shares):
    return sum(share * dense(model, mse, [batch]) for share, batch in zip(shares, batches, strict=True))


def monitored(option="adam", loss_fn=mse, **options):
    model, batches = MLP.build()
    optimizer = OPT[option].make(model)
    options = {"every": 1, "rtol": 1e-6} | options
    return ew.UpdateLoss(model, loss_fn), batches, optimizer, ew.Monitor(model, optimizer, mse, **options)


def expected_row(model, batches, shares):
    """Sharpness, and of P = (1 − β₁)(|g| + ε) at Adam's first update."""
    hessian = weighted(dense_hessian, model, batches, shares)
    gradient = weighted(dense_gradient, model, batches, shares)
    return top(hessian), top(preconditioned(hessian, 0.1 * (gradient.abs() + 1e-8)))


def test_shares_that_are_given_weight_the_hessian_and_the_preconditioner():
    update_loss, batches, _, monitor = monitored()
    for batch, share in zip(batches, SHARES, strict=True):
        update_loss.add(batch, 1.0, share=share)
    row = monitor.observe(update_loss)
    sharpness, preconditioned_sharpness = expected_row(update_loss.model, batches, SHARES)
    assert row.sharpness == pytest.approx(float(sharpness), rel=1e-5)
    assert row.preconditioned_sharpness == pytest.approx(float(preconditioned_sharpness), rel=1e-5)
    assert row.status is ew.Status.CONVERGED


@every_factor
def test_shares_that_are_found_do_as_well(factor):
    update_loss, batches, _, monitor = monitored()
    row = monitor.observe(added(update_loss, batches, factor))
    shares = [factor(i, [5, 9, 2]) for i in range(3)]
    sharpness, preconditioned_sharpness = expected_row(update_loss.model, batches, shares)
    assert row.sharpness == pytest.approx(float(sharpness), rel=1e-5)
    assert row.preconditioned_sharpness == pytest.approx(float(preconditioned_sharpness), rel=1e-5)


def test_micro_batches_by_their_sizes_are_the_batch_they_make_up():
    update_loss, batches, optimizer, monitor = monitored()
    row = monitor.observe(added(update_loss, batches, FACTORS["by their sizes"]))
    whole = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    other = ew.Monitor(update_loss.model, optimizer, mse, every=1, rtol=1e-6).observe(whole)
    assert row.sharpness == pytest.approx(other.sharpness, rel=1e-6)
    assert row.preconditioned_sharpness == pytest.approx(other.preconditioned_sharpness, rel=1e-6)


def test_one_measurement_starts_from_the_one_before():
    update_loss, batches, optimizer, monitor = monitored(rtol=1e-2)
    products = []
    for _ in range(3):
        optimizer.zero_grad()
        for batch in batches:
            loss = mse(update_loss.model, batch) / 3
            loss.backward()
            update_loss.add(batch, loss)
        products.append(monitor.observe(update_loss).num_hvps)
        optimizer.step()
    assert max(products[1:]) < products[0]


def test_the_loss_function_is_that_of_the_update_loss():
    double = lambda model, batch: 2 * mse(model, batch)
    update_loss, batches, _, monitor = monitored("sgd", double)
    for batch in batches:
        update_loss.add(batch, 1.0, share=1.0)
    expected = 2 * top(weighted(dense_hessian, update_loss.model, batches, (1.0, 1.0, 1.0)))
    assert monitor.observe(update_loss).sharpness == pytest.approx(float(expected), rel=1e-5)


def test_batches_of_the_monitor_s_own_stay_in_charge():
    model, batches = MLP.build()
    optimizer = OPT["sgd"].make(model)
    fixed = ew.Monitor(model, optimizer, mse, every=1, rtol=1e-6, batches=batches[:1])
    update_loss = ew.UpdateLoss(model, lambda model, batch: 1 / 0)
    update_loss.add(batches[2], 1.0)
    assert fixed.observe(update_loss).sharpness == pytest.approx(
        float(top(dense_hessian(model, mse, batches[:1]))), rel=1e-5
    )


def test_batches_that_are_no_list_of_alike_ones_are_micro_batches_all_the_same():
    """What a training loop takes, its monitor takes: here, a tensor among floats."""
    model = torch.nn.Linear(2, 1, bias=False).double()
    loss_fn = lambda model, scale: 0.5 * scale * model.weight.square().sum()
    update_loss = ew.UpdateLoss(model, loss_fn)
    update_loss.add(3.0, 1.0, share=1.0)
    update_loss.add(torch.tensor(5.0, dtype=torch.float64), 1.0, share=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert ew.Monitor(model, optimizer, loss_fn).observe(update_loss).sharpness == pytest.approx(5.5)


@pytest.mark.parametrize("every", [1, 2])
def test_what_cannot_be_observed_is_refused_before_any_compute(every):
    calls = []
    loss_fn = lambda model, batch: calls.append(1) or mse(model, batch)
    update_loss, batches, _, monitor = monitored(loss_fn=loss_fn, every=every)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"holds no micro-batch: call add\(batch, loss\)"):
            monitor.observe(update_loss)
        other = ew.UpdateLoss(MLP.build()[0], loss_fn)
        other.add(batches[0], 1.0)
        with pytest.raises(ValueError, match="the UpdateLoss is of another model than the Monitor"):
            monitor.observe(other)
    assert calls == []
    update_loss.add(batches[0], 70.0)
    with pytest.raises(ew.LossError, match="times what loss_fn returns for their batches"):
        monitor.observe(update_loss)


def test_observing_it_leaves_no_trace():
    model, batches = MLP.build()
    model.insert(2, torch.nn.Dropout(0.05))
    optimizer = OPT["adamw"].make(model)
    update_loss, monitor = ew.UpdateLoss(model, mse), ew.Monitor(model, optimizer, mse, every=1)
    for batch in batches:
        (mse(model, batch) / 3).backward()
        update_loss.add(batch, mse(model, batch) / 3)
    row = ew.assert_no_side_effects(model, optimizer, lambda: monitor.observe(update_loss))
    assert row.step == 0
