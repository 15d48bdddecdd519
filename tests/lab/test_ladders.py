"""What is trained next: rates upwards until training fails.

Oracle: ladders written out by hand, with made-up outcomes. Cannot see: whether training is monotone in the rate.
"""

import pytest

from edgewise.lab.ladders import Climb, Work, ladders
from edgewise.lab.results.index import FigureRuns
from edgewise.lab.results.store import Store
from lab_cases import diverged, made, save, tiny


def rung(lr, **changes):
    return tiny(optimizer={"lr": lr}, **changes)


LOW, MIDDLE, HIGH = (rung(lr) for lr in (0.1, 0.2, 0.4))
OTHER = tiny(warmup={"steps": 2}, optimizer={"lr": 0.1})


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "out", [FigureRuns(figure="fig4", scale="demo", run_ids=())])


def failed(config):
    return made(config, test_accuracy=0.1)


def test_a_ladder_differs_in_the_rate_alone_and_goes_up():
    seeds = [rung(lr, seed=1) for lr in (0.4, 0.1)]
    assert ladders([HIGH, seeds[0], OTHER, LOW, seeds[1], MIDDLE]) == [
        (LOW, MIDDLE, HIGH),
        (seeds[1], seeds[0]),
        (OTHER,),
    ]


def test_the_next_rung_waits_for_the_one_below(store):
    work = Work([(LOW, MIDDLE, HIGH), (OTHER,)], store)
    assert work.start() == [LOW, OTHER]
    assert work.start() == []  # each once
    for config, following in ((LOW, [MIDDLE]), (OTHER, []), (MIDDLE, [HIGH]), (HIGH, [])):
        assert work.beyond() == set()
        save(store, made(config))
        assert work.after(config) == following


def test_who_climbs_alone_gets_what_is_left_of_the_ladder_and_whether_a_rung_below_trained(store):
    work = Work([(LOW, MIDDLE, HIGH), (OTHER,)], store)
    work.start()
    assert work.climb(LOW) == Climb(rungs=(LOW, MIDDLE, HIGH), trained_below=False)
    assert work.climb(OTHER) == Climb(rungs=(OTHER,), trained_below=False)
    save(store, made(LOW))
    assert work.after(LOW) == [MIDDLE]
    assert work.climb(MIDDLE) == Climb(rungs=(MIDDLE, HIGH), trained_below=True)
    assert work.climb(LOW) == Climb(rungs=(LOW,), trained_below=False)


@pytest.mark.parametrize("end", [failed, lambda config: diverged(made(config))], ids=["failed", "diverged"])
def test_a_ladder_ends_where_training_fails(store, end):
    work = Work([(LOW, MIDDLE, HIGH)], store)
    work.start()
    save(store, made(LOW))
    assert work.after(LOW) == [MIDDLE]
    save(store, end(MIDDLE))
    assert work.after(MIDDLE) == []
    assert work.beyond() == {HIGH.run_id}


def test_rates_too_small_to_learn_anything_do_not_end_a_ladder(store):
    work = Work([(LOW, MIDDLE, HIGH)], store)
    work.start()
    save(store, failed(LOW))
    assert work.after(LOW) == [MIDDLE]
    save(store, made(MIDDLE))
    assert work.after(MIDDLE) == [HIGH]


def test_a_ladder_goes_on_where_it_was_left(store):
    save(store, made(LOW))
    assert Work([(LOW, MIDDLE, HIGH)], store).start() == [MIDDLE]
    save(store, failed(MIDDLE))
    finished = Work([(LOW, MIDDLE, HIGH)], store)
    assert finished.start() == []
    assert finished.beyond() == {HIGH.run_id}


def test_what_another_figure_needs_is_trained_beyond_the_boundary_too(store):
    work = Work([(LOW, MIDDLE, HIGH), (HIGH,)], store)
    assert work.configs == (LOW, MIDDLE, HIGH)
    assert work.start() == [LOW, HIGH]
    save(store, diverged(made(LOW)))
    assert work.after(LOW) == []
    assert work.beyond() == {MIDDLE.run_id}


def test_a_rung_that_another_ladder_has_begun_is_waited_for_not_trained_twice(store):
    work = Work([(LOW, MIDDLE), (LOW, HIGH)], store)
    assert work.start() == [LOW]
    save(store, made(LOW))
    assert work.after(LOW) == [MIDDLE, HIGH]
