"""What docstrings promise an editor's reader: short sentences, options written out, properties that name a thing.

Ladder: the source itself, parsed. Cannot see: whether a sentence is true.
"""

import ast
import inspect
import itertools
import re
from pathlib import Path

import pytest

import edgewise

SOURCE = Path(edgewise.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
MOST_WORDS = 40

MEASUREMENTS = ("sharpness", "preconditioned_sharpness", "hessian", "critical_lr", "Monitor", "inspect")
CALLS = {name: getattr(edgewise, name) for name in MEASUREMENTS}
# Options that share a name with those of another call, but not the meaning.
OF_THEIR_OWN = {
    "hessian": {"optimizer"},
    "critical_lr": {"model", "optimizer", "batches", "rtol"},
    "Monitor": {"optimizer", "batches"},
    "inspect": {"optimizer", "batches", "seed"},
}

# Where a sentence ends: before a blank line, an item of a list, a table's row or an argument, and after a full stop.
_BREAKS = re.compile(r"\n\s*\n|\n\s*(?=- |\||\w+: )|(?<=[.!?])\s+(?=[^a-z\d])")


def docstrings(path):
    """Each definition of a file that has a docstring, with it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
            text := ast.get_docstring(node)
        ):
            yield node, text


def sentences(text):
    """The sentences of a docstring, without examples and formulas that stand apart."""
    prose = [line for line in text.splitlines() if not re.match(r"\s*(>>>|\.\.\. )", line)]
    prose = re.sub(r"\n\n( {4,}[^\n]*\n?)+", "\n\n", "\n".join(prose))
    return [" ".join(sentence.split()) for sentence in _BREAKS.split(prose) if sentence and sentence.strip()]


def words(sentence):
    """Its words: what stands between backquotes, and a formula without spaces, is one."""
    return [word for word in re.sub(r"`[^`]*`", "code", sentence).split() if re.search(r"\w", word)]


def options(call):
    """The text of each option, in one line."""
    section = re.search(r"^Args:\n(.*?)\n\n", inspect.getdoc(call), re.M | re.S)[1]
    _, *parts = re.split(r"^ {4}(\w+): ", section, flags=re.M)
    return {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def test_sentences_end_where_they_end():
    text = "One. Two, of `a b`; e.g. three.\n\n    x = 1 . 2\n    y = 3\n\n"
    text += "Args:\n    a: four\n        goes on.\n    b: five.\n\n>>> 1\n1"
    found = sentences(text)
    assert found[:2] == ["One.", "Two, of `a b`; e.g. three."]
    assert "a: four goes on." in found
    assert "b: five." in found
    assert words(found[1]) == ["Two,", "of", "code;", "e.g.", "three."]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_sentences_are_short(path):
    for node, text in docstrings(path):
        for sentence in sentences(text):
            name = getattr(node, "name", "the module")
            assert len(words(sentence)) <= MOST_WORDS, f"{name}, {len(words(sentence))} words: {sentence}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_options_are_written_out(path):
    for node, text in docstrings(path):
        assert not re.search(r"\bas (for|in) `\w+`", text), f"{node.name} sends its reader elsewhere"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_properties_name_what_they_are(path):
    for node, text in docstrings(path):
        decorators = {ast.unparse(d) for d in getattr(node, "decorator_list", ())}
        if decorators & {"property", "cached_property", "functools.cached_property"}:
            assert not text.startswith("Return "), f"{node.name} is a thing, not an action"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_variables_have_names_of_their_own(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name | ast.arg):
            name = node.id if isinstance(node, ast.Name) else node.arg
            assert not name.startswith("its_"), f"{path}: {name}"


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
