"""What is said of a trial.

Ladder: made-up trials, whose advice is plain. Cannot see: whether their rates are right, see benchmarks/advice.py.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import edgewise as ew
from cases import mse
from edgewise.advice.path import Outcome, outcome_of, path_findings
from edgewise.advice.rates import LARGEST_WITHIN, Suggestion, suggest
from edgewise.advice.subject import a_subject
from edgewise.advice.trial import run_trial
from edgewise.advice.trials import Path, ShortRun, Trial

PATH = Path(
    rates=(1e-3, 2e-3), losses=(2.0, 1.5), diverged=False, num_step_backs=0, climbed=True, fallback=None
)
TRIAL = Trial(
    lr=1e-3,
    ceiling=65.0,
    start=2.0,
    path=PATH,
    runs=(
        ShortRun(lr=0.01, losses=(2.0, 1.0), final=1.0),
        ShortRun(lr=0.04, losses=(2.0, 1.5), final=1.5),
    ),
    num_updates=190,
    num_forwards=30,
    max_updates=200,
    num_passes=1,
)
SUGGESTION = Suggestion(
    lr=0.01,
    lr_largest=0.1,
    lr_failed=None,
    lr_short=0.01,
    lr_bearable=0.02,
    lr_path=2e-3,
    pattern="climbs",
    needs_warmup=True,
    warmup_steps=40,
    warmup_is_bound=False,
    reason="the best of the short runs",
)


def lines(lr=1e-3, trial=TRIAL, optimizer=None, **changed):
    outcome = Outcome(trial=trial, suggestion=replace(SUGGESTION, **changed), reason="")
    return {line.name: line for line in path_findings(SimpleNamespace(rate=lr, optimizer=optimizer), outcome)}


@pytest.mark.parametrize(
    ("lr", "level", "advice"),
    [
        (1e-3, "notice", "Train with 0.01, after a warmup and with a decay."),
        (0.006, "good", "Leave yours: it is as good."),
        (0.019, "good", "Leave yours: it is as good."),
        (0.021, "notice", "Train with 0.01, after a warmup and with a decay."),
    ],
)
def test_a_rate_within_a_factor_of_two_is_as_good(lr, level, advice):
    found = lines(lr)["suggested rate"]
    assert (found.level, found.advice) == (level, advice)
    assert "the best of the short runs." in found.meaning
    assert found.evidence["cost"] == 200


@pytest.mark.parametrize("cls", [ew.GIAdam, ew.GIAdamW, torch.optim.AdamW])
def test_of_what_trials_of_gi_adam_show_a_fifth_is_taken(cls):
    model = torch.nn.Linear(4, 1)
    given = model, cls(model.parameters(), lr=0.01), mse, [(torch.randn(16, 4), torch.randn(16, 1))] * 4
    subject = a_subject(*given, seed=0)
    outcome, shown = (
        outcome_of(subject, 40, lambda done, total: None),
        suggest(run_trial(*given, max_updates=40)),
    )
    share = 1.0 if cls is torch.optim.AdamW else 0.2
    assert outcome.lr == pytest.approx(share * shown.lr)
    assert outcome.lr_largest == pytest.approx(share * shown.lr_largest)
    line = path_findings(subject, outcome)[0]
    assert line.value == outcome.lr
    assert ("a fifth of what its trials show" in line.shown) == (share < 1)


@pytest.mark.parametrize(
    ("lr", "failed", "level"),
    [
        (0.05, None, "good"),
        (0.2, None, "notice"),  # above it, by less than it may be wrong
        (1.1 * 0.1 * LARGEST_WITHIN, None, "bad"),
        (0.2, 0.16, "bad"),  # seen to fail
        (0.05, 0.16, "good"),
    ],
)
def test_a_rate_that_may_fail_is_told_by_how_sure_that_is(lr, failed, level):
    found = lines(lr, lr_failed=failed)["largest rate that trains"]
    assert found.level == level
    assert found.advice == ("" if level == "good" else "Lower the rate, to 0.01.")
    assert ("a short run to 0.16 failed" if failed else "no short run failed, up to 0.04") in found.meaning


@pytest.mark.parametrize(
    ("changed", "shown", "advice"),
    [
        ({}, "40 updates", "Warm up over 40 updates, linearly"),
        ({"warmup_is_bound": True, "pattern": "not reached"}, "at least 40 updates", "over at least 40 updates"),
        ({"warmup_steps": 3, "needs_warmup": False, "pattern": "at once"}, "3 updates", "it needs no warmup"),
    ],
)  # fmt: skip
def test_the_length_of_the_warmup(changed, shown, advice):
    found = lines(**changed)["length of a linear warmup"]
    assert found.shown == shown
    assert advice in found.advice


def test_a_path_that_was_too_short_advises_no_warmup_and_none_to_leave_out():
    short = {"needs_warmup": None, "warmup_steps": 8, "warmup_is_bound": True}
    found = lines(**short)["length of a linear warmup"]
    assert (found.ok, found.advice, found.evidence["at_least"]) == (False, "", 8)
    assert "max_updates is too small" in found.meaning
    suggestion = replace(SUGGESTION, **short)
    assert Outcome(trial=TRIAL, suggestion=suggestion, reason="").warmup_steps is None


def test_what_was_tested_with_longer_trials_says_so():
    told = "tests of 200 updates"
    short = lines(trial=replace(TRIAL, max_updates=60))
    assert all(told in short[name].shown for name in ("suggested rate", "largest rate that trains"))
    assert all(told not in line.shown for line in lines().values())


def test_a_rate_that_needs_no_warmup_is_not_advised_with_one():
    found = lines(needs_warmup=False, warmup_steps=3)
    assert found["suggested rate"].advice == "Train with 0.01, with a decay."
    assert "no warmup" in found["length of a linear warmup"].advice


def test_no_warmup_is_a_length_of_zero():
    calm = replace(SUGGESTION, needs_warmup=False, warmup_steps=3)
    assert Outcome(trial=TRIAL, suggestion=calm, reason="").warmup_steps == 0
    assert Outcome(trial=TRIAL, suggestion=SUGGESTION, reason="").warmup_steps == 40
    assert Outcome(trial=None, suggestion=None, reason="why").warmup_steps is None


def test_a_trial_that_told_nothing_advises_nothing():
    nothing = dict.fromkeys(
        ("lr", "lr_largest", "lr_short", "lr_bearable", "needs_warmup", "warmup_steps"), None
    )
    outcome = Outcome(
        trial=TRIAL, suggestion=replace(SUGGESTION, **nothing), reason="no short run lowered the loss"
    )
    for line in path_findings(SimpleNamespace(rate=1e-3), outcome):
        assert (line.ok, line.value, line.advice) == (False, None, "")
        assert "no short run lowered the loss" in line.meaning
    assert outcome.as_dict()["path"]["lr"] == [1e-3, 2e-3]


def test_a_trial_that_could_not_be_made_says_why():
    outcome = Outcome(trial=None, suggestion=None, reason="the loss of a batch has no graph")
    assert all("has no graph" in line.meaning for line in path_findings(SimpleNamespace(rate=1.0), outcome))
    assert outcome.as_dict() == {"path": None, "runs": [], "reason": "the loss of a batch has no graph"}
