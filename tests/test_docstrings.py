"""The options of public functions: written out in each, and in the same words.

Oracle: the docstrings themselves, parsed. Cannot see: whether an option does what its text says.
"""

import inspect
import itertools
import re

import pytest

import edgewise as ew

CALLS = {
    name: getattr(ew, name) for name in ("sharpness", "preconditioned_sharpness", "critical_lr", "Monitor")
}
# Options that share a name with those of another call, but not the meaning.
OF_THEIR_OWN = {
    "critical_lr": {"model", "optimizer", "batches", "rtol"},
    "Monitor": {"optimizer", "batches"},
}
LONGEST_SENTENCE = 40  # words


def options(call):
    """The text of each option, in one line."""
    section = re.search(r"^Args:\n(.*?)\n\n", inspect.getdoc(call), re.M | re.S)[1]
    _, *parts = re.split(r"^ {4}(\w+): ", section, flags=re.M)
    return {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def sentences(text):
    """Those of a docstring, each option and each error being one at least; an example is none."""
    prose = re.sub(r"^Example:\n.*?(?=^\S|\Z)", "", text, flags=re.M | re.S)
    return re.split(r"(?<=[.?:])\n\s*|\n\n+|(?<=[.?])\s+|^ {4}(?=\w+: )", prose, flags=re.M)


@pytest.mark.parametrize("name", CALLS)
def test_every_option_is_described(name):
    call = CALLS[name]
    assert list(options(call)) == list(inspect.signature(call).parameters)


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(CALLS, 2)])
def test_an_option_has_the_same_text_in_all_calls(one, other):
    first, second = options(CALLS[one]), options(CALLS[other])
    of_their_own = OF_THEIR_OWN.get(one, set()) | OF_THEIR_OWN.get(other, set())
    shared = [name for name in first if name in second and name not in of_their_own]
    assert "loss_fn" in shared
    assert {name: first[name] for name in shared} == {name: second[name] for name in shared}


@pytest.mark.parametrize("name", OF_THEIR_OWN)
def test_an_option_of_its_own_has_a_text_of_its_own(name):
    elsewhere = [
        options(call)[option]
        for other, call in CALLS.items()
        if other != name
        for option in OF_THEIR_OWN[name] & set(options(call))
    ]
    assert not {options(CALLS[name])[option] for option in OF_THEIR_OWN[name]} & set(elsewhere)


@pytest.mark.parametrize("name", CALLS)
def test_options_are_written_out_where_they_are_read(name):
    assert "as for `" not in inspect.getdoc(CALLS[name])


@pytest.mark.parametrize("name", CALLS)
def test_sentences_are_short(name):
    texts = [inspect.getdoc(CALLS[name])]
    if inspect.isclass(CALLS[name]):
        members = inspect.getmembers(CALLS[name], inspect.isfunction)
        texts += [inspect.getdoc(member) for key, member in members if not key.startswith("_")]
    found = [sentence for text in texts for sentence in sentences(text)]
    assert [s for s in found if len(s.split()) > LONGEST_SENTENCE] == []
