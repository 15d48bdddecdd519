"""A warmup's report in one line.

Oracle: reports made by hand. Cannot see: whether the numbers are those of the run; test_common and the warmups' own
tests do.
"""

import pytest

from edgewise import Status, WarmupReport


def report(**changes):
    return WarmupReport(
        **{
            "warmup": "CatapultWarmup",
            "updates": 1_000_000,
            "finished": True,
            "lr_start": 1.234567e-7,
            "lr": 1.234567e-5,
            "lr_target": 1.234567e-5,
            "steps_to_target": 99,
            "steps_saved": None,
            "num_catapults": 3,
            "num_step_backs": 1,
            "num_spikes": 2,
            "lr_held": None,
            "num_searches": 12,
            "num_forwards": 1000,
            "overhead": 0.01,
            "fallback": None,
        }
        | changes
    )


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"finished": False}, Status.UNDER_WAY),
        ({}, Status.AT_TARGET),
        ({"lr_held": 1e-6}, Status.HELD_BELOW_TARGET),
        ({"fallback": "a reason\nof two lines"}, Status.FELL_BACK),
        ({"fallback": "a reason", "finished": False, "lr_held": 1e-6}, Status.FELL_BACK),
    ],
)
def test_the_line_and_whether_the_warmup_did_its_work(changes, status):
    found = report(**changes)
    assert found.status is status
    assert found.ok is (status is not Status.FELL_BACK)
    expected = f"CatapultWarmup at 1.235e-05 of 1.235e-05 ({status.name}, 1000000 updates, 1000 forwards)"
    assert str(found) == expected
    assert len(expected) <= 100


def test_the_metrics_are_the_numbers_by_flat_names():
    metrics = report(finished=False).metrics()
    assert metrics == {
        "edgewise/warmup/updates": 1_000_000,
        "edgewise/warmup/finished": 0,
        "edgewise/warmup/lr_start": 1.234567e-7,
        "edgewise/warmup/lr": 1.234567e-5,
        "edgewise/warmup/lr_target": 1.234567e-5,
        "edgewise/warmup/steps_to_target": 99,
        "edgewise/warmup/num_catapults": 3,
        "edgewise/warmup/num_step_backs": 1,
        "edgewise/warmup/num_spikes": 2,
        "edgewise/warmup/num_searches": 12,
        "edgewise/warmup/num_forwards": 1000,
        "edgewise/warmup/overhead": 0.01,
        "edgewise/warmup/status": 40,
    }
    counts = {"updates", "finished", "steps_to_target", "num_forwards", "status"}
    assert {type(metrics[f"edgewise/warmup/{name}"]) for name in counts} == {int}


def test_what_becomes_known_is_in_the_metrics_and_the_prefix_is_the_user_s():
    metrics = report(lr_held=1e-6, steps_saved=12.5, fallback="a reason").metrics(prefix="train.")
    assert (metrics["train.warmup/lr_held"], metrics["train.warmup/steps_saved"]) == (1e-6, 12.5)
    assert metrics["train.warmup/status"] == Status.FELL_BACK.code
    assert {type(value) for value in metrics.values()} == {int, float}
    with pytest.raises(TypeError, match="prefix must be a str"):
        report().metrics(None)
