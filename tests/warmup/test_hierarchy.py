"""Classes are abstract or final: a concrete method of this package is never overridden, an abstract class never made.

Ladder: the classes themselves, walked. Cannot see: methods that are replaced on an object.
"""

import inspect

import pytest

from edgewise import CatapultWarmup, EdgeWarmup, LinearWarmup
from edgewise.signals.losses import LossTrend
from edgewise.signals.signal import Signal
from edgewise.signals.slopes import RateShare
from edgewise.warmup.climb import Climb
from edgewise.warmup.copies import NoCopies, ParameterCopies
from edgewise.warmup.followed import WarmupThenUntil
from edgewise.warmup.then import WarmupSequence, WarmupThen
from edgewise.warmup.updates import UpdateSchedule

FINAL = (
    LinearWarmup,
    CatapultWarmup,
    EdgeWarmup,
    LossTrend,
    RateShare,
    Climb,
    NoCopies,
    WarmupThen,
    WarmupThenUntil,
)


def own_classes(kind):
    return [base for base in kind.__mro__ if base.__module__.startswith("edgewise.")]


def subclasses(kind):
    own = [sub for sub in kind.__subclasses__() if sub.__module__.startswith("edgewise.")]
    return own + [deeper for sub in own for deeper in subclasses(sub)]


def is_method(value):
    return inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod)


@pytest.mark.parametrize("kind", FINAL, ids=lambda kind: kind.__name__)
def test_no_concrete_method_is_overridden(kind):
    seen = {}
    for base in reversed(own_classes(kind)):
        for name, value in vars(base).items():
            if is_method(value) and not name.startswith("__"):
                assert name not in seen or seen[name], f"{base.__name__}.{name} overrides a concrete method"
                seen[name] = getattr(value, "__isabstractmethod__", False)


@pytest.mark.parametrize("root", [UpdateSchedule, Signal, ParameterCopies, WarmupSequence])
def test_what_has_subclasses_is_abstract_and_the_rest_is_complete(root):
    kinds = [root, *subclasses(root)]
    assert set(kinds) & set(FINAL)
    for kind in kinds:
        abstract = {n for n in dir(kind) if getattr(getattr(kind, n, None), "__isabstractmethod__", False)}
        assert bool(abstract) == bool(subclasses(kind)), kind.__name__
