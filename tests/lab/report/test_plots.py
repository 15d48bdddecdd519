"""The paper's figures, from made-up runs.

Oracle: the artists that matplotlib was told to draw, against the runs' numbers. Cannot see: whether a figure is
beautiful.
"""

import io
import math
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest

from edgewise.lab.recipes import RECIPES, Quantity, Trajectories
from edgewise.lab.recipes.recipe import LOSS, parameterization_label, warmup_label
from edgewise.lab.report import panels, plots, presentation
from edgewise.lab.results.phase_diagram import phase_diagram
from edgewise.lab.results.runs import Absent, Run
from lab_cases import changed, diverged, made, paper_limit, remade, shown, stored, story, tiny

SHARPNESS = Quantity(column="sharpness", label="sharpness", threshold=True)
PRODUCT = Quantity(column="sharpness", label="product", log=False, times_lr=True, threshold=True)


def draw(figure, runs):
    return plots.draw(shown(RECIPES[figure], runs))


def panels_of(figure):
    """The axes that are no colour bars."""
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]


def dashed(ax):
    return [line for line in ax.get_lines() if line.get_linestyle() == "--"]


def solid(ax):
    return [line for line in ax.get_lines() if line.get_linestyle() == "-"]


@pytest.mark.parametrize(
    ("figure", "scale", "shape"),
    [
        ("fig1", "demo", (2, 3)),
        ("fig2", "demo", (2, 2)),  # the sharpness is not measured at this scale: no empty panel
        ("fig2", "embedded", (2, 3)),
        ("fig6", "demo", (2, 2)),
        ("fig4", "demo", (1, 2)),
    ],
)
def test_a_panel_for_each_row_and_each_measured_quantity(figure, scale, shape):
    drawn = draw(figure, story(figure, scale))
    axes = panels_of(drawn)
    grid = axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == shape
    assert len(axes) == shape[0] * shape[1]
    assert RECIPES[figure].title in drawn.get_suptitle()


def test_curves_are_the_measured_values_of_each_run():
    runs = story("fig1")
    top = panels_of(draw("fig1", runs))[:3]  # μP
    for ax in top:
        assert ax.get_title(loc="left") == "μP"
    for run, line in zip(runs[:3], solid(top[0]), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), run.columns["train_loss"])
    for run, line in zip(runs[:3], solid(top[1]), strict=True):
        assert line.get_xdata().tolist() == list(range(0, 250, 5))
        np.testing.assert_array_equal(line.get_ydata(), run.columns["sharpness"][::5])
    for run, line in zip(runs[:3], solid(top[2]), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), (run.columns["lr"] * run.columns["sharpness"])[::5])


def test_thresholds_are_the_limit_over_the_rate_of_each_step_and_the_limit_itself():
    runs = story("fig1")
    _, curvature, product = panels_of(draw("fig1", runs))[:3]
    for run, line in zip(runs[:3], dashed(curvature), strict=True):
        np.testing.assert_allclose(line.get_ydata(), 2 / run.columns["lr"])
        np.testing.assert_array_equal(line.get_xdata(), run.columns["step"])
    assert [set(line.get_ydata()) for line in dashed(product)] == [{2.0}]


def test_adam_s_threshold_is_38_over_the_rate():
    runs = story("fig2")
    preconditioned = panels_of(draw("fig2", runs))[1]
    np.testing.assert_allclose(dashed(preconditioned)[0].get_ydata(), 38 / runs[0].columns["lr"])


def test_lion_has_no_threshold():
    configs = [changed(run.config, optimizer={"name": "lion"}) for run in story("fig1")]
    runs = [
        replace(run, config=config, outcome=run.outcome | {"stability_limit": paper_limit(config.optimizer)})
        for run, config in zip(story("fig1"), configs, strict=True)
    ]
    assert panels.thresholds(runs[0]) == []
    figure = draw("fig1", runs)
    assert [dashed(ax) for ax in panels_of(figure)[:3]] == [[], [], []]
    assert "stability threshold" not in {text.get_text() for text in figure.legends[0].get_texts()}


def test_a_start_of_one_step_is_no_curve():
    runs = story("fig6")
    axes = panels_of(draw("fig6", runs))
    assert [len(solid(ax)) for ax in axes] == [2] * 4  # Adam and GI-Adam, not their one-step twins


def test_a_diverged_run_does_not_set_the_axis_and_is_marked_at_its_end():
    well = made(tiny(), {"train_loss": [1.0, 0.8, 0.6, 0.5, 0.4, 0.3]})
    gone = diverged(made(tiny(optimizer={"lr": 9.0})))
    layout = Trajectories(quantities=(LOSS,), row=parameterization_label, line=warmup_label)
    assert panels.value_range([well, gone], LOSS) == panels.value_range([well], LOSS)
    low, high = panels.value_range([well, gone], LOSS)
    assert (low, high) == (0.15, 4.0)
    (ax,) = plots.draw(shown(replace(RECIPES["fig1"], layout=layout), [well, gone])).axes
    assert ax.get_ylim() == pytest.approx((low, high))
    (mark,) = [line for line in ax.get_lines() if line.get_marker() == "x"]
    assert mark.get_xdata().tolist() == [3]  # its last finite loss
    assert mark.get_ydata().tolist() == [pytest.approx(high)]  # at the rim: the loss itself is 1e9


def test_if_every_run_diverged_they_are_still_drawn():
    runs = [diverged(made(tiny(optimizer={"lr": lr}))) for lr in (9.0, 99.0)]
    layout = Trajectories(quantities=(LOSS,), row=parameterization_label, line=warmup_label)
    assert panels.value_range(runs, LOSS) is None
    (ax,) = plots.draw(shown(replace(RECIPES["fig1"], layout=layout), runs)).axes
    assert ax.get_ylim()[1] >= 1e6


def test_a_measurement_that_is_not_finite_leaves_a_gap():
    run = made(tiny(), {"sharpness": [1.0, math.inf, math.nan, 4.0, 5.0, 6.0], "lr": [1, 2, 3, 4, 5, 6]})
    steps, values = panels.curve(run, PRODUCT)
    assert steps.tolist() == [0, 3, 4, 5]
    assert values.tolist() == [1.0, 16.0, 25.0, 36.0]
    assert panels.curve(run, SHARPNESS)[1].tolist() == [1.0, 4.0, 5.0, 6.0]


def fig4_with(*, failed=(), gone=(), missing=()):
    """fig4's Adam panel with cells (rate, warmup) of other kinds."""
    runs = []
    for run in story("fig4"):
        at = (run.config.optimizer.name, run.config.optimizer.lr, run.config.warmup.steps)
        if at in missing:
            continue
        kept = remade(run, test_loss=5.0) if at in failed else run
        runs.append(diverged(kept) if at in gone else kept)
    return runs


def drawn_cells(ax):
    """Lower left corner → hatch and colour."""
    cells = {}
    for mesh in ax.collections:
        mesh.update_scalarmappable()
        for path, color in zip(mesh.get_paths(), mesh.get_facecolor(), strict=True):
            cells[tuple(path.vertices.min(0))] = (mesh.get_hatch(), tuple(color))
    return cells


def test_failed_diverged_and_missing_cells_are_drawn_apart():
    runs = fig4_with(failed=[("adam", 0.256, 1)], gone=[("adam", 0.256, 32)], missing=[("adam", 0.256, 128)])
    ax, other = panels_of(draw("fig4", runs))
    cells = drawn_cells(ax)
    assert {corner: cells[corner][0] for corner in ((3, 0), (4, 0), (4, 1))} == {
        (3, 0): None,
        (4, 0): "//",
        (4, 1): "xx",
    }
    assert (4, 2) not in cells
    assert len(cells) == 17
    assert len(drawn_cells(other)) == 18
    colors = {cells[corner][1] for corner in ((3, 0), (4, 0), (4, 1))}
    assert len(colors) == 3
    drawn = {text.get_text() for text in ax.texts}
    assert {"2.45", "2.72", "5.00"} <= drawn
    hatches = [handle.get_hatch() for handle in ax.figure.legends[0].get_patches()]
    assert hatches == ["//", "xx", None]  # failed, diverged, not trained


def absent(run, *, failed=False):
    return Absent(run_id=run.config.run_id, config=run.config, failed=failed, reason="why")


def cell_at(run):
    return run.config.optimizer.name, run.config.optimizer.lr, run.config.warmup.steps


def test_cells_that_wait_or_ended_with_an_error_are_drawn_apart_and_their_row_is_not_judged():
    runs = [
        absent(run, failed=cell_at(run)[1] == 0.064)
        if cell_at(run)[0] == "adam" and cell_at(run)[2] == 32 and cell_at(run)[1] >= 0.064
        else run
        for run in story("fig4")
    ]
    ax, other = panels_of(draw("fig4", runs))
    cells = drawn_cells(ax)
    assert {corner: cells[corner][0] for corner in ((3, 1), (4, 1), (5, 1), (2, 1), (5, 0))} == {
        (3, 1): "\\\\",
        (4, 1): "..",
        (5, 1): "..",
        (2, 1): None,
        (5, 0): "//",
    }
    assert len({cells[corner][1] for corner in ((3, 1), (4, 1), (5, 0))}) == 3
    assert len(drawn_cells(other)) == 18
    edges = [line for line in ax.get_lines() if line.get_marker() == "None"]
    stars = [line for line in ax.get_lines() if line.get_marker() == "*"]
    assert [line.get_ydata().tolist() for line in edges] == [[0, 1], [2, 3]]  # none for the row in the middle
    assert [int(line.get_ydata()[0]) for line in stars] == [0, 2]
    labels = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert labels[-2:] == ["waiting", "error: no result"]
    labels = [text.get_text() for text in draw("fig4", story("fig4")).legends[0].get_texts()]
    assert not {"waiting", "error: no result"} & set(labels)


def test_missing_curves_are_named_in_their_row_and_the_others_keep_their_colours():
    whole = story("fig1")
    runs = [
        absent(run, failed=run.config.model.parameterization == "sp") if run.config.warmup.steps == 1 else run
        for run in whole
    ]
    before, after = (panels_of(draw("fig1", its)) for its in (whole, runs))
    assert [text.get_text() for text in after[0].texts] == ["no curve of\nT_wrm = 1: waiting"]
    assert [text.get_text() for text in after[3].texts] == ["no curve of\nT_wrm = 1: error"]
    assert [line.get_color() for line in solid(after[0])] == [line.get_color() for line in solid(before[0])][
        1:
    ]


@pytest.mark.parametrize("figure", ["fig1", "fig4", "table1"])
def test_a_figure_of_which_no_run_is_there_is_drawn(figure):
    drawn = draw(figure, [absent(run) for run in story(figure)])
    assert RECIPES[figure].title in drawn.get_suptitle()


def test_a_table_counts_its_missing_runs():
    layout, runs = RECIPES["table1"].layout, story("table1")
    runs = [absent(run) if run.config.seed == 1 and run.config.warmup.steps == 1 else run for run in runs]
    cells = panels.Cells.of(layout, runs)
    adam = cells.rows.index("Adam")
    assert cells.texts[adam] == ("0.700, 1 missing", "0.905 ± 0.007 (2)")
    runs = [absent(run) if isinstance(run, Run) and run.config.warmup.steps == 1 else run for run in runs]
    assert panels.Cells.of(layout, runs).texts[adam][0] == "–, 2 missing"


def test_labels_are_text_and_no_mathematics():
    layout = replace(RECIPES["fig1"].layout, row=lambda config: r"$\frac{$", line=lambda config: "a$b$")
    figure = plots.draw(shown(replace(RECIPES["fig1"], title="$^$", layout=layout), story("fig1")))
    figure.savefig(io.BytesIO())  # where mathematics is parsed


@pytest.mark.parametrize("figure", ["../../elsewhere", "a/b", "..", 'x" onload="y', "x" * 300])
def test_names_of_files_stay_in_their_folder(figure):
    name = plots.name_of(figure)
    assert not set('/\\."<> ') & set(name)
    assert 0 < len(name) <= 100


def test_the_boundary_stands_right_of_the_last_trained_cell():
    runs = fig4_with(failed=[("adam", 0.064, 1)], gone=[("adam", 0.001, 32)])
    ax = panels_of(draw("fig4", runs))[0]
    edges = [line for line in ax.get_lines() if line.get_marker() == "None"]
    assert [line.get_xdata().tolist() for line in edges] == [[3, 3], [0, 0], [5, 5]]  # of six rates
    assert [line.get_ydata().tolist() for line in edges] == [[0, 1], [1, 2], [2, 3]]
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        "0.001",
        "0.004",
        "0.016",
        "0.064",
        "0.256",
        "1.024",
    ]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1", "32", "128"]


def test_the_best_of_each_row_has_a_star():
    ax = panels_of(draw("fig4", story("fig4")))[0]
    stars = [line for line in ax.get_lines() if line.get_marker() == "*"]
    assert [line.get_xdata()[0] for line in stars] == [1.5, 3.5, 3.5]  # 0.004, then 0.064


def test_colours_span_the_trained_cells_alone():
    diagrams = list(panels.Diagrams.of(RECIPES["fig4"].layout, story("fig4")).diagrams.values())
    low, high = panels.color_limits(diagrams)
    trained = [loss for d in diagrams for loss in d.mean.flatten() if loss < 3.3]
    assert (low, high) == (min(trained), max(trained))
    nothing = phase_diagram([remade(run, test_loss=9.0) for run in story("fig4")])
    assert panels.color_limits([nothing]) == (0.0, 1.0)


def test_a_diagram_in_which_nothing_trained_is_drawn():
    ax = panels_of(draw("fig4", [remade(run, test_loss=9.0) for run in story("fig4")]))[0]
    assert {hatch for hatch, _ in drawn_cells(ax).values()} == {"//"}


def test_figures_are_saved_as_png_and_pdf_and_leave_matplotlib_as_it_was(tmp_path):
    before = dict(mpl.rcParams)
    runs = {figure: story(figure) for figure in ("fig2", "fig4")}
    store = stored(tmp_path, runs)
    written = plots.save_figures(store, presentation.read(store))
    assert written == ["figures/fig2.png", "figures/fig4.png"]
    for figure in runs:
        assert (tmp_path / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "figures" / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
    assert dict(mpl.rcParams) == before


def gains_of(panel, line):
    """The points of when-warmup as they should stand: distance and gain, infinite ones where only warmup trains."""
    points = panels.panels_of(RECIPES["when-warmup"].layout, story("when-warmup"))
    return points, points.panels[panel][line]


def test_gains_stand_over_the_distance_from_the_edge():
    """The made-up runs gain nothing below 1, 0.1 from there on, and train with warmup alone from 8 on."""
    figure = draw("when-warmup", story("when-warmup"))
    points, found = gains_of("SGD: test accuracy, residual network", "WRN, μP, MSE, SGD")
    assert [(gain.distance, gain.value) for gain in found] == [
        *((0.5, 0.0), (1.0, pytest.approx(0.1)), (2.0, pytest.approx(0.1)), (4.0, pytest.approx(0.1))),
        *((2.0**x, math.inf) for x in range(3, 8)),
    ]
    assert [ax.get_title(loc="left") for ax in figure.axes] == list(points.panels)
    first, *_ = figure.axes
    assert first.get_xscale() == "log"
    color = points.colors["SGD: test accuracy, residual network"]["WRN, μP, MSE, SGD"]
    drawn = [
        (float(line.get_xdata()[0]), line.get_marker(), line.get_markerfacecolor() != "none")
        for line in first.get_lines()
        if line.get_color() == color and len(line.get_xdata()) == 1
    ]
    assert drawn == [
        *((0.5, "o", False), (1.0, "o", True), (2.0, "o", True), (4.0, "o", True)),
        *((2.0**x, "^", True) for x in range(3, 8)),
    ]
    assert [line.get_xdata()[0] for line in dashed(first)] == [1]
    low, high = first.get_ylim()
    for label, line in points.panels["SGD: test accuracy, residual network"].items():
        heights = points.heights("SGD: test accuracy, residual network", label)
        assert len(heights) == len(line)
        assert all(low < height < high for height in heights)
    tops = {
        points.heights("SGD: test accuracy, residual network", label)[-1]
        for label in points.panels["SGD: test accuracy, residual network"]
    }
    assert len(tops) == 6  # none hides another


def test_a_gain_that_only_no_warmup_has_stands_at_the_bottom():
    its = RECIPES["when-warmup"].layout
    runs = [
        diverged(run, after=2) if run.config.warmup.steps > 1 else run
        for run in story("when-warmup")
        if its.line(run.config) == "LM, final LayerNorm, SGD" and run.config.optimizer.lr <= 8
    ]
    points = panels.panels_of(its, runs)
    ((panel, (line,)),) = points.panels.items()
    assert {gain.value for gain in points.panels[panel][line]} == {-math.inf}
    low, _ = points.ends(panel)
    assert all(low < height < 0 for height in points.heights(panel, line))
    (ax,) = draw("when-warmup", runs).axes
    assert [line.get_marker() for line in ax.get_lines()].count("v") == 4
