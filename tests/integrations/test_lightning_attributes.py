"""Attributes of modules, brought back. Ladder: copies made before; what is written to them inside, by hand."""

import copy
from collections import defaultdict, deque

import pytest
import torch
from torch import nn

pytest.importorskip("lightning.pytorch")

from edgewise.integrations.lightning.attributes import attributes_restored


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.number, self.text, self.none = 1, "a", None
        self.total = torch.tensor([1.0, float("nan")])
        self.outputs, self.seen, self.latest = [1, [2]], {3}, deque([4], maxlen=2)
        self.by_name = {"losses": [5], "nested": {"more": [6]}}
        self.lists = defaultdict(list, a=[7])
        self.loop = []
        self.loop.append(self.loop)

    def write(self):
        self.number, self.text, self.none = 2, "b", 0
        self.total += 1
        self.outputs.append(3)
        self.outputs[1].clear()
        self.seen.add(4)
        self.latest.extend([5, 6])
        self.by_name["losses"].append(6)
        self.by_name["nested"]["more"] = None
        self.lists["b"].append(8)
        self.made = torch.ones(1)
        del self.loop


def contents(module):
    return {name: value for name, value in vars(module).items() if name not in vars(nn.Module())}


def test_all_kinds_come_back():
    module = Counts()
    objects, before = dict(contents(module)), copy.deepcopy(contents(module))
    with attributes_restored([module]):
        module.write()
        assert module.number == 2
    after = contents(module)
    assert after.keys() == before.keys()
    assert all(after[name] is objects[name] for name in objects)
    assert torch.equal(after["total"], before["total"]) is False  # NaN
    assert torch.equal(after["total"].nan_to_num(), before["total"].nan_to_num())
    kinds = ("number", "text", "none", "outputs", "seen", "latest", "by_name", "lists")
    assert [after[name] for name in kinds] == [before[name] for name in kinds]
    assert after["loop"][0] is after["loop"]


def test_they_come_back_after_an_exception_and_the_modules_below_are_left_alone():
    module = nn.Sequential(Counts(), Counts())

    def fail():
        with attributes_restored([module, module[0]]):
            module[0].write()
            module[1].write()
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fail()
    assert [inner.number for inner in module] == [1, 2]


def test_a_tensor_that_is_replaced_is_the_first_one_again():
    module = Counts()
    first = module.total
    with attributes_restored([module]):
        module.total += 1
        module.total = torch.zeros(3)
    assert module.total is first
    assert first[0] == 1


def test_parameters_buffers_and_modes_are_not_its_concern():
    module = nn.BatchNorm1d(2)
    with attributes_restored([module]):
        module(torch.randn(4, 2))
        module.eval()
    assert module.num_batches_tracked == 1
    assert not module.training
