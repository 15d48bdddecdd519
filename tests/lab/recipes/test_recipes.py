"""The recipes: what they run, and what they claim.

Oracle: the sizes written in the issue and in the paper; made-up runs that show a finding, and ones that do not.
Cannot see: whether real runs show it; `make demo` and the report do.
"""

import math

import numpy as np
import pytest

from edgewise.errors import UnknownNameError
from edgewise.lab.configs import OptimizerConfig
from edgewise.lab.recipes import (
    DEMO,
    RECIPES,
    SCALES,
    PhaseDiagrams,
    Trajectories,
    late_stability_limit,
    recipe,
)
from edgewise.lab.recipes.recipe import at_edge, number
from lab_cases import CATAPULTS, FIG4_ADAM, changed, diverged, made, remade, story, tiny

ALL = [(figure, scale) for figure in RECIPES for scale in SCALES]


@pytest.mark.parametrize(("figure", "scale"), ALL)
def test_the_runs_of_a_figure_are_distinct(figure, scale):
    configs = RECIPES[figure].configs(scale)
    assert len({config.run_id for config in configs}) == len(set(configs)) == len(configs)


def test_figures_share_the_runs_that_they_have_in_common():
    for scale in SCALES:
        adam = {c.run_id for c in RECIPES["fig2"].configs(scale) if c.warmup.steps == 1}
        assert adam < {c.run_id for c in RECIPES["fig6"].configs(scale)}


def test_recipes_are_found_by_their_ids():
    assert all(recipe(name).id == name for name in RECIPES)
    assert set(DEMO) <= set(RECIPES)
    with pytest.raises(
        UnknownNameError,
        match=r"unknown figure 'fig44'; known: fig1, fig2, fig4, fig6, fig7\. Did you mean 'fig4'",
    ):
        recipe("fig44")


@pytest.mark.parametrize("figure", RECIPES)
def test_a_recipe_says_what_to_see(figure):
    its = RECIPES[figure]
    assert 5 < len(its.title) < 80
    assert len(its.finding.split(".")) >= 3
    assert isinstance(its.layout, Trajectories | PhaseDiagrams)


def test_fig1_is_gradient_descent_on_a_wide_net_at_its_two_rates():
    configs = RECIPES["fig1"].configs("demo")
    assert [(c.model.parameterization, c.optimizer.lr, c.warmup.steps) for c in configs] == [
        *(("mup", 1.0, steps) for steps in (1, 64, 200)),
        *(("sp", 32.0, steps) for steps in (1, 64, 200)),
    ]
    for c in configs:
        assert (c.data.name, c.model.name, c.model.depth, c.model.width) == ("digits", "fcn", 4, 256)
        assert (c.optimizer.name, c.optimizer.lr_unit, c.optimizer.momentum) == ("sgd", "1/sharpness", 0.0)
        assert (c.loss, c.batch_size, c.warmup.decay, c.warmup.lr_init) == ("mse", None, "none", 0.0)
        assert c.measure == ("sharpness",)
        assert c.measure_every % 2 == 1  # the two sides of the alternation at the edge
        assert c.num_steps >= 250


@pytest.mark.parametrize("scale", SCALES)
def test_fig7_adds_catapults_to_the_warmups_of_fig1(scale):
    *linear, catapults = RECIPES["fig7"].configs(scale)
    shared = [c for c in RECIPES["fig1"].configs(scale) if c in linear]
    assert [(c.model.parameterization, c.warmup.steps) for c in shared] == [("sp", 64), ("sp", 200)]
    assert changed(catapults, warmup=linear[0].warmup) == linear[0]
    assert catapults.warmup.kind == "catapult"


@pytest.mark.parametrize("figure", ["fig2", "fig6"])
@pytest.mark.parametrize("scale", SCALES)
def test_fig2_and_fig6_are_full_batch_adam_and_gi_adam(figure, scale):
    configs = RECIPES[figure].configs(scale)
    for c in configs:
        assert (c.data.name, c.model.name, c.model.depth, c.model.width) == ("digits", "fcn", 4, 256)
        assert (c.loss, c.batch_size) == ("mse", None)
        assert c.optimizer.lr == {"simple-mup": 0.003, "sp": 0.001}[c.model.parameterization]
        assert c.optimizer.betas == (0.9, 0.999)
        assert "preconditioned_sharpness" in c.measure
    lengths = {1} if scale == "demo" else {1, 64, 256}
    long = [c for c in configs if c.num_steps > 1]
    assert {c.optimizer.name for c in long} == ({"adam"} if figure == "fig2" else {"adam", "gi-adam"})
    for name in ("simple-mup", "sp"):
        main = "adam" if figure == "fig2" else "gi-adam"
        assert {
            c.warmup.steps for c in long if (c.model.parameterization, c.optimizer.name) == (name, main)
        } == lengths
    if figure == "fig6":
        starts = [c for c in configs if c.num_steps == 1]
        assert len(starts) == 4
        assert {c.optimizer.eps for c in starts} == {1e-20}


def test_fig4_is_the_grid_of_the_issue():
    configs = RECIPES["fig4"].configs("demo")
    cells = {(c.optimizer.name, c.warmup.steps, c.optimizer.lr) for c in configs}
    assert len(configs) == 36
    assert cells == {
        (name, steps, 1e-3 * 4**k) for name in ("adam", "gi-adam") for steps in (1, 32, 128) for k in range(6)
    }
    embedded = RECIPES["fig4"].configs("embedded")
    assert len({c.seed for c in embedded}) == 2
    assert {c.optimizer.lr for c in embedded} == {1e-3 * 2**k for k in range(11)}
    for c in (*configs, *embedded):
        assert (c.data.name, c.data.context, c.batch_size, c.num_steps) == ("stdlib-text", 32, 16, 400)
        assert (c.model.name, c.model.depth, c.model.width, c.model.parameterization) == ("lm", 2, 64, "sp")
        assert (c.warmup.decay, c.loss, c.measure, c.optimizer.lr_unit) == ("cosine", "xent", (), "absolute")


@pytest.mark.parametrize(
    ("optimizer", "limit"),
    [
        ({"name": "sgd"}, 2.0),
        ({"name": "sgd", "momentum": 0.9}, 3.8),
        ({"name": "adam"}, 38.0),
        ({"name": "gi-adam"}, 38.0),
        ({"name": "radam", "betas": (0.5, 0.9)}, 6.0),
    ],
)
def test_thresholds_are_the_paper_s(optimizer, limit):
    assert late_stability_limit(OptimizerConfig(lr=1.0, **optimizer)) == pytest.approx(limit, rel=1e-12)


def test_the_edge_is_looked_at_over_the_last_third():
    run = made(
        tiny(num_steps=10),
        {"lr": np.arange(10) + 1.0, "sharpness": [5, math.nan] * 5},  # steps 0 2 4 6 8; last third from 16/3
    )
    assert at_edge(run, "sharpness").tolist() == [35.0, 45.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.23456, "1.23"), (1234567.0, "1.23e+06"), (math.nan, "not finite"), (math.inf, "not finite")],
)
def test_numbers_are_short_and_never_pretend(value, text):
    assert number(value) == text


@pytest.mark.parametrize(("figure", "scale"), ALL)
def test_claims_hold_where_the_runs_show_them(figure, scale):
    claims = RECIPES[figure].claims(story(figure, scale))
    assert [claim.text for claim in claims if not claim.holds] == []
    assert len({claim.text for claim in claims}) == len(claims) >= 2
    for claim in claims:
        assert type(claim.holds) is bool  # not numpy's, which JSON and `is True` do not know
        assert claim.text
        assert claim.expected
        assert claim.measured


def cell(name, lr, steps=1):
    return lambda c: (c.optimizer.name, c.optimizer.lr, c.warmup.steps) == (name, pytest.approx(lr), steps)


def gets(test_loss):
    return lambda run: remade(run, test_loss=test_loss)


def scaled(by, at=lambda steps: steps >= 0):
    """The preconditioned sharpness times a number, at some steps."""

    def edit(run):
        values = run.columns["preconditioned_sharpness"]
        return remade(
            run, {"preconditioned_sharpness": np.where(at(run.columns["step"]), by * values, values)}
        )

    return edit


def flat(run):
    measured = np.where(np.isnan(run.columns["sharpness"]), np.nan, 1.9)
    return remade(run, {"sharpness": measured, "lr": 2 / 1.9})


def runs_of(parameterization, *, warmup=None, optimizer=None, starts=None):
    """Which configs: of a parameterization, a warmup length, an optimizer; the one-step starts, or not those."""
    return lambda c: (
        c.model.parameterization == parameterization
        and warmup in (None, c.warmup.steps)
        and optimizer in (None, c.optimizer.name)
        and starts in (None, c.num_steps == 1)
    )


def catapults(config):
    return config.warmup.kind == "catapult"


def gone_after(steps):
    return lambda run: diverged(made(run.config, {"sharpness": 390.0}), after=steps)


def with_(columns=None, **outcome):
    return lambda run: remade(run, columns, **outcome)


def high(run):
    return remade(run, {"sharpness": np.maximum(run.columns["sharpness"], 390 / 4)})


def first(s):
    return s == 0


def later(s):
    return s > 0


START, RATIO = "Adam: preconditioned sharpness starts", "initial preconditioned sharpness, Adam ÷ GI-Adam, "
LOSSES = "T_wrm = 1: test loss at"

# what is changed, in which runs → the one claim, by its first words, that no longer holds
FLIPS = [
    ("fig1", [(runs_of("mup", warmup=64), flat)], "μP, η = 1/λ₀: sharpness first rises"),
    ("fig1", [(runs_of("mup", warmup=200), with_({"lr": 0.7}))], "μP: η·λ reaches 2"),
    ("fig1", [(runs_of("mup", warmup=1), with_({"lr": 0.4}))], "μP: η·λ reaches 2"),
    ("fig1", [(runs_of("sp", warmup=1), with_(diverged=False))], "SP, η = 32/λ₀, T_wrm = 1: diverges"),
    ("fig1", [(runs_of("sp", warmup=1), gone_after(11))], "SP, η = 32/λ₀, T_wrm = 1: diverges"),
    ("fig1", [(runs_of("sp", warmup=64), with_(train_loss=0.15))], "SP, η = 32/λ₀, T_wrm = 64, 200: trains"),
    (
        "fig1",
        [(runs_of("sp", warmup=64), with_(train_loss=math.nan, num_steps=249))],
        "SP, η = 32/λ₀, T_wrm = 64, 200: trains",
    ),
    ("fig1", [(runs_of("sp", warmup=200), high)], "SP, T_wrm = 64, 200: a catapult"),
    ("fig2", [(runs_of("sp"), scaled(1e-3, lambda s: s < 50))], f"SP, {START}"),
    ("fig2", [(runs_of("simple-mup"), scaled(100.0))], f"simple μP, {START}"),
    *(
        flip
        for p, name in (("sp", "SP"), ("simple-mup", "simple μP"))
        for flip in [
            ("fig6", [(runs_of(p, optimizer="adam", starts=False), scaled(100.0, later))], f"{name}, {START}"),
            ("fig6", [(runs_of(p, optimizer="adam", starts=True), scaled(1.02))], f"{name}: {RATIO}ε aside"),
            ("fig6", [(runs_of(p, optimizer="gi-adam", starts=True), scaled(1.02))], f"{name}: {RATIO}ε aside"),
            ("fig6", [(runs_of(p, optimizer="gi-adam", starts=False), scaled(0.1, first))], f"{name}: {RATIO}ε = "),
            ("fig6", [(runs_of(p, optimizer="gi-adam", starts=False), scaled(20.0, first))], f"{name}: {RATIO}ε = "),
        ]
    ),
    ("fig4", [(cell("adam", 0.256), gets(3.24))], f"Adam, {LOSSES}"),
    ("fig4", [(cell("adam", 0.256), diverged)], f"Adam, {LOSSES}"),
    ("fig4", [(cell("gi-adam", 0.256), gets(2.4))], f"GI-Adam, {LOSSES}"),
    ("fig4", [(cell("adam", 0.016), gets(2.1)), (cell("gi-adam", 0.064), gets(2.25))], "T_wrm = 1: best target"),
    ("fig4", [(cell("adam", 0.064), gets(2.53)), (cell("gi-adam", 0.064), gets(2.32))], "T_wrm = 1, η = 0.064"),
    ("fig4", [(cell("adam", 0.004, 128), gets(1.9))], "Adam, T_wrm = 128: warmup lets"),
    ("fig7", [(catapults, with_(warmup=CATAPULTS | {"steps_to_target": 64}))], "catapults reach the target"),
    ("fig7", [(catapults, with_(warmup=CATAPULTS | {"steps_to_target": None}))], "catapults reach the target"),
    ("fig7", [(catapults, with_(warmup=CATAPULTS | {"fallback": "no"}))], "catapults reach the target"),
    ("fig7", [(catapults, with_({"sharpness": 26.0}))], "the sharpness ends below"),
    ("fig7", [(catapults, with_(train_loss=0.11))], "final training loss, beside linear warmup of 64, 200"),
    ("fig7", [(runs_of("sp", warmup=200), with_(train_loss=0.04))], "final training loss"),
]  # fmt: skip


@pytest.mark.parametrize(("figure", "edits", "words"), FLIPS)
def test_a_claim_does_not_hold_where_the_runs_do_not_show_it(figure, edits, words):
    runs = story(figure)
    touched = 0
    for which, edit in edits:
        touched += sum(which(run.config) for run in runs)
        runs = [edit(run) if which(run.config) else run for run in runs]
    assert touched >= len(edits)
    failing = [claim.text for claim in RECIPES[figure].claims(runs) if not claim.holds]
    assert len(failing) == 1
    assert failing[0].startswith(words)


@pytest.mark.parametrize("figure", RECIPES)
def test_every_claim_is_flipped_above(figure):
    words = [w for flipped, _, w in FLIPS if flipped == figure]
    for claim in RECIPES[figure].claims(story(figure)):
        assert any(claim.text.startswith(w) for w in words), claim.text


def test_a_claim_shows_what_was_measured():
    claims = RECIPES["fig4"].claims(story("fig4"))
    assert claims[0].measured == ", ".join(f"{loss:.2f}" for loss in FIG4_ADAM.values())
    assert claims[2].measured == "16 (0.064 ÷ 0.004)"
    assert claims[3].measured == "0.59"
    rises, hovers, diverges, trains, falls = RECIPES["fig1"].claims(story("fig1"))
    assert rises.measured == "1.9 → 4, 4, 6.35 at T_wrm 1, 64, 200"
    assert hovers.measured == "2–2"
    assert diverges.measured == "diverged after 7 updates (λ₀ = 390)"
    assert trains.measured == "0.1, 0.1"
    assert falls.measured == "10×, 10×"
