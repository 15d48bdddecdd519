"""What all signals keep to: `add`, `value`, and a state that goes on as the signal itself does.

Ladder: each signal against a fresh one that took over its state. Cannot see: whether a value is right.
"""

import inspect
import io
import math

import pytest
import torch

from edgewise import signals
from edgewise.ranks import Ranks
from edgewise.signals import losses, slopes
from edgewise.signals.losses import LossTrend, Overflows, RiseAlarm, SpikeGuard, Surge
from edgewise.signals.signal import Signal
from edgewise.signals.slopes import RateShare

NOISE = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def add_loss(signal, step):
    signal.add(1.0 + 0.1 * float(NOISE[step, 0]) + 5.0 * (step > 60))


def add_loss_to_guard(signal, step):
    signal.add(1.0 + 0.1 * float(NOISE[step, 0]) + 50.0 * (step == 60), recovery=0.01)


def add_loss_to_trend(signal, step):
    signal.add(3.0 / (1 + step) + 0.1 * float(NOISE[step, 0]) + 50.0 * (step == 60), step)


def add_loss_to_surge(signal, step):
    signal.add(1.0 + 0.1 * float(NOISE[step, 0]) + 5.0 * (step == 7) + 20.0 * (step in (9, 10)))


def add_overflow(signal, step):
    signal.add(math.nan if NOISE[step, 0] > 0 else 1.0, step)


def add_slopes(signal, step):
    """Of an update of ½|w|² from a noisy gradient."""
    w = torch.nn.Parameter(NOISE[step].clone())
    w.grad = w.detach() + NOISE[step + 1]
    signal.before_step([w])
    with torch.no_grad():
        w.sub_(0.1 * w.grad)
    signal.after_step([w])
    w.grad = w.detach() + NOISE[step + 2]
    signal.add([w], Ranks())


SIGNALS = {
    LossTrend: add_loss_to_trend,
    SpikeGuard: add_loss_to_guard,
    RiseAlarm: add_loss,
    Surge: add_loss_to_surge,
    Overflows: add_overflow,
    RateShare: add_slopes,
}
every_signal = pytest.mark.parametrize(("kind", "add"), SIGNALS.items(), ids=lambda each: each.__name__)


def test_every_signal_is_in_the_table():
    defined = {
        value
        for module in (losses, slopes)
        for _, value in inspect.getmembers(module, inspect.isclass)
        if value.__module__.startswith(signals.__name__) and not inspect.isabstract(value)
    }
    assert defined == set(SIGNALS)


@every_signal
def test_it_keeps_the_contract_and_is_final(kind, add):
    assert kind.__bases__ == (Signal,)
    own = vars(kind)
    assert "add" in own
    assert not {"state_dict", "load_state_dict"} & own.keys()
    signal = kind()
    assert add(signal, 0) is None
    assert isinstance(signal.value, float | bool)
    with pytest.raises(TypeError, match="abstract"):
        Signal()


@every_signal
@pytest.mark.parametrize("saved_after", [0, 1, 10, 30, 62])
def test_a_saved_signal_goes_on_as_the_signal_itself(kind, add, saved_after):
    signal, values = kind(), []
    for step in range(saved_after):
        add(signal, step)
    file = io.BytesIO()
    torch.save(signal.state_dict(), file)
    file.seek(0)
    again = kind()
    again.load_state_dict(torch.load(file, weights_only=True))
    for step in range(saved_after, 100):
        add(signal, step)
        add(again, step)
        values.append(signal.value)
        assert again.value == signal.value
        assert repr(again.state_dict()) == repr(signal.state_dict())
    assert len(set(values)) > 1 or (kind is Surge and saved_after > 20)  # which is of the first 20


@every_signal
def test_a_state_is_a_copy(kind, add):
    signal = kind()
    for step in range(30):
        add(signal, step)
    state = signal.state_dict()
    before = repr(state)
    for step in range(30, 40):
        add(signal, step)
    assert repr(state) == before != repr(signal.state_dict())


@every_signal
def test_a_state_has_numbers_flags_and_lists_of_tensors_alone_and_none_for_what_is_not_known_yet(kind, add):
    signal = kind()
    add(signal, 0)
    for name, value in signal.state_dict().items():
        tensors = isinstance(value, list) and all(isinstance(each, torch.Tensor) for each in value)
        is_not_known_yet = value is None is vars(kind())[name]
        assert tensors or isinstance(value, int | float) or is_not_known_yet, name
