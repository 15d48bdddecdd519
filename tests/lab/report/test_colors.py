"""The colours of lines.

Oracle: what matplotlib was told to draw and what plotly was, of every figure at every scale; contrast by the formula of
WCAG; colour-blind eyes by the matrices of Machado et al. (2009), distances in CIELAB. Cannot see: whether lines that
cross can be told apart.
"""

import itertools
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from edgewise.lab.configs import OPTIMIZERS, WARMUPS, OptimizerConfig, WarmupConfig
from edgewise.lab.recipes import RECIPES, Trajectories
from edgewise.lab.report import colors, interactive, panels, plots
from edgewise.lab.results.runs import Absent
from lab_cases import shown, story, tiny

NONE, SHORT, MIDDLE, LONG = (WarmupConfig(steps=steps) for steps in (1, 64, 256, 1024))
LONG_BESIDE = WarmupConfig(steps=512)
CRITICAL = WarmupConfig(steps=256, lr_init="critical")
CATAPULT, EDGE = (WarmupConfig(kind=kind) for kind in ("catapult", "edge"))
WHITE, DARK = "#ffffff", "#17191c"  # the pages of page.css
EYES = {
    "normal": np.eye(3),
    "deuteranope": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanope": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "tritanope": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def linear(color):
    values = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(color, page):
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) + 0.05 for c in (color, page))
    return high / low


def lab(rgb):
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def waiting(config):
    return Absent(run_id=config.run_id, config=config, failed=False, reason="not trained yet")


def test_the_color_of_a_label_is_the_same_in_all_figures_at_all_scales():
    found = defaultdict(set)
    for scale in ("demo", "embedded", "desk", "paper"):
        for recipe in RECIPES.values():
            if isinstance(recipe.layout, Trajectories):
                curves = panels.Curves.of(recipe.layout, list(map(waiting, recipe.configs(scale))))
                assert len(set(curves.lines.values())) == len(curves.lines), (recipe.id, scale)
                for line, color in curves.lines.items():
                    found[line].add(color)
    several = {line: its for line, its in found.items() if len(its) > 1}
    assert several == {}
    assert {"T_wrm = 1", "T_wrm = 1024", "catapults", "GI-Adam, T_wrm = 64"} <= set(found)


@pytest.mark.parametrize("figure", ["fig1", "fig6", "fig7", "fig31"])
def test_a_line_has_the_same_color_in_the_picture_and_on_the_page(figure):
    results = shown(RECIPES[figure], story(figure))
    drawn = plots.draw(results)
    picture = {
        text.get_text(): handle.get_color()
        for text, handle in zip(drawn.legends[0].get_texts(), drawn.legends[0].get_lines(), strict=True)
    }
    page = {
        trace.name: trace.line.color
        for trace in interactive.curves(results.panels).data
        if trace.name in results.panels.lines
    }
    assert page == {line: picture[line] for line in page}
    assert page == results.panels.lines


def test_a_warmup_keeps_its_color_whatever_its_decay_and_whatever_is_beside_it():
    for warmup in (NONE, SHORT, CRITICAL, CATAPULT, EDGE):
        decaying = replace(warmup, decay="cosine")
        assert colors.of_warmup(decaying) == colors.of_warmup(warmup)
        beside = {"a": tiny(num_steps=512, warmup=warmup), "b": tiny(num_steps=512, warmup=LONG_BESIDE)}
        assert colors.of_lines(beside)["a"] == colors.of_warmup(warmup)


def test_no_two_warmups_share_a_color_and_each_is_seen_on_both_pages():
    ways = (NONE, SHORT, MIDDLE, LONG, CRITICAL, CATAPULT, EDGE)
    assert {way.kind for way in ways} == set(WARMUPS)
    found = [colors.of_warmup(way) for way in ways]
    for name, eye in EYES.items():
        for one, other in itertools.combinations(found, 2):
            assert np.linalg.norm(lab(eye @ linear(one)) - lab(eye @ linear(other))) > 12, (name, one, other)


def test_every_color_is_three_times_as_bright_or_dark_as_both_pages():
    optimizers = [colors.of_optimizer(OptimizerConfig(name=name, lr=1.0)) for name in OPTIMIZERS]
    momentum = colors.of_optimizer(OptimizerConfig(name="sgd", lr=1.0, momentum=0.9))
    lengths = [*range(2, 40)]
    ramps = [
        colors.of_warmup(WarmupConfig(steps=steps, lr_init=start), lengths)
        for start in (0.0, "critical")
        for steps in lengths
    ]
    every = {*optimizers, momentum, *ramps, *colors.OTHERS, *map(colors.of_warmup, (NONE, CATAPULT, EDGE))}
    assert len({*optimizers, momentum}) == len(OPTIMIZERS) + 1
    for color in every:
        assert min(contrast(color, WHITE), contrast(color, DARK)) >= 3, color


def test_lengths_that_are_close_have_colors_of_their_own_from_the_same_ramp():
    lines = {str(steps): tiny(num_steps=64, warmup={"steps": steps}) for steps in (1, 8, 16, 32, 64)}
    found = colors.of_lines(lines)
    assert len(set(found.values())) == 5
    assert found["1"] == colors.of_warmup(NONE)
    assert (found["8"], found["64"]) == (colors.of_warmup(SHORT), colors.of_warmup(LONG))
    assert all(
        contrast(found[a], WHITE) < contrast(found[b], WHITE)
        for a, b in itertools.pairwise(("8", "16", "32"))
    )


def test_lines_that_differ_in_something_else_have_colors_in_turn():
    lines = {str(lr): tiny(optimizer={"lr": lr}, warmup={"steps": 2}) for lr in (0.1, 0.2, 0.3)}
    assert list(colors.of_lines(lines).values()) == list(colors.OTHERS[:3])


def test_optimizers_have_their_colors_and_their_warmups_theirs_where_those_differ_too():
    both = [
        tiny(optimizer={"name": name, "lr": 0.1}, warmup={"steps": steps})
        for name in ("adam", "gi-adam")
        for steps in (1, 4)
    ]
    adam, adam_warmed, gi_adam, gi_adam_warmed = both
    own = {name: colors.of_optimizer(OptimizerConfig(name=name, lr=1.0)) for name in ("adam", "gi-adam")}
    assert colors.of_lines({"adam": adam, "gi-adam": gi_adam}) == own
    assert colors.of_lines({"adam": adam_warmed, "gi-adam": gi_adam_warmed}) == own
    found = colors.of_lines({"adam": adam, "gi-adam": gi_adam, "warmed": gi_adam_warmed})
    assert found == own | {"warmed": colors.of_warmup(SHORT)}
