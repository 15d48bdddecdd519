"""Recipes from a file.

Oracle: files written here, whose runs are compared with the same configs trained in this process. Cannot see: what
people will write.
"""

import pytest

from edgewise.lab import data, models, sweep
from edgewise.lab.errors import RecipeError
from edgewise.lab.recipes import PhaseDiagrams, Trajectories, own
from edgewise.lab.results.store import Store
from edgewise.lab.training import train
from lab_cases import tiny

HEAD = """
from edgewise.lab.configs import *
def run(lr=0.1, seed=0, data="digits", model="fcn", **others):
    return RunConfig(data=DataConfig(name=data), model=ModelConfig(name=model, depth=1, width=8, parameterization="sp"),
                     optimizer=OptimizerConfig(name="sgd", lr=lr), num_steps=4, seed=seed, **others)
"""
OWN = (
    HEAD
    + """
import torch
from edgewise.lab.data import Dataset
from edgewise.lab.plugins import register_data, register_model

@register_data("stripes")
def stripes(config):
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    return Dataset(train_inputs=x[:48], train_targets=y[:48], test_inputs=x[48:], test_targets=y[48:], num_classes=2)

@register_model("linear")
def linear(config, dataset):
    return torch.nn.Linear(dataset.num_features, dataset.num_classes)

title = "Stripes"

def configs():
    return [run(lr=lr, data="stripes", model="linear") for lr in (0.1, 0.2)]
"""
)


def write(path, text):
    file = path / "mine.py"
    file.write_text(text)
    return file


def test_a_file_s_runs_are_a_recipe(tmp_path):
    its = own.load(write(tmp_path, HEAD + "def configs():\n    return [run(lr=lr) for lr in (0.1, 0.2)]\n"))
    assert its.id == its.title == "mine"
    assert [c.optimizer.lr for c in its.configs("own")] == [0.1, 0.2]
    assert its.claims([]) == []


@pytest.mark.parametrize(
    ("runs", "kind"),
    [
        ("[run(lr=lr) for lr in (0.1, 0.2, 0.4)]", PhaseDiagrams),
        ("[run(lr=lr) for lr in (0.1, 0.2)]", Trajectories),
        ("[run(lr=lr, measure=('sharpness',)) for lr in (0.1, 0.2, 0.4)]", Trajectories),
    ],
)
def test_how_the_runs_are_shown_follows_from_them(tmp_path, runs, kind):
    its = own.load(write(tmp_path, HEAD + f"def configs():\n    return {runs}\n"))
    assert isinstance(its.layout, kind)
    if kind is PhaseDiagrams:
        assert {its.layout.panel(c) for c in its.configs("own")} == {"all runs"}
        assert max(map(len, its.ladders("own"))) == 3
    else:
        assert [its.layout.line(c) for c in its.configs("own")][:2] == [
            "optimizer.lr 0.1",
            "optimizer.lr 0.2",
        ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (", r"mine\.py, line 1, raised SyntaxError"),
        ("import math\nmath.sqrt(-1)", r"mine\.py, line 2, raised ValueError: "),
        ("a = 1", r"has no function configs\(\): write one that takes nothing"),
        ("configs = [1]", r"has no function configs\(\)"),
        ("def configs():\n    pass", "must return a list of RunConfig, got None"),
        ("def configs():\n    return []", r"must return a list of RunConfig, got \[\]"),
        ("def configs():\n    return [1]", "must return RunConfig only, got 1 among them"),
        ("def configs():\n    return 1 / 0", r"line 2, raised ZeroDivisionError: division by zero"),
        (
            HEAD + "def configs():\n    return [run(), run(lr=0.2), run()]",
            "the same run twice, as number 0 and 2",
        ),
        (
            HEAD + "def configs():\n    return [run(data='dgits')]",
            "raised UnknownNameError: unknown data 'dgits'",
        ),
        (HEAD + "title = 3\ndef configs():\n    return [run()]", "title of .* must be a text, got 3"),
        (
            HEAD + "finding = None\ndef configs():\n    return [run()]",
            "finding of .* must be a text, got None",
        ),
        (
            HEAD + "claims = []\ndef configs():\n    return [run()]",
            r"claims of .* must be a function .* got \[\]",
        ),
        (
            HEAD + "layout = 3\ndef configs():\n    return [run()]",
            "layout of .* must be Trajectories, .* got 3",
        ),
    ],
)
def test_a_file_that_says_no_runs_is_refused(tmp_path, text, message):
    with pytest.raises(RecipeError, match=message):
        own.load(write(tmp_path, text))


@pytest.mark.parametrize(
    ("name", "what"), [("missing.py", "does not exist"), ("folder", "is no Python file")]
)
def test_a_file_that_is_none_is_refused(tmp_path, name, what):
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecipeError, match=f"{name} {what}: give the path of a recipe"):
        own.load(tmp_path / name)


def test_own_data_and_networks_are_trained_in_every_process(tmp_path):
    file = write(tmp_path, OWN)
    its = own.load(file)
    configs = its.configs("own")
    sweep.run({its.id: its.ladders("own")}, "own", tmp_path / "out", workers=2, recipe_file=file)
    store = Store.open(tmp_path / "out")
    assert store.recipe_file == file
    for config in configs:
        assert type(models.build(config.model, data.load(config.data))).__name__ == "Linear"
        expected = [row["train_loss"] for row in train(config).rows]
        assert store.runs.load(config.run_id).columns["train_loss"].tolist() == expected


def test_an_own_network_goes_with_any_data(tmp_path):
    own.load(write(tmp_path, OWN))
    assert tiny(model={"name": "linear"}).model.name == "linear"
    with pytest.raises(ValueError, match=r"unknown model 'lin'.* known: cnn, fcn, linear, lm, wrn"):
        tiny(model={"name": "lin"})
