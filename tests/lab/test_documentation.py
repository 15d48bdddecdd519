"""The recipe of docs/how-to/own-recipe.md.

Oracle: the page's own code, run as a reader would. Cannot see: whether the page is clear.
"""

import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from edgewise.lab import data, models, sweep
from edgewise.lab.configs import DataConfig, ModelConfig
from edgewise.lab.recipes import PhaseDiagrams, own

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-recipe.md"
RECIPE, PLUGINS, CLAIMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


def test_the_recipe_is_short_and_runs(tmp_path):
    assert len([line for line in RECIPE.splitlines() if line.strip()]) < 20
    file = tmp_path / "recipe.py"
    file.write_text(RECIPE)
    its = own.load(file)
    assert isinstance(its.layout, PhaseDiagrams)
    assert len(its.configs("own")) == 48
    short = [tuple(replace(c, num_steps=80) for c in ladder[:1]) for ladder in its.ladders("own")][:2]
    store = sweep.run({its.id: short}, "own", tmp_path / "out", workers=1, recipe_file=file)
    assert len(store.runs.finished()) == 2


def test_the_network_and_the_data_are_taken(tmp_path):
    file = tmp_path / "recipe.py"
    file.write_text(PLUGINS + RECIPE)
    own.load(file)
    dataset = data.load(DataConfig(name="rings"))
    model = models.build(ModelConfig(name="linear", depth=1, width=1, parameterization="sp"), dataset)
    assert model(dataset.train_inputs).shape == (1600, 2)


def test_the_claims_are_judged(tmp_path):
    """On made-up outcomes: the lower loss decides, a run that diverged does not count."""
    file = tmp_path / "recipe.py"
    file.write_text(RECIPE + CLAIMS)
    its = own.load(file)
    assert its.title == "Rates and lengths"
    chosen = [next(c for c in its.configs("own") if c.warmup.steps == steps) for steps in (1, 80)]
    losses = {1: (2.0, False), 80: (1.0, False)}
    runs = [
        SimpleNamespace(
            config=c, outcome=dict(zip(("test_loss", "diverged"), losses[c.warmup.steps], strict=True))
        )
        for c in chosen
    ]
    (claim,) = its.claims(runs)
    assert claim.holds
    assert claim.measured == "1 beside 2"
    runs.append(SimpleNamespace(config=chosen[0], outcome={"test_loss": math.nan, "diverged": True}))
    assert its.claims(runs) == [claim]
