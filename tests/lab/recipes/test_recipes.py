"""The recipes: what they run, and what they claim.

Oracle: the sizes written in the issue and in the paper; made-up runs that show a finding, and ones that do not.
Cannot see: whether real runs show it; `make demo` and the report do.
"""

import math

import numpy as np
import pytest

from edgewise.arguments import UnknownNameError
from edgewise.lab.data.sources import check_prepared
from edgewise.lab.recipes import (
    DEMO,
    RECIPES,
    SCALES,
    recipe,
    stability_limits,
)
from edgewise.lab.recipes import PAPER as PAPER_FIGURES
from edgewise.lab.recipes.edge_warmup.cells import task_of
from edgewise.lab.recipes.edge_warmup.grid import LENGTHS, NUM_STEPS
from edgewise.lab.recipes.rates import decide
from edgewise.lab.recipes.recipe import Layout, at_edge, number, warmup_label
from edgewise.lab.results.phase_diagram import TEST_ACCURACY, phase_diagram
from lab_cases import CATAPULTS, CRITICAL, changed, diverged, made, remade, story, tiny

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
        match=r"unknown figure 'fig44'; known: edge-warmup, fig1, fig10, .*\. Did you mean 'fig4'",
    ):
        recipe("fig44")


@pytest.mark.parametrize("figure", RECIPES)
def test_a_recipe_says_what_to_see(figure):
    its = RECIPES[figure]
    assert 5 < len(its.title) < 80
    assert len(its.finding.split(".")) >= 3
    assert isinstance(its.layout, Layout)


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
    lengths = (64, 256, 1024) if scale in ("desk", "paper") else (64, 200)
    assert [(c.model.parameterization, c.warmup.steps) for c in shared] == [("sp", n) for n in lengths]
    assert changed(catapults, warmup=linear[0].warmup, measure=linear[0].measure) == linear[0]
    assert catapults.measure == ("sharpness", "critical_lr")
    assert catapults.warmup.kind == "catapult"


@pytest.mark.parametrize("figure", ["fig2", "fig6"])
@pytest.mark.parametrize("scale", SCALES)
def test_fig2_and_fig6_are_full_batch_adam_and_gi_adam(figure, scale):
    configs = RECIPES[figure].configs(scale)
    for c in configs:
        data = {"paper": "cifar10", "desk": "mnist1d"}.get(scale, "digits")
        network = (data, "fcn", 4, 512 if scale == "paper" else 256)
        assert (c.data.name, c.model.name, c.model.depth, c.model.width) == network
        assert (c.loss, c.batch_size) == ("mse", None)
        assert c.optimizer.lr == {"simple-mup": 0.003, "sp": 0.001}[c.model.parameterization]
        assert c.optimizer.betas == (0.9, 0.999)
        assert "preconditioned_sharpness" in c.measure
    paper = {1, 64, 256, 1024}
    lengths = {"demo": {1}, "embedded": {1, 64, 256}, "desk": paper, "paper": paper}[scale]
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
    assert len({c.seed for c in embedded}) == 3
    assert {c.optimizer.lr for c in embedded} == {1e-3 * 2**k for k in range(11)}
    for c in (*configs, *embedded):
        assert (c.data.name, c.data.context, c.batch_size, c.num_steps) == ("stdlib-text", 32, 16, 400)
        assert (c.model.name, c.model.depth, c.model.width, c.model.parameterization) == ("lm", 2, 64, "sp")
        assert (c.warmup.decay, c.loss, c.measure, c.optimizer.lr_unit) == ("cosine", "xent", (), "absolute")


@pytest.mark.parametrize("figure", [f"fig{i}" for i in (3, 4, 20, 21, 22, 23, 24, 25)])
def test_diagrams_that_are_compared_have_three_seeds_of_every_cell(figure):
    configs = RECIPES[figure].configs("embedded")
    assert {c.seed for c in configs} == {0, 1, 2}
    assert {changed(c, seed=0) for c in configs} == {c for c in configs if c.seed == 0}
    assert len(configs) == 3 * sum(c.seed == 0 for c in configs)


@pytest.mark.parametrize("figure", ["fig5", "fig27", "fig28", "fig29"])
def test_warmups_as_long_as_the_paper_s_whole_training_are_among_those_that_are_saved(figure):
    for scale in ("desk", "paper"):
        configs = RECIPES[figure].configs(scale)
        assert {c.warmup.steps for c in configs} == {64, 256, 1024, 4096, 10_000}
        assert all(c.num_steps >= c.warmup.steps for c in configs)


PAPER = {  # figure → networks and steps of the paper
    "fig1": {("cifar10", "fcn", 4, 512, 2000)},
    "fig3": {("cifar10", "wrn", 16, 4, 100_000)},
    "fig4": {("wikitext-103", "lm", 4, 128, 10_000)},
    "fig5": {("cifar10", "wrn", 16, 4, 10_000)},
    "fig19": {("cifar100", "wrn", 16, 4, 100_000), ("tiny-imagenet", "wrn", 16, 4, 100_000)},
    "fig20": {("wikitext-103", "lm", 4, 128, 10_000)},
    "fig23": {("cifar100", "wrn", 16, 4, 100_000)},
    "fig24": {("tiny-imagenet", "wrn", 16, 4, 100_000)},
    "fig25": {("wikitext-2", "lm", 4, 128, 10_000)},
    "table1": {("cifar10", "wrn", 16, 4, 100_000)},
}


@pytest.mark.parametrize("figure", PAPER)
def test_the_paper_s_scale_is_the_paper_s(figure):
    configs = RECIPES[figure].configs("paper")
    assert {(c.data.name, c.model.name, c.model.depth, c.model.width, c.num_steps) for c in configs} == PAPER[
        figure
    ]
    for c in configs:
        assert c.data.augment == (c.model.name == "wrn")
        assert c.batch_size == {"fcn": None, "wrn": 128, "lm": 64}[c.model.name]
        assert c.data.num_samples == (5000 if c.model.name == "fcn" else None)
        if c.model.name == "lm":
            assert c.data.context == 64


@pytest.mark.parametrize("figure", RECIPES)
def test_other_scales_need_no_prepared_data(figure):
    for scale in ("demo", "embedded", "desk"):
        for config in RECIPES[figure].configs(scale):
            check_prepared(config.data.name)


@pytest.mark.parametrize("figure", PAPER_FIGURES)
def test_at_the_desk_warmups_are_the_paper_s_shares_of_thousands_of_steps(figure):
    """Figures of curves at the paper's very lengths; phase diagrams and the table at its shares of a shorter run."""
    desk, paper = ([c for c in RECIPES[figure].configs(s) if c.num_steps > 1] for s in ("desk", "paper"))
    whole = figure in ("fig5", "fig27", "fig28", "fig29")  # which end with their warmups
    lengths = [
        {
            c.warmup.steps if whole else round(c.warmup.steps / c.num_steps, 4)
            for c in its
            if c.warmup.steps > 1
        }
        for its in (desk, paper)
    ]
    assert lengths[0] <= lengths[1]
    assert bool(lengths[0]) == bool(lengths[1])
    assert max(c.num_steps for c in desk) >= 2000
    for part in (
        lambda c: c.model.parameterization,
        lambda c: c.optimizer.name,
        lambda c: c.loss,
        lambda c: c.measure,
    ):
        assert {part(c) for c in desk} == {part(c) for c in paper}


@pytest.mark.parametrize(
    ("figure", "climbs"),
    [("fig3", True), ("fig4", True), ("when-warmup", True), ("fig5", False), ("fig1", False)],
)
def test_phase_diagrams_climb_and_others_do_not(figure, climbs):
    its = RECIPES[figure]
    assert {c for ladder in its.ladders("demo") for c in ladder} == set(its.configs("demo"))
    assert (max(map(len, its.ladders("demo"))) > 1) is climbs


def test_momentum_has_an_early_and_a_late_limit():
    def limits(**optimizer):
        return stability_limits(made(tiny(optimizer=optimizer)))

    assert limits(name="sgd", momentum=0.9) == pytest.approx((2.0, 3.8))
    assert limits(name="sgd") == (2.0,)
    assert limits(name="adam") == pytest.approx((38.0,))
    assert limits(name="lion") == ()


def test_runs_that_differ_in_rounding_alone_share_a_limit():
    run = made(tiny(optimizer={"name": "adam"}))
    found = {stability_limits(remade(run, stability_limit=38 * (1 + error))) for error in (0, 1e-12, -1e-9)}
    assert found == {(38.0,)}


@pytest.mark.parametrize("figure", ["fig2", "fig8", "fig13", "fig30"])
def test_without_a_stored_limit_claims_say_so_rather_than_hold(figure):
    runs = story(figure)
    beside = [
        c
        for c in RECIPES[figure].claims(runs)
        if any(n in c.text + c.expected for n in ("threshold", "late limit"))
    ]
    for run in runs:
        del run.outcome["stability_limit"]  # as an earlier edgewise stored it
        assert stability_limits(run) == ()
    undecided = [c for c in RECIPES[figure].claims(runs) if "not stored" in c.measured]
    assert len(undecided) == len(beside) > 0
    assert not any(claim.holds for claim in undecided)
    for claim, before in zip(undecided, beside, strict=True):
        assert before.text.startswith(claim.text)


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


def longest_row(name):
    return lambda c: c.optimizer.name == name and c.warmup.steps == 128 and c.optimizer.lr < 0.6


def hardly_by_rate(run):
    return remade(run, test_loss=2.09 + 0.001 * abs(math.log2(0.064 / run.config.optimizer.lr)))


def first(s):
    return s == 0


def later(s):
    return s > 0


START, RATIO = "Adam: preconditioned sharpness starts", "initial preconditioned sharpness, Adam ÷ GI-Adam, "
FALLS, DECIDES = "T_wrm = 1: the test loss falls", "the target rate decides the"

# what is changed, in which runs → the one claim, by its first words, that no longer holds
FLIPS = [
    ("fig1", [(runs_of("mup", warmup=64), flat)], "μP, η = 1/λ₀: sharpness first rises"),
    ("fig1", [(runs_of("mup", warmup=200), with_({"lr": 0.7}))], "μP: η·λ reaches 2"),
    ("fig1", [(runs_of("mup", warmup=1), with_({"lr": 0.4}))], "μP: η·λ reaches 2"),
    ("fig1", [(runs_of("sp", warmup=1), with_(diverged=False))], "SP, η = 32/λ₀, T_wrm = 1: diverges"),
    ("fig1", [(runs_of("sp", warmup=1), gone_after(14))], "SP, η = 32/λ₀, T_wrm = 1: diverges"),
    ("fig1", [(runs_of("sp", warmup=64), with_({"train_loss": 0.44}))], "SP, η = 32/λ₀, T_wrm = 64, 200: trains"),
    (
        "fig1",
        [(runs_of("sp", warmup=64), with_({"train_loss": np.where(np.arange(250) < 249, 0.1, math.nan)}))],
        "SP, η = 32/λ₀, T_wrm = 64, 200: trains",
    ),
    ("fig1", [(runs_of("sp", warmup=200), high)], "SP, T_wrm = 64, 200: the sharpness falls"),
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
    ("fig4", [(cell("adam", 0.001), gets(2.15))], f"Adam, {FALLS}"),
    ("fig4", [(cell("gi-adam", 0.256), gets(2.0))], f"GI-Adam, {FALLS}"),
    ("fig4", [(cell("adam", 0.016), gets(2.1)), (cell("gi-adam", 0.064), gets(2.25))], "T_wrm = 1: best target"),
    ("fig4", [(cell("gi-adam", 0.256), gets(3.1))], "T_wrm = 1, at the largest rate"),
    ("fig4", [(cell("gi-adam", 0.256), gets(3.03))], "T_wrm = 1, at the largest rate"),
    ("fig4", [(cell("adam", 0.004, 128), gets(1.9))], "Adam, T_wrm = 128: warmup lets"),
    ("fig4", [(longest_row("adam"), hardly_by_rate)], f"Adam: {DECIDES} test loss"),
    ("fig4", [(longest_row("gi-adam"), hardly_by_rate)], f"GI-Adam: {DECIDES} test loss"),
    ("fig7", [(catapults, with_(warmup=CATAPULTS | {"steps_to_target": 64}))], "catapults reach the target"),
    ("fig7", [(catapults, with_(warmup=CATAPULTS | {"steps_to_target": None}))], "catapults reach the target"),
    ("fig7", [(catapults, with_(warmup=CATAPULTS | {"fallback": "no"}))], "catapults reach the target"),
    ("fig7", [(catapults, with_({"sharpness": 26.0}))], "the sharpness ends below"),
    ("fig7", [(catapults, with_(train_loss=0.11))], "final training loss, beside linear warmup of 64, 200"),
    ("fig7", [(runs_of("sp", warmup=200), with_(train_loss=0.04))], "final training loss"),
    ("fig7", [(catapults, with_({"critical_lr": 0.079}))], "the critical rate of the next update"),
    ("fig7", [(catapults, with_({"critical_lr": 0.09}))], "the critical rate of the next update"),
    ("fig7", [(catapults, with_({"critical_lr": [0.006] + [0.2] * 160 + [0.07] * 89}))],
     "the critical rate of the next update"),
    ("fig7", [(catapults, with_({"critical_lr": math.nan}))], "the critical rate of the next update"),
]  # fmt: skip


def at(**wanted):
    """Which configs: by a field of any of their parts."""

    def is_it(config):
        values = {
            name: value
            for part in (config, config.model, config.optimizer, config.data, config.warmup)
            for name, value in vars(part).items()
            if name != "name"
        }
        values |= {"optimizer": config.optimizer.name, "data": config.data.name}
        return all(values[name] == value for name, value in wanted.items())

    return is_it


def either(*which):
    return lambda config: any(its(config) for its in which)


def column(**columns):
    """The columns, kept to the steps at which they were measured."""

    def edit(run):
        kept = {}
        for name, value in columns.items():
            missing = np.isnan(run.columns[name])
            kept[name] = np.where(missing, np.nan, value(run) if callable(value) else value)
        return remade(run, kept)

    return edit


def spiking(run):
    return np.where(run.columns["step"] == 1, 9.0, run.columns["train_loss"])


def level(value):
    """The same value of η·λ all along, at the same sharpness."""
    return lambda run: remade(
        run, {"lr": value / 1.9, "sharpness": np.where(np.isnan(run.columns["sharpness"]), np.nan, 1.9)}
    )


def dies(run):
    return diverged(run, after=2)


def mechanism_flips(figure, flat, sharp, *, flat_name, sharp_name, long, limit=2.0, claims):
    """A flip of each of the shared claims that the figure makes."""
    first, last = (
        (lambda c: sharp(c) and c.warmup.steps == 1),
        (lambda c: sharp(c) and c.warmup.steps == long),
    )
    known = {
        "rises": ([(flat, level(limit))], f"{flat_name}: sharpness first rises"),
        "hovers": ([(flat, with_({"lr": 50.0}))], f"{flat_name}: η·λ in the last third"),
        "flat trains": ([(flat, column(train_loss=1.0))], f"{flat_name}, T_wrm = "),
        "diverges": ([(first, with_(diverged=False))], f"{sharp_name}, T_wrm = 1: diverges"),
        "trains": (
            [(last, column(train_loss=lambda run: np.maximum(run.columns["train_loss"], 0.9)))],
            f"{sharp_name}, T_wrm = ",
        ),
        "falls": ([(last, column(sharpness=390.0))], f"{sharp_name}, T_wrm = "),
        "spikes": ([(last, column(train_loss=spiking))], f"{sharp_name}: the longer the warmup"),
    }
    return [(figure, *known[claim]) for claim in claims]


MUP, SP = at(parameterization="mup"), at(parameterization="sp")
SQUARED = ("rises", "hovers", "diverges", "trains", "falls")
BOUNDED = ("rises", "spikes", "trains", "falls")


def phase_flips(figure, panels, last):
    """Flips of figure 3's claims, a pair for each panel: (name, which configs)."""
    return [
        flip
        for name, which in panels
        for flip in [
            (
                figure,
                [(lambda c, w=which: w(c) and c.warmup.steps > 1 and c.optimizer.lr == 16.0, dies)],
                f"{name}: warmup moves",
            ),
            (
                figure,
                [
                    (
                        lambda c, w=which: w(c) and c.warmup.steps == 1 and c.optimizer.lr == 4.0,
                        with_(test_accuracy=0.99),
                    )
                ],
                f"{name}: the best accuracy",
            ),
        ]
    ] + [
        (
            figure,
            [
                (lambda c: c.optimizer.lr > 32.0, with_(diverged=False, test_accuracy=0.0)),
                (
                    lambda c: c.optimizer.lr == 16.0 and c.warmup.steps == 1,
                    with_(diverged=False, test_accuracy=0.0),
                ),
            ],
            last,
        )
    ]


def flat_accuracy(run):
    """The same at every rate that trains, and another than without warmup."""
    return remade(run, test_accuracy=0.93) if run.outcome["test_accuracy"] > 0.5 else run


def no_warmup(name, *, lr=None, above=None):
    return lambda c: (
        c.optimizer.name == name
        and c.warmup.steps == 1
        and (lr is None or math.isclose(c.optimizer.lr, lr))
        and (above is None or c.optimizer.lr > above)
    )


def gi_adam_flips(figure):
    return [
        (
            figure,
            [(no_warmup("gi-adam", above=0.01), with_(test_accuracy=0.0))],
            "T_wrm = 1: the failure boundary",
        ),
        (
            figure,
            [(no_warmup("gi-adam", lr=0.001), with_(test_accuracy=0.95))],
            "T_wrm = 1: the best target rate",
        ),
        (
            figure,
            [(no_warmup("adam", lr=0.004), with_(test_accuracy=0.95))],
            "T_wrm = 1: the best test accuracy",
        ),
    ]


def saved_flips(figure):
    """Flips of the claims on T_save; targets at demo scale are 1, 2 and 4 times the lowest."""

    def shifted(run):
        return remade(
            run, {"lr": run.columns["lr"] * np.where(np.arange(len(run.columns["lr"])) == 0, 0.5, 1.0)}
        )

    def saving(share):
        """A consistent run from this share of the target rate."""

        def edit(run):
            done = run.outcome["warmup"]
            steps, target = run.config.warmup.steps, done["lr_target"]
            rates = np.minimum(1.0, share + np.arange(len(run.columns["lr"])) / steps) * target
            saved = steps * share - done["num_forwards"] / 2
            return remade(run, {"lr": rates}, warmup=done | {"steps_saved": saved})

        return edit

    largest = {"fig5": 16.0, "fig27": 16.0, "fig28": 4e-3, "fig29": 4e-3}[figure]
    return [
        (figure, [(at(steps=16), shifted)], "T_save = T_wrm·η_c/η_trgt"),
        (
            figure,
            [
                (lambda c: c.warmup.steps == 64 and c.optimizer.lr < largest, saving(0.0)),
                (
                    at(steps=64, lr=largest),
                    lambda run: remade(
                        saving(0.0)(run), warmup=saving(0.0)(run).outcome["warmup"] | {"steps_saved": -5.0}
                    ),
                ),
            ],
            "the longer the warmup, the more steps",
        ),
        (
            figure,
            [(at(steps=64, lr=largest), saving(CRITICAL / 4 * 9 / 8))],
            "the longer the warmup, the more",
        ),
        (
            figure,
            [(at(steps=64, lr=largest), saving(CRITICAL / 4 * 7 / 8))],
            "the longer the warmup, the more",
        ),
        (figure, [(at(lr=largest), saving(1.0))], "the larger the target rate"),
    ]


FLIPS += [
    *mechanism_flips("fig8", MUP, SP, flat_name="μP", sharp_name="SP", long=200, claims=SQUARED),
    *mechanism_flips("fig9", MUP, SP, flat_name="μP", sharp_name="SP", long=200, limit=3.8, claims=SQUARED),
    *mechanism_flips("fig10", MUP, SP, flat_name="μP", sharp_name="SP", long=200, limit=3.8, claims=SQUARED),
    *mechanism_flips("fig11", MUP, SP, flat_name="μP, SGD", sharp_name="SP, SGD", long=200, claims=BOUNDED),
    *(
        flip
        for momentum, name in ((0.0, "GD"), (0.9, "GD with momentum"))
        for flip in mechanism_flips(
            "fig12",
            at(parameterization="mup", momentum=momentum),
            at(parameterization="sp", momentum=momentum),
            flat_name=f"μP, {name}",
            sharp_name=f"SP, {name}",
            long=200,
            claims=BOUNDED,
        )
    ),
    ("fig13", [(runs_of("sp"), scaled(1e-3, lambda s: s < 50))], f"SP, {START}"),
    ("fig13", [(runs_of("simple-mup"), scaled(50.0, lambda s: s > 90))], "on batches η·λ settles below"),
    ("fig13", [(runs_of("simple-mup"), scaled(1e-3, lambda s: s < 50))], f"simple μP, {START}"),
    ("fig14", [(runs_of("sp"), scaled(1e-3, lambda s: s < 50))], f"SP, {START}"),
    ("fig14", [(runs_of("simple-mup"), scaled(100.0))], f"simple μP, {START}"),
    *(
        flip
        for figure in ("fig15", "fig16")
        for flip in mechanism_flips(
            figure, MUP, SP, flat_name="μP", sharp_name="SP", long=30,
            claims=("rises", "flat trains", "spikes", "trains", "falls"),
        )
    ),
    *mechanism_flips(
        "fig17", at(final_norm=True), at(final_norm=False), flat_name="final LayerNorm",
        sharp_name="no final LayerNorm", long=20, claims=("rises", "spikes", "falls"),
    ),
    ("fig17", [(at(final_norm=False), column(sharpness=lambda run: run.columns["sharpness"] / 21))],
     "initial sharpness, without"),
    ("fig18", [(at(steps=1), scaled(1e-3, lambda s: s < 50))], f"SP, {START}"),
    ("fig18", [(at(steps=20), column(train_loss=1.0))], "Adam, T_wrm = 20: trains"),
    *phase_flips("fig3", [(f"{name}, {loss_name}", at(parameterization=p, loss=loss))
                          for p, name in (("mup", "μP"), ("sp", "SP"))
                          for loss, loss_name in (("mse", "MSE"), ("xent", "cross-entropy"))],
                 "beyond the boundary SGD diverges"),
    *(("fig3", [(lambda c, p=p, loss=loss: at(parameterization=p, loss=loss)(c) and c.warmup.steps > 1
                 and c.optimizer.lr <= 32.0, flat_accuracy)], f"{name}, {loss_name}: {DECIDES} best test accuracy")
      for p, name in (("mup", "μP"), ("sp", "SP")) for loss, loss_name in (("mse", "MSE"), ("xent", "cross-entropy"))),
    *phase_flips("fig19", [("digit pairs", at(data="digit-pairs")),
                           ("digit pairs, enlarged", at(data="digit-pairs-2x"))],
                 "beyond the boundary SGD diverges"),
    *(
        flip
        for figure in ("fig21", "fig22")
        for flip in [
            (figure, [(at(momentum=0.0, decay="none", steps=1, lr=2.0), dies)], "momentum moves"),
            (figure, [(at(decay="cosine", lr=1.0), with_(test_accuracy=0.95))], "cosine decay hurts"),
            (figure, [(at(decay="cosine", lr=32.0), with_(test_accuracy=0.2))], "cosine decay helps"),
        ]
    ),
    ("fig20", [(lambda c: c.model.final_norm and c.warmup.steps > 1 and c.optimizer.lr == 8.0, dies)],
     "final LayerNorm: warmup does not lower"),
    ("fig20", [(lambda c: not c.model.final_norm and c.warmup.steps > 1 and c.optimizer.lr == 4.0, dies)],
     "the sharp start gains more"),
    *gi_adam_flips("fig23"),
    *(("fig23", [(lambda c, n=n: c.optimizer.name == n and c.warmup.steps > 1, flat_accuracy)],
       f"{name}: {DECIDES} best test accuracy") for n, name in (("adam", "Adam"), ("gi-adam", "GI-Adam"))),
    ("fig23", [(no_warmup("gi-adam", above=0.016), with_(test_accuracy=0.0))], "T_wrm = 1: the failure boundary"),
    *gi_adam_flips("fig24"),
    ("fig25", [(no_warmup("gi-adam", above=0.2), with_(test_accuracy=0.0))], "T_wrm = 1: the failure boundary"),
    ("fig25", [(no_warmup("gi-adam", lr=0.004), gets(1.9))], "T_wrm = 1: the best target rate"),
    ("fig25", [(no_warmup("adam", lr=0.004), gets(1.9))], "T_wrm = 1: the best test loss"),
    ("fig26", [(at(lr=4.0), with_(diverged=True))], "far beyond the failure boundary"),
    *(("fig26", [(at(lr=4.0), column(**{name: 1.5}))], f"the {words} spikes")
      for name, words in (("train_loss", "loss"), ("gradient_norm", "gradient norm"), ("second_moment", "norm of v"))),
    *(flip for figure in ("fig5", "fig27", "fig28", "fig29") for flip in saved_flips(figure)),
    *(("fig30", [(runs_of(p, optimizer="gi-adam", starts=False), scaled(100.0))], f"{name}, T_wrm = 1: of the first")
      for p, name in (("sp", "SP"), ("simple-mup", "simple μP"))),
    *(
        flip
        for p, name in (("sp", "SP"), ("simple-mup", "simple μP"))
        for flip in [
            ("fig31", [(runs_of(p, optimizer="ri-adam"), scaled(10.0, first))], f"{name}: initial"),
            ("fig31", [(runs_of(p, optimizer="ri-adam"), with_({"train_loss": 0.3}))], f"{name}: last training loss"),
        ]
    ),
    *(("table1", [(lambda c, o=o, n=n, i=i: (c.optimizer.name, c.warmup.steps, c.warmup.lr_init) == (o, n, i),
                   with_(test_accuracy=0.5))], f"test accuracy: {words}")
      for o, n, i, words in (("adam", 20, 0.0, "Adam, T_wrm = 20"), ("gi-adam", 1, 0.0, "GI-Adam, T_wrm = 1"),
                             ("radam", 1, 0.0, "RAdam, T_wrm = 1"), ("adam", 20, "critical", "Adam from η_c"))),
]  # fmt: skip


def edge_cell(task, rate, *, kind="edge", but=()):
    """Which runs of edge-warmup: of one task, of Adam at its rate-th target, by kind of warmup."""
    lr = sorted(
        {c.optimizer.lr for c in RECIPES["edge-warmup"].configs("demo") if in_task(c, task) and is_adam(c)}
    )[rate]
    return lambda c: (
        in_task(c, task)
        and is_adam(c)
        and c.optimizer.lr == lr
        and c.warmup.kind == kind
        and c.warmup.steps not in but
    )


def in_task(config, task):
    return task_of(config) == task


def is_adam(config):
    return config.optimizer.name == "adam"


def edge_flips(half, task):
    """Flips of each claim on one half of the tasks, by cells of one task of it."""
    warmup = {"overhead": 0.02, "lr_held": None, "lr_target": 1.0}
    of_task = lambda kind, steps: (
        lambda c: in_task(c, task) and c.warmup.kind == kind and c.warmup.steps == steps
    )
    failed = gets(5.0)
    other_lengths = tuple(steps for steps in (*LENGTHS, NUM_STEPS) if steps != 64)
    return [
        ("edge-warmup", edits, f"{half}: {words}")
        for edits, words in (
            ([(of_task("linear", 8), gets(0.9))], "final loss within 1 %"),
            ([(edge_cell(task, 2), gets(1.02))], "the same, against the one length"),
            (
                [
                    (edge_cell(task, 2), failed),
                    (edge_cell(task, 2, kind="linear", but=other_lengths), failed),
                    (edge_cell(task, 1, kind="linear", but=(64,)), failed),
                    (edge_cell(task, 3, kind="linear", but=(64,)), failed),
                ],
                "cells that fail",
            ),
            ([(edge_cell(task, 2), with_(warmup=warmup | {"overhead": 0.05}))], "forwards"),
            ([(edge_cell(task, -1), with_(warmup=warmup))], "targets 4 and 16 times too high"),
        )
    ]


FLIPS += [*edge_flips("held out", "LM, B = 64"), *edge_flips("development", "LM, B = 16")]


def of_warmups(name, lr, *, kind="linear", steps=1, critical=False, seed=0):
    start = "critical" if critical else 0.0
    return lambda c: (
        (c.optimizer.name, c.optimizer.momentum, c.optimizer.lr, c.seed) == (name, 0.0, lr, seed)
        and (c.warmup.kind, c.warmup.steps, c.warmup.lr_init) == (kind, steps, start)
    )


def ends_at(loss):
    return with_({"train_loss": loss}, train_loss=loss, test_loss=loss)


FLIPS += [
    ("warmups", [(of_warmups("sgd", 8.0, kind="catapult"), ends_at(1.05))], "gradient descent: catapults"),
    (
        "warmups",
        [(of_warmups("sgd", 16.0, steps=64, critical=True), ends_at(1.02))],
        "gradient descent: final loss from η_c",
    ),
    ("warmups", [(of_warmups("adam", 0.064, steps=200, critical=True), ends_at(0.99))], "Adam, η ≥ 0.016"),
    ("warmups", [(of_warmups("gi-adam", 0.004, kind="edge", seed=0), diverged)], "EdgeWarmup: target rates"),
]


def of_line(line, *, lr):
    """Which runs of when-warmup: with warmup, of a network and an optimizer, at a target rate."""
    label = RECIPES["when-warmup"].layout.line
    return lambda c: label(c) == line and c.warmup.steps > 1 and c.optimizer.lr == pytest.approx(lr)


def rule_flips(line):
    """Flips of both sides of the rule, by a gain of 0.1 where it says none and one of half the tolerance beyond."""
    stable, beyond = (1e-3, 4e-3) if line.endswith("Adam") else (1.0, 4.0)
    gains, hardly = with_(test_loss=1.9, test_accuracy=0.6), with_(test_loss=1.99, test_accuracy=0.505)
    return [
        ("when-warmup", [(of_line(line, lr=stable), gains)], f"{line}: where training starts stable"),
        ("when-warmup", [(of_line(line, lr=beyond), hardly)], f"{line}: where training starts at the edge"),
    ]


FLIPS += [
    flip
    for line in dict.fromkeys(map(RECIPES["when-warmup"].layout.line, RECIPES["when-warmup"].configs("demo")))
    for flip in rule_flips(line)
]


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


@pytest.mark.parametrize(
    ("edge", "best_before", "words", "holds"),
    [
        (0.95, 1.0, "5 of 5, 0 fail; that length 5, 0 fail", True),
        (1.2, 1.0, "0 of 5, 0 fail; that length 5, 0 fail", False),
        (1.2, 1.2, "0 of 5, 0 fail; that length 0, 0 fail", True),
        (0.95, 5.0, "5 of 5, 0 fail; that length 0, 5 fail", True),
        (5.0, 1.2, "0 of 5, 5 fail; that length 0, 0 fail", False),
    ],
)
def test_edge_warmup_is_held_against_the_length_that_was_best_on_other_seeds(edge, best_before, words, holds):
    def on_other_seeds(run):
        warmup = run.config.warmup
        if run.config.seed < 3:
            return run
        loss = edge if warmup.kind == "edge" else best_before if warmup.steps == 64 else 1.0
        return gets(loss)(run)

    runs = [
        run
        for run in story("edge-warmup", "paper")
        if in_task(run.config, "LM, B = 64") and is_adam(run.config)
    ]
    kinds = {(c.warmup.kind, c.warmup.steps) for c in (run.config for run in runs) if c.seed >= 3}
    assert kinds == {("edge", 1), *(("linear", steps) for steps in LENGTHS)}
    claims = RECIPES["edge-warmup"].claims([on_other_seeds(run) for run in runs])
    assert [claim.text[:22] for claim in claims[-2:]] == ["held out, seeds 0 to 2"] * 2
    best, fixed = claims[-4:-2]
    assert best.text.startswith("held out, seeds 3 to 5: the best of six lengths")
    assert (best.measured, best.holds) == (words, holds)
    assert fixed.text.startswith("held out, seeds 3 to 5: T_wrm = 64")
    assert fixed.holds == (edge <= best_before)


def test_the_loss_of_the_digits_is_that_of_the_last_tenth():
    its = RECIPES["warmups"]
    (run,) = [run for run in story("warmups") if of_warmups("sgd", 4.0, steps=64)(run.config)]
    losses = np.where(np.arange(250) < 225, 5.0, 0.5)
    assert its.layout.value.of(remade(run, {"train_loss": losses})) == 0.5


def test_catapults_are_held_against_lengths_and_not_against_edge_warmup():
    """The text of the claim, with EdgeWarmup far below all others."""
    its = RECIPES["warmups"]
    runs = [
        ends_at(0.1)(run) if run.config.warmup.kind == "edge" else run for run in story("warmups", "embedded")
    ]
    claim = its.claims(runs)[0]
    assert (claim.measured, claim.holds) == ("at 8 of 8", True)


def test_where_no_length_trains_edge_warmup_need_not():
    its = RECIPES["warmups"]
    lost = [("linear", 64), ("linear", 200), ("edge", 1)]
    runs = [
        diverged(run)
        if (run.config.optimizer.lr, run.config.warmup.kind) == (0.256, "edge")
        or any(of_warmups("adam", 0.256, kind=kind, steps=steps)(run.config) for kind, steps in lost)
        else run
        for run in story("warmups")
    ]
    *_, claim = its.claims(runs)
    assert (claim.measured, claim.holds) == ("1 of 17", False)  # GI-Adam's


def test_warmups_are_compared_on_five_seeds():
    configs = RECIPES["warmups"].configs("embedded")
    assert len(configs) == 18 * 6 * 5
    assert {warmup_label(c) for c in configs} == {
        "T_wrm = 64",
        "T_wrm = 64 from η_c",
        "T_wrm = 200",
        "T_wrm = 200 from η_c",
        "catapults",
        "EdgeWarmup",
    }
    assert {c.seed for c in configs} == set(range(5))
    assert {c.seed for c in RECIPES["warmups"].configs("demo")} == {0}


@pytest.mark.parametrize("figure", RECIPES)
def test_every_claim_is_flipped_above(figure):
    words = [w for flipped, _, w in FLIPS if flipped == figure]
    for claim in RECIPES[figure].claims(story(figure)):
        assert any(claim.text.startswith(w) for w in words), claim.text


@pytest.mark.parametrize("scale", SCALES)
def test_when_warmup_is_of_the_diagrams_that_there_are_and_measures_each_start_of_adam_s_once(scale):
    configs = RECIPES["when-warmup"].configs(scale)
    starts = [c for c in configs if c.num_steps == 1]
    cells = {changed(c, seed=0) for c in configs if c.num_steps > 1}
    assert cells < {
        changed(c, evaluate_every=None)
        for n in (3, 4, 20, 21, 22, 23)
        for c in RECIPES[f"fig{n}"].configs(scale)
    }
    assert {(c.model.name, c.optimizer.name) for c in cells} == {
        *((model, name) for model in ("wrn", "lm") for name in ("sgd", "adam", "gi-adam"))
    }
    seeds = {(c.model.name, c.optimizer.name, c.seed) for c in configs if c.optimizer.name != "sgd"}
    assert sorted((c.model.name, c.optimizer.name, c.seed) for c in starts) == sorted(seeds)
    assert {c.measure for c in starts} == {("preconditioned_sharpness",)}


def test_when_warmup_says_how_often_the_rule_errs():
    """SGD of figure 3 at demo scale: targets of 2ˣ/λ₀, x = 0 … 8, the first of them below the limit 2/λ₀."""
    below, beyond, *_ = RECIPES["when-warmup"].claims(story("when-warmup"))
    assert below.measured == "more at 0 of 1"
    assert beyond.measured == (
        "at 8 of 8, at all from 1 times the limit on (η = 2/λ₀); 5 train with warmup alone, 0 with no length"
    )


def test_when_warmup_says_what_chance_is_worth():
    """On two seeds of the residual network; one whose accuracy with warmup is 0.02 higher has gains so much higher."""

    def luckier(run):
        return remade(run, test_accuracy=run.outcome["test_accuracy"] + 0.02)

    def last(runs):
        return RECIPES["when-warmup"].claims(runs)[-1]

    runs = story("when-warmup", "embedded")
    assert last(runs).text.startswith("the gain of the residual network at a rate is the same on two seeds")
    assert last(runs).measured.startswith("apart by 0 in the median, 0 at most")
    assert last(runs).holds
    lucky = [luckier(run) if run.config.seed == 1 and run.config.warmup.steps > 1 else run for run in runs]
    assert last(lucky).measured.startswith("apart by 0.02 in the median, 0.02 at most")
    assert not last(lucky).holds


def test_lengths_differ_by_as_much_as_in_the_paper_s_released_table():
    """Best test accuracies on CIFAR-10 with Adam; the table begins at its best rate, so nothing is left to gain."""
    table = {
        1: {0.00512: 0.9363, 0.01024: 0.9146, 0.02048: 0.8794, 0.04096: 0.1037},
        1024: {0.00512: 0.9465, 0.01024: 0.9356, 0.02048: 0.9239, 0.04096: 0.8985},
    }
    runs = [
        made(
            tiny(optimizer={"name": "adam", "lr": lr}, warmup={"steps": steps}, num_steps=2000),
            test_accuracy=value,
        )
        for steps, row in table.items()
        for lr, value in row.items()
    ]
    claim = decide("Adam", phase_diagram(runs, TEST_ACCURACY))
    assert claim.measured == "0 (best at 0.00512) beside 0.021"
    assert not claim.holds


def test_where_nothing_trains_no_rate_decides():
    runs = [made(tiny(warmup={"steps": steps}), test_accuracy=0.1) for steps in (1, 2)]
    assert not decide("Adam", phase_diagram(runs, TEST_ACCURACY)).holds


def test_the_loss_at_adam_s_boundary_is_held_against_its_deviation_over_seeds():
    runs = [
        remade(run, test_loss=run.outcome["test_loss"] - 0.3 * run.config.seed)
        for run in story("fig4", "embedded")
    ]
    (claim,) = [c for c in RECIPES["fig4"].claims(runs) if "at the largest rate that trains" in c.text]
    assert "its deviation over seeds, 0.424 " in claim.expected  # √2 · 0.3
    assert (claim.measured, claim.holds) == ("0.36 at 0.512", False)


def test_a_claim_shows_what_was_measured():
    claims = RECIPES["fig4"].claims(story("fig4"))
    assert claims[0].measured == "2.45 at 0.001 → 2.20 at 0.004 → 3.03 at 0.256"
    assert claims[2].measured == "16 (0.064 ÷ 0.004)"
    assert claims[3].measured == "0.36 at 0.256"
    assert claims[5].measured == "0.6 (best at 0.064) beside 0.29"
    last = RECIPES["fig7"].claims(story("fig7"))[-1]  # 0.006 to 0.11 at step 249; 1/λ₀ = 0.08/32
    assert last.measured == "2.4 at first, 37.1 in the last third (median), 43.3 at most"
    rises, hovers, diverges, trains, falls = RECIPES["fig1"].claims(story("fig1"))
    assert rises.measured == "1.9 → 4, 4, 6.35 at T_wrm 1, 64, 200"
    assert hovers.measured == "2–2"
    assert diverges.expected.startswith(
        "within 13 updates: a quadratic loss, times 961 "
    )  # 31² each; 961^12.9 is 3.4e38
    assert diverges.measured == "diverged after 7 updates"
    assert trains.measured == "0.1 → 0.1, 0.1 → 0.1"
    assert falls.measured == "31.2 → 1.52, 31.2 → 1.52"
