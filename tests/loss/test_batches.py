"""Batches of any structure, and collections of them that are read again and again.

Ladder: closed form (plain lists of tensors beside the structures under test). Cannot see: a collection whose batches
keep their sizes and change their values; `check_repeats` looks at the first one's loss.
"""

import collections
import dataclasses
import random
import types
from typing import NamedTuple

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from edgewise.errors import LossError
from edgewise.loss.batches import Batches, batch_size, cast, map_tensors, split, tensors_of
from oracles import bits


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Fields:
    x: torch.Tensor
    y: torch.Tensor
    name: str = "a"
    count: int = dataclasses.field(init=False, default=7)


class Encoding(collections.UserDict):
    """As a tokenizer's of Hugging Face: a dict by behaviour only, with an attribute of its own."""

    def __init__(self, data):
        super().__init__(data)
        self.encodings = "kept"


@dataclasses.dataclass
class ModelOutput(collections.OrderedDict):
    """As a model's of Hugging Face: an OrderedDict and a dataclass, whose items are its fields."""

    x: torch.Tensor
    y: torch.Tensor

    def __post_init__(self):
        super().__setitem__("x", self.x)
        super().__setitem__("y", self.y)

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __reduce__(self):
        return type(self), (self.x, self.y)


STRUCTURES = {
    "tuple": lambda x, y: (x, y),
    "list": lambda x, y: [x, "text", y],
    "dict": lambda x, y: {"id": 3, "x": x, "y": y},
    "namedtuple": Pair,
    "dataclass": Fields,
    "userdict": lambda x, y: Encoding({"x": x, "y": y}),
    "model-output": ModelOutput,
    "defaultdict": lambda x, y: collections.defaultdict(list, x=x, y=y),
    "read-only": lambda x, y: types.MappingProxyType({"x": x, "y": y}),
    "nested": lambda x, y: {"a": (Fields(x, y), [None, Encoding({"z": Pair(x, y)})]), "b": ()},
    "pytree": lambda x, y: collections.deque([x, y]),  # known to torch only
}


@pytest.fixture(params=STRUCTURES)
def make(request):
    return STRUCTURES[request.param]


def xy(n):
    return torch.arange(3.0 * n).view(n, 3), torch.arange(n)


def test_any_structure_has_a_size_and_tensors(make):
    batch = make(*xy(5))
    assert batch_size(batch) == 5
    assert {id(t) for t in tensors_of(batch)} == {id(t) for t in tensors_of(list(tensors_of(batch)))}
    assert len(list(tensors_of(batch))) >= 2


def test_mapping_keeps_classes_order_and_all_that_is_no_tensor(make):
    batch = make(*xy(5))
    before = [bits(t) for t in tensors_of(batch)]
    doubled = map_tensors(lambda t: 2 * t, batch)
    assert type(doubled) is type(batch)
    for ours, theirs in zip(tensors_of(doubled), tensors_of(batch), strict=True):
        assert torch.equal(ours, 2 * theirs)
    assert [bits(t) for t in tensors_of(batch)] == before  # the batch itself is not written to


def test_attributes_beside_the_items_are_kept():
    mapped = map_tensors(lambda t: t + 1, Fields(*xy(2)))
    assert (mapped.name, mapped.count) == ("a", 7)
    assert map_tensors(lambda t: t + 1, Encoding({"x": xy(2)[0]})).encodings == "kept"
    output = map_tensors(lambda t: t + 1, ModelOutput(*xy(2)))
    assert output.x is output["x"]
    assert map_tensors(lambda t: t, STRUCTURES["defaultdict"](*xy(2))).default_factory is list


def test_cast_touches_floating_point_only(make):
    found = list(tensors_of(cast(make(*xy(5)), torch.float64)))
    assert {t.dtype for t in found} == {torch.float64, torch.int64}


def test_cast_cuts_the_graph_and_keeps_the_flag():
    x = torch.ones(2, requires_grad=True)
    copied = cast([x, 2 * x], torch.float32)
    assert all(t.requires_grad and t.is_leaf for t in copied)
    assert copied[0] is not x


@pytest.mark.parametrize("rows", [1, 2, 5, 9])
def test_split_cuts_rows_and_joins_to_the_whole(make, rows):
    batch = make(*xy(5))
    pieces = list(split(batch, rows))
    assert [batch_size(p) for p in pieces] == [min(rows, 5 - start) for start in range(0, 5, rows)]
    assert all(type(p) is type(batch) for p in pieces)
    for whole, *parts in zip(tensors_of(batch), *map(tensors_of, pieces), strict=True):
        assert torch.equal(torch.cat(parts), whole)


def test_split_shares_what_has_no_row_per_sample():
    batch = {"x": torch.ones(4, 2), "scale": torch.ones(3), "step": torch.tensor(1), "names": ["a"] * 4}
    for piece in split(batch, 3):
        assert piece["scale"] is batch["scale"]
        assert piece["step"] is batch["step"]
        assert piece["names"] == batch["names"]


@pytest.mark.parametrize("batch", [3, "a", None, [], {"x": torch.tensor(1.0)}, int])
def test_a_batch_without_rows_has_no_size(batch):
    assert batch_size(batch) is None


# Collections


def loader(**options):
    return DataLoader(TensorDataset(torch.arange(10.0)), **options)


class Lazy:
    """A re-iterable that counts what of it is alive."""

    def __init__(self, sizes=(3, 2, 4), later=None):
        self.sizes, self.later, self.passes = sizes, later, 0

    def __iter__(self):
        self.passes += 1
        sizes = self.sizes if self.passes == 1 or self.later is None else self.later
        return iter([torch.full((n,), float(n)) for n in sizes])


def test_shares_are_those_of_the_samples_in_each_pass():
    batches = Batches(Lazy())
    for _ in range(2):
        assert [(i, share) for i, share, _ in batches.weighted()] == [(0, 3 / 9), (1, 2 / 9), (2, 4 / 9)]
    assert (len(batches), batches.sizes) == (3, [3, 2, 4])


def test_what_is_not_a_list_is_read_anew_and_not_held():
    lazy = Lazy()
    batches = Batches(lazy)
    assert lazy.passes == 1
    list(batches.weighted())
    assert lazy.passes == 2
    listed = [torch.ones(2)]
    assert next(iter(Batches(listed))) is listed[0]


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ((3, 2), "there were 3 of them, now there are 2"),
        ((3, 2, 4, 1), "batch 3 is new or of another size"),
        ((3, 4, 2), "batch 1 is new or of another size"),
        ((), "now there are 0"),
    ],
)
def test_batches_that_differ_between_passes_are_refused(later, message):
    batches = Batches(Lazy(later=later))
    with pytest.raises(LossError, match=f"batches differ between passes.*{message}.*shuffle=False"):
        list(batches.weighted())


class Augmented(torch.utils.data.Dataset):
    """Draws from torch and from python's random for each sample."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return i + torch.rand(()) + random.random()


@pytest.mark.processes
@pytest.mark.parametrize("own", [False, True], ids=["torchs-generator", "its-own"])
@pytest.mark.parametrize("workers", [0, 1])
def test_passes_are_alike_and_fetching_is_not_seen_outside(own, workers):
    generator = torch.Generator().manual_seed(3) if own else None
    data = DataLoader(Augmented(), batch_size=4, generator=generator, num_workers=workers)
    states = lambda: (
        bits(torch.get_rng_state()),
        random.getstate(),
        bits(generator.get_state()) if own else None,
    )
    before = states()
    batches = Batches(data)
    first = []
    for batch in batches:
        assert states() == before
        first.append(batch)
        torch.rand(7)  # what the loss draws is not the loader's affair
        before = states()
    second = list(batches)
    abandoned = iter(batches)
    next(abandoned)
    assert states() == before
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True},
        {"sampler": SubsetRandomSampler(range(5))},
        {"sampler": WeightedRandomSampler([1.0] * 10, 4)},
        {"batch_sampler": BatchSampler(RandomSampler(range(10)), 3, False)},
    ],
    ids=["shuffle", "subset", "weighted", "batch-sampler"],
)
def test_a_loader_that_shuffles_is_refused_at_once(options):
    with pytest.raises(ValueError, match=r"a data loader that shuffles \(\w*RandomSampler\).*shuffle=False"):
        Batches(loader(**options))


def test_a_loader_in_order_will_do():
    assert Batches(loader(batch_size=4)).sizes == [4, 4, 2]


@pytest.mark.parametrize(
    "single", [torch.ones(3), {"x": 1}, Encoding({"x": torch.ones(3)}), Fields(*xy(2)), 7]
)
def test_a_single_batch_is_no_collection(single):
    with pytest.raises(TypeError, match=r"write \[batch\] for a single one"):
        Batches(single)


@pytest.mark.parametrize("once", [iter([1]), (x for x in [1]), map(int, [1])])
def test_what_can_be_read_once_is_no_collection(once):
    with pytest.raises(TypeError, match=r"it is an iterator.*list\(batches\)"):
        Batches(once)
