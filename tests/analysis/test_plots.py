"""The figures: what they draw, that they say when there is nothing to draw, no global state."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import plots
from analysis.analyse import analyse
from analysis.drawing import REFUSED
from analysis.interval import Interval
from analysis.load import Columns, load

CURVED = 100  # points of a line of the law


@pytest.fixture(scope="module")
def drawn(analysed):
    return analysed


@pytest.fixture(scope="module")
def blind(ray):
    return analyse(load(ray))


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Four isoFLOP curves, each an exact parabola in log N about 0.1·(C/6)^0.5; one falls only."""
    rows = []
    for C in (1e18, 1e19, 1e20, 1e21):
        centre = 0.1 * (C / 6) ** 0.5
        around = np.geomspace(0.2, 5, 7) if C < 1e21 else np.geomspace(0.05, 0.8, 7)
        for N in centre * around:
            L = 4 * (C / 1e18) ** -0.05 * np.exp(0.02 * np.log(N / centre) ** 2)
            rows.append((N, C / (6 * N), C, L))
    file = tmp_path_factory.mktemp("grid") / "grid.csv"
    pd.DataFrame(rows, columns=["n", "d", "c", "loss"]).to_csv(file, index=False)
    return analyse(load(file, Columns(n="n", d="d", loss="loss", flops="c")))


def labels(axes):
    return axes.get_legend_handles_labels()[1]


def labelled(axes, start):
    return next(line for line in axes.lines if str(line.get_label()).startswith(start))


def test_loss_over_size_has_a_line_per_horizon_through_its_points(drawn):
    axes = plots.loss_by_size(drawn).axes[0]
    curves = [line for line in axes.lines if len(line.get_xdata()) == CURVED]
    assert len(curves) == 5
    law, theta = drawn.chosen.law, drawn.chosen.theta
    for line, D in zip(curves, (0.5e6, 0.75e6, 1.2e6, 2e6, 4e6), strict=True):
        N = np.asarray(line.get_xdata())
        assert line.get_ydata() == pytest.approx(law.loss(theta, N, np.full(CURVED, D)))
    assert labels(axes) == ["500k", "750k", "1.2M", "2M", "4M", "held out"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("parameters N", "loss L (nats/token)")


def test_loss_over_tokens_has_a_line_per_size(drawn):
    axes = plots.loss_by_tokens(drawn).axes[0]
    assert labels(axes) == ["24k", "40k", "70k", "120k", "240k", "400k", "held out"]
    assert axes.get_xlabel() == "training tokens D"


@pytest.mark.parametrize(("unit", "shown"), [("bits", "bits"), ("unknown", "unit not known")])
def test_an_axis_states_the_unit_of_the_losses_and_no_other(drawn, unit, shown):
    other = replace(drawn, study=replace(drawn.study, loss_unit=unit))
    assert plots.loss_by_size(other).axes[0].get_ylabel() == f"loss L ({shown})"
    assert plots.held_out(other).axes[0].get_xlabel() == f"measured loss ({shown})"


def test_the_frontier_ends_at_the_last_budget_and_its_band_is_the_reported_interval(drawn):
    axes = plots.contours(drawn).axes[0]
    assert labels(axes) == ["fitted run", "held out", "90 % band", "compute-optimal"]
    first, last = drawn.optimal[0], drawn.optimal[-1]
    dashed = axes.lines[-1]
    assert dashed.get_xdata()[-1] == pytest.approx(last.N, rel=1e-6)
    assert dashed.get_ydata()[-1] == pytest.approx(last.D, rel=1e-6)
    edge = axes.patches[0].get_xy()[:-1, 0]  # lower ends by rising C, then upper ends back
    half = len(edge) // 2
    for row, k in ((first, 0), (last, half - 1)):
        assert edge[k] == pytest.approx(row.N_interval.low)
        assert edge[2 * half - 1 - k] == pytest.approx(row.N_interval.high)


def test_no_label_of_a_contour_lies_on_the_edge_or_the_frontier(drawn):
    axes = plots.contours(drawn).axes[0]
    to_axes = axes.transData + axes.transAxes.inverted()
    frontier = to_axes.transform(
        np.column_stack([axes.lines[-1].get_xdata(), axes.lines[-1].get_ydata()])
    )
    assert axes.texts
    for text in axes.texts:
        at = to_axes.transform(text.get_position())
        assert at.min() >= 0.03
        assert at.max() <= 0.97
        assert np.hypot(*(frontier - at).T).min() >= 0.05


def test_residuals_show_the_seed_noise_band(drawn):
    figure = plots.residuals(drawn)
    assert [a.get_xlabel() for a in figure.axes] == ["parameters N", "training tokens D"]
    assert labels(figure.axes[1]) == ["± 2 seed σ", "held out"]
    shown = figure.axes[0].collections[0].get_offsets()
    assert np.sort(np.asarray(shown)[:, 1]) == pytest.approx(
        np.sort(100 * drawn.chosen.estimate.residuals)
    )


def test_isoflop_curves_have_their_parabola_through_its_minimum(grid):
    axes = plots.isoflop(grid).axes[0]
    used = [c for c in grid.approaches[1].approach.curves if c.reason is None]
    assert len(used) == 3
    parabolas = [line for line in axes.lines if len(line.get_xdata()) == 60]
    for line, curve in zip(parabolas, used, strict=True):
        x, y = np.log(line.get_xdata()), np.log(line.get_ydata())
        # The losses are exact parabolas, so every point lies on the drawn one.
        N, _, L = np.array(curve.points).T
        assert np.interp(np.log(N), x, y) == pytest.approx(np.log(L), abs=2e-5)
        assert np.exp(x[np.argmin(y)]) == pytest.approx(curve.N, rel=0.05)
    minima = labelled(axes, "minimum with 90 % interval")
    assert minima.get_xdata() == pytest.approx([c.N for c in used])
    assert minima.get_ydata() == pytest.approx([c.L for c in used])


def test_refused_curves_are_grey_with_their_reason(drawn, grid):
    for analysis in (drawn, grid):
        curves = [c for c in analysis.approaches[1].approach.curves if c.points]
        axes = plots.isoflop(analysis).axes[0]
        grey = [line for line in axes.lines if str(line.get_color()) == REFUSED]
        refused = [c for c in curves if c.reason]
        assert [len(line.get_xdata()) for line in grey] == [len(c.points) for c in refused]
        told = dict(
            re.fullmatch(r"refused: (\S+) \((\d+)\)", text).groups()
            for text in labels(axes)
            if text.startswith("refused")
        )
        assert told == {
            reason: str(sum(c.reason == reason for c in refused))
            for reason in {c.reason for c in refused}
        }
        assert told


def test_the_optimal_size_stands_by_all_approaches(drawn, grid):
    axes = plots.isoflop(drawn).axes[1]
    assert labels(axes) == ["3 chinchilla", "1 envelope", "2 parabola", "2 Akima"]
    law = labelled(axes, "3 chinchilla")
    C = np.asarray(law.get_xdata())
    best = drawn.chosen.law.optimal(drawn.chosen.theta, C, drawn.flops)
    assert law.get_ydata() == pytest.approx(best.N)
    used = drawn.approaches[1].approach.used
    assert labelled(axes, "2 parabola").get_ydata() == pytest.approx([c.N for c in used])
    assert "2 parabola" in labels(plots.isoflop(grid).axes[1])


def test_rolling_has_a_line_per_form_and_marks_that_of_the_headline(drawn):
    axes = plots.rolling(drawn).axes[0]
    assert [line.get_label() for line in axes.lines] == [r.name for r in drawn.results]
    for line in axes.lines:
        errors = [100 * o.errors[line.get_label()] for o in drawn.rolling]
        assert line.get_xdata() == pytest.approx([o.factor for o in drawn.rolling])
        assert line.get_ydata() == pytest.approx(errors)
        assert (line.get_linewidth() > 2) == (line.get_label() == drawn.selected)
    assert [t.get_text() for t in axes.get_xticklabels()] == [str(o.factor) for o in drawn.rolling]
    assert axes.get_yscale() == "log"


def test_an_error_of_zero_is_left_out_of_the_logarithm(drawn):
    first = replace(drawn.rolling[0], errors={r.name: 0.0 for r in drawn.results})
    axes = plots.rolling(replace(drawn, rolling=(first, *drawn.rolling[1:]))).axes[0]
    assert all(np.isnan(line.get_ydata()[0]) for line in axes.lines)


def test_the_held_out_figure_names_errors_of_the_law_and_both_baselines(drawn):
    text = " ".join(labels(plots.held_out(drawn).axes[0]))
    for name in ("chinchilla", "largest", "log-linear"):
        assert f"{100 * drawn.holdout.error(name):.2f} %" in text


def test_sensitivity_has_a_mark_per_refit_in_groups(drawn):
    left, right = plots.sensitivity(drawn).axes
    names = [t.get_text() for t in left.get_yticklabels()]
    heads = [t.get_text() for t in left.get_yticklabels() if t.get_fontweight() == "bold"]
    assert heads == [
        "without one size", "without one horizon", "objective and weights", "convention of N and C"
    ]  # fmt: skip
    assert len(names) == len(drawn.sensitivity) + len(heads)
    for axes, values in (
        (left, [r.a for r in drawn.sensitivity]),
        (right, [r.loss_10x for r in drawn.sensitivity]),
    ):
        marks = [line for line in axes.lines if line.get_marker() == "o"]
        assert [float(m.get_xdata()[0]) for m in marks] == pytest.approx(values)
        at = [-float(m.get_ydata()[0]) for m in marks]
        assert at == [i for i, name in enumerate(names) if name not in heads]
    for axes, interval in (
        (left, drawn.chosen.intervals["a"]), (right, drawn.optimal[-1].L_interval)
    ):  # fmt: skip
        assert axes.patches[0].get_width() == pytest.approx(interval.width)


def test_an_exponent_that_is_not_identified_has_no_marks(drawn):
    open_ends = {**drawn.chosen.intervals, "a": Interval(None, None, "no bounds: A at its limit")}
    chosen = replace(drawn.chosen, intervals=open_ends)
    results = tuple(chosen if r.name == chosen.name else r for r in drawn.results)
    axes = plots.sensitivity(replace(drawn, results=results)).axes
    assert [a.get_xlabel() for a in axes] == ["loss at 10 times the largest C"]


def test_a_law_without_one_exponent_for_all_compute_is_still_drawn(drawn):
    design = replace(drawn.chosen.design, problems={"a": "not one number for this law"})
    estimate = replace(drawn.chosen.estimate, design=design)
    chosen = replace(drawn.chosen, estimate=estimate)
    results = tuple(chosen if r.name == chosen.name else r for r in drawn.results)
    axes = plots.loss_by_size(replace(drawn, results=results)).axes[0]
    assert len([line for line in axes.lines if len(line.get_xdata()) == CURVED]) == 5


def test_without_any_optimum_the_curves_stand_alone(drawn):
    refused = tuple(
        replace(b, approach=replace(b.approach, curves=tuple(refuse(c) for c in b.approach.curves)))
        for b in drawn.approaches
    )
    none = Interval(None, None)
    optimal = tuple(
        replace(a, N=None, D=None, N_interval=none, D_interval=none) for a in drawn.optimal
    )
    figure = plots.isoflop(replace(drawn, approaches=refused, optimal=optimal))
    assert len(figure.axes) == 1
    assert {str(line.get_color()) for line in figure.axes[0].lines} == {REFUSED}


def refuse(curve):
    return replace(curve, reason=curve.reason or "edge-minimum", N=None, D=None, L=None)


def test_refits_without_a_budget_are_named_by_it(grid):
    names = [t.get_text() for t in plots.sensitivity(grid).axes[0].get_yticklabels()]
    assert "without one compute budget" in names
    assert "without C = 1.0e20" in names


def test_training_curves_draw_each_trunk_and_each_cooldown(drawn):
    axes = plots.training_curves(drawn).axes[0]
    thin = [line for line in axes.lines if line.get_linewidth() < 1]
    assert len(thin) == 13
    assert len(axes.lines) - len(thin) == 65


def test_an_unidentified_law_is_not_drawn(blind):
    for figure in (plots.loss_by_size, plots.loss_by_tokens):
        axes = figure(blind).axes[0]
        assert not [line for line in axes.lines if len(line.get_xdata()) == CURVED]
        assert len(axes.collections[0].get_offsets()) == 6
    assert labels(plots.contours(blind).axes[0]) == ["fitted run"]


def test_what_a_study_lacks_has_no_figure(blind, grid):
    for figure in (plots.isoflop, plots.rolling, plots.held_out, plots.sensitivity):
        assert figure(blind) is None
    for figure in (plots.held_out, plots.training_curves):
        assert figure(grid) is None


def test_no_pyplot():
    for file in Path(plots.__file__).parent.glob("*.py"):
        assert "pyplot" not in {
            word for line in file.read_text(encoding="utf-8").splitlines()
            if line.startswith(("import ", "from ")) for word in re.split(r"[\s.]", line)
        }  # fmt: skip
