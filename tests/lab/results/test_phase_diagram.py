"""Phase diagrams of hand-made runs.

Oracle: tables written by hand, following the paper's definition of failure. Cannot see: whether the threshold of
failure is a good one.
"""

import math

import numpy as np
import pytest

from edgewise.lab.results.phase_diagram import (
    TEST_ACCURACY,
    TEST_LOSS,
    Cell,
    CellValue,
    cell_of,
    phase_diagram,
)
from lab_cases import diverged, made, tiny

RATES, WARMUPS = (0.1, 0.2, 0.4, 0.8), (1, 4)
T, F, D, M = Cell.TRAINED, Cell.FAILED, Cell.DIVERGED, Cell.MISSING


def run_at(lr, steps, kind, loss=0.2, seed=0):
    run = made(tiny(optimizer={"lr": lr}, warmup={"steps": steps}, seed=seed), test_loss=loss)
    if kind is D:
        return diverged(run)
    return made(run.config, test_loss=loss, test_accuracy=0.9 if kind is T else 0.1)


def runs_of(kinds, losses=None):
    """From a table of kinds, rows the warmups."""
    return [
        run_at(lr, steps, kind, 0.2 if losses is None else losses[i][j])
        for i, steps in enumerate(WARMUPS)
        for j, lr in enumerate(RATES)
        if (kind := kinds[i][j]) is not M
    ]


def diagram_of(kinds, losses=None):
    return phase_diagram(runs_of(kinds, losses))


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        ({}, T),
        ({"test_accuracy": 0.15}, T),  # 1.5 × a random guess of ten classes
        ({"test_accuracy": 0.149}, F),
        ({"test_loss": 0.449}, T),
        ({"test_loss": 0.45}, F),  # the best constant output
        ({"test_loss": 1e9}, F),
        ({"diverged": True}, D),
        ({"diverged": True, "test_loss": math.nan, "test_accuracy": 0.1}, D),
        ({"num_classes": 4, "test_accuracy": 0.3}, F),
        (
            {"best_test_accuracy": 0.15, "guess_accuracy": 0.1, "test_accuracy": 0.1, "test_loss": 1e9},
            T,
        ),  # it had learned
        ({"best_test_accuracy": 0.149, "guess_accuracy": 0.1, "test_accuracy": 0.149}, F),
        ({"best_test_accuracy": 0.20000001, "guess_accuracy": 0.2}, F),  # always the same answer
        ({"best_test_accuracy": 0.9, "guess_accuracy": 0.1, "diverged": True}, D),
    ],
)
def test_what_became_of_a_run(outcome, kind):
    assert cell_of(made(tiny(), **outcome).outcome) is kind


def test_rows_are_warmups_and_columns_rates_ascending():
    runs = [run_at(lr, steps, T, loss=lr + steps) for lr in reversed(RATES) for steps in reversed(WARMUPS)]
    diagram = phase_diagram(runs)
    assert diagram.lr_targets == RATES
    assert diagram.warmups == WARMUPS
    np.testing.assert_allclose(diagram.mean, [[lr + steps for lr in RATES] for steps in WARMUPS])
    assert diagram.at(0.4, 4) == pytest.approx(4.4)


def test_a_cell_trained_where_all_its_seeds_did_and_has_their_deviation():
    kinds = [[T, F, T, D], [T, M, T, T]]
    seeds = [run_at(0.1, 1, F, seed=1), run_at(0.4, 1, T, loss=0.3, seed=1)]
    diagram = phase_diagram([*runs_of(kinds), *seeds])
    assert diagram.trained(1) == [0.4]
    assert diagram.trained(4) == [0.1, 0.4, 0.8]
    assert diagram.deviation_at(0.4, 1) == pytest.approx(0.1 / math.sqrt(2))
    assert math.isnan(diagram.deviation_at(0.1, 4))  # of one seed
    assert math.isnan(diagram.deviation_at(0.3, 4))


@pytest.mark.parametrize(
    ("row", "boundary"),
    [
        ([T, T, T, T], 0.8),
        ([T, T, F, F], 0.2),
        ([T, T, D, D], 0.2),
        ([T, T, M, T], 0.2),
        ([T, F, T, T], 0.1),  # an island beyond does not count
        ([F, T, T, F], 0.4),  # too small a rate to learn anything is no boundary
        ([F, F, T, D], 0.4),
        ([F, D, T, T], 0.0),
        ([F, F, F, F], 0.0),
        ([D, D, D, D], 0.0),
    ],
)
def test_the_boundary_is_the_last_rate_before_training_fails(row, boundary):
    diagram = diagram_of([row, [T] * 4])
    assert diagram.boundary(1) == boundary
    assert diagram.boundary(4) == 0.8


def test_the_best_rate_is_the_best_of_the_trained_cells():
    diagram = diagram_of([[T, T, F, D], [T, F, T, T]], [[0.3, 0.2, 0.01, 0.01], [0.3, 0.01, 0.25, 0.35]])
    assert diagram.best(1) == (0.2, pytest.approx(0.2))
    assert diagram.best(4) == (0.4, pytest.approx(0.25))


def test_a_row_in_which_nothing_trained_has_no_best():
    assert diagram_of([[F, D, M, F], [T] * 4]).best(1)[1] == math.inf


def test_a_missing_cell_is_not_a_failed_one():
    diagram = diagram_of([[T, M, F, D], [T] * 4])
    assert diagram.cells[0].tolist() == [T, M, F, D]
    assert np.isnan(diagram.mean[0, 1])
    assert np.isnan(diagram.mean[0, 3])
    assert np.isfinite(diagram.mean[0, 2])


def test_seeds_give_their_mean_loss_and_their_worst_kind():
    runs = [
        *(run_at(0.1, 1, kind, loss, seed) for seed, (kind, loss) in enumerate([(T, 0.1), (T, 0.3)])),
        *(run_at(0.2, 1, kind, loss, seed) for seed, (kind, loss) in enumerate([(T, 0.1), (F, 0.4)])),
        *(
            run_at(0.4, 1, kind, loss, seed)
            for seed, (kind, loss) in enumerate([(D, 0.1), (F, 0.4), (T, 0.1)])
        ),
    ]
    for order in (runs, runs[::-1]):
        diagram = phase_diagram(order)
        assert diagram.cells[0].tolist() == [T, F, D]
        np.testing.assert_allclose(diagram.mean[0, :2], [0.2, 0.25])
        assert diagram.boundary(1) == 0.1


@pytest.mark.parametrize(("value", "text"), [(1.234, "1.23"), (-0.001, "0.00"), (-1.5, "-1.50")])
def test_a_cell_shows_a_number_without_a_needless_minus(value, text):
    assert TEST_LOSS.text(value) == text


def test_catapults_are_the_last_row_and_seeds_have_a_deviation():
    runs = [
        run_at(0.1, steps, T, loss, seed) for steps, loss, seed in [(4, 0.1, 0), (4, 0.3, 1), (1, 0.2, 0)]
    ]
    catapults = made(tiny(optimizer={"lr": 0.1}, warmup={"kind": "catapult"}), test_loss=0.5)
    diagram = phase_diagram([catapults, *runs])
    assert diagram.warmups == (1, 4, "catapults")
    assert diagram.at(0.1, "catapults") == 0.5
    assert diagram.deviation[1, 0] == pytest.approx(math.sqrt(0.02))
    assert np.isnan(diagram.deviation[0, 0])


def test_the_best_of_accuracies_is_the_largest():
    runs = [
        made(tiny(optimizer={"lr": lr}), test_accuracy=a) for lr, a in [(0.1, 0.7), (0.2, 0.9), (0.4, 0.8)]
    ]
    assert phase_diagram(runs, TEST_ACCURACY).best(3) == (0.2, pytest.approx(0.9))


def test_a_value_that_is_not_of_training_shows_whether_or_not_it_trained():
    value = CellValue(label="updates", of=lambda run: run.outcome["num_steps"], of_training=False)
    failed = run_at(0.1, 1, F)
    assert phase_diagram([failed], value).cells[0, 0] is T
    assert phase_diagram([failed], value).at(0.1, 1) == 6


def test_no_runs_are_an_empty_diagram():
    diagram = phase_diagram([])
    assert diagram.lr_targets == diagram.warmups == ()
