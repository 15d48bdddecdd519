"""Tensors come back bit for bit, and are written to only where their bits differ.

Ladder: closed form (bytes, signs and versions before and after). Cannot see: other devices.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from edgewise.isolation import isolated
from edgewise.isolation.bits import exchanged
from oracles import bits


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex128]
)
def test_signed_zeros_come_back(dtype):
    model = nn.Module()
    model.register_buffer("zero", torch.full((2,), -0.0, dtype=dtype))
    before = torch.view_as_real(model.zero) if dtype.is_complex else model.zero
    before = torch.signbit(before)
    assert before.any()
    with isolated(model):
        model.zero.zero_()
    after = torch.view_as_real(model.zero) if dtype.is_complex else model.zero
    assert torch.equal(torch.signbit(after), before)


def test_nan_payloads_come_back():
    payload = np.array([0x7FC0BEEF, 0xFFC00001], dtype=np.uint32)
    model = nn.Module()
    model.register_buffer("payload", torch.from_numpy(payload.view(np.float32).copy()))
    with isolated(model):
        model.payload.fill_(math.nan)
        assert bits(model.payload) != list(payload.tobytes())
    assert bits(model.payload) == list(payload.tobytes())


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128, torch.int64, torch.bool])
def test_an_untouched_tensor_is_not_written_to(dtype):
    model = nn.Module()
    model.register_buffer("values", torch.ones(3).to(dtype))
    if dtype.is_floating_point:
        model.values[0] = math.nan
    version = model.values._version
    with isolated(model):
        pass
    assert model.values._version == version


def test_tied_tensors_are_exchanged_and_come_back():
    one = torch.tensor([1.0, 2.0])
    ones, others = [one, one.view(2)], [torch.tensor([3.0, 4.0]), torch.tensor([5.0, 6.0])]
    with exchanged(ones, others):
        assert one.tolist() == [5.0, 6.0]
    assert one.tolist() == [1.0, 2.0]
    assert [other.tolist() for other in others] == [[3.0, 4.0], [5.0, 6.0]]


@pytest.mark.parametrize("raises", [False, True])
def test_exchanged_tensors_come_back_bit_for_bit(raises):
    ones = [torch.tensor([0.1, math.nan, -0.0]), torch.tensor(3, dtype=torch.int64)]
    others = [torch.tensor([5.0, 6.0, 7.0]), torch.tensor(4)]
    kept = [[t.clone() for t in tensors] for tensors in (ones, others)]
    versions = [t._version for t in ones]
    try:
        with exchanged(ones, others):
            assert ones[0].tolist() == [5.0, 6.0, 7.0]
            assert others[1].item() == 3
            if raises:
                raise KeyError("user")
    except KeyError:
        assert raises
    for tensors, before in zip((ones, others), kept, strict=True):
        assert all(t.numpy().tobytes() == b.numpy().tobytes() for t, b in zip(tensors, before, strict=True))
    assert [t._version for t in ones] == versions  # a graph that saved them is still good
