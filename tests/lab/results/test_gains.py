"""What warmup gains, and how the rule fares by which it is needed.

Oracle: gains, distances and counts worked out by hand from made-up runs. Cannot see: whether real runs follow the rule.
"""

import math

import pytest

from edgewise.lab.results.gains import Gain, gains, out_of_reach, rule
from edgewise.lab.results.phase_diagram import TEST_ACCURACY
from edgewise.lab.results.runs import Absent
from lab_cases import changed, made, tiny

LENGTHS = (1, 2, 4)


def run(accuracy, steps=1, **optimizer):
    sgd = {"name": "sgd", "lr": 4.0, "lr_unit": "1/sharpness"}
    return made(tiny(optimizer=sgd | optimizer, warmup={"steps": steps}), test_accuracy=accuracy)


def row(*accuracies, **optimizer):
    """The runs of one rate at the lengths; nothing where training was not tried, as beyond the boundary."""
    pairs = zip(LENGTHS, accuracies, strict=True)
    return [run(accuracy, steps, **optimizer) for steps, accuracy in pairs if accuracy is not None]


def values(runs):
    return [gain.value for gain in gains(runs, TEST_ACCURACY)]


@pytest.mark.parametrize(
    ("accuracies", "value"),
    [
        ((0.8, 0.7, 0.85), 0.05),
        ((0.8, 0.7, 0.75), -0.05),
        ((0.8, 0.05, 0.9), 0.1),  # a length that fails is no best one
        ((0.05, 0.7, 0.05), math.inf),
        ((None, 0.7, None), math.inf),  # beyond the boundary of its row, not tried
        ((0.8, 0.05, None), -math.inf),
    ],
)
def test_the_gain_is_of_the_best_length_over_none(accuracies, value):
    assert values(row(*accuracies)) == [pytest.approx(value)]
    assert out_of_reach(row(*accuracies), TEST_ACCURACY) == 0


def test_what_trains_with_no_length_is_out_of_reach():
    runs = [*row(0.05, 0.05, None), *row(0.8, 0.9, 0.9, lr=2.0)]
    assert values(runs) == [pytest.approx(0.1)]
    assert out_of_reach(runs, TEST_ACCURACY) == 1


def test_each_seed_is_on_its_own():
    first = row(0.8, 0.9, 0.7)
    second = [made(changed(r.config, seed=1), test_accuracy=0.5) for r in first]
    assert values([*first, *second]) == [pytest.approx(0.1), 0.0]


def test_what_waits_is_not_known():
    first, *others = row(0.8, 0.9, 0.7)
    waiting = Absent(run_id=first.config.run_id, config=first.config, failed=False, reason="not trained yet")
    assert values([waiting, *others]) == []
    assert out_of_reach([waiting, *others], TEST_ACCURACY) == 0


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradient_descent_starts_stable_below_two_over_the_sharpness(momentum):
    """With momentum too, whose late limit is 3.8: at the first update it has yet to build up."""
    runs = [r for lr in (1.0, 2.0, 8.0) for r in row(0.8, 0.9, 0.7, lr=lr, momentum=momentum)]
    assert [gain.distance for gain in gains(runs, TEST_ACCURACY)] == [0.5, 1.0, 4.0]


def start(sharpness, **changes):
    optimizer = {"name": "adam", "lr": 1e-3} | changes.pop("optimizer", {})
    config = tiny(
        optimizer=optimizer,
        warmup={"steps": 1},
        num_steps=1,
        measure=("preconditioned_sharpness",),
        **changes,
    )
    return made(config, {"preconditioned_sharpness": sharpness})


def test_adam_s_distance_is_by_the_start_of_its_own_seed_and_optimizer():
    """η·λ/38: 0.01 · 38,000 / 38 = 10."""
    adam = row(0.8, 0.9, 0.7, name="adam", lr=0.01, lr_unit="absolute")
    others = [start(38.0, seed=1), start(38.0, optimizer={"name": "gi-adam"}), start(38.0, loss="xent")]
    (gain,) = gains([start(38_000.0), *adam, *others], TEST_ACCURACY)
    assert gain.distance == pytest.approx(10.0)
    assert gains([*adam, *others], TEST_ACCURACY) == ()  # its start was not measured


def of(distance, value):
    return Gain(config=tiny(), distance=distance, value=value)


def test_the_rule_is_counted_both_ways():
    found = [of(0.5, 0.0), of(0.6, 0.02), of(0.9, -math.inf), of(1.0, 0.0), of(2.0, 0.011), of(3.0, math.inf)]
    its = rule(found, 0.01)
    assert (its.below, its.missed, its.beyond, its.found, its.decided) == (3, 1, 3, 2, 1)
    assert its.onset == of(2.0, 0.011)


@pytest.mark.parametrize(
    ("found", "onset"),
    [
        ([of(2.0, 0.1), of(4.0, 0.0)], None),
        ([of(2.0, 0.1), of(4.0, 0.1)], 2.0),
        ([of(2.0, 0.1), of(2.0, 0.0), of(4.0, 0.1)], 4.0),  # at every seed
        ([], None),
    ],
)
def test_the_onset_is_where_it_gains_from_there_on(found, onset):
    its = rule(found, 0.01).onset
    assert (its and its.distance) == onset
