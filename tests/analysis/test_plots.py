"""The figures: what they draw, that they say when there is nothing to draw, no global state."""

import re
from pathlib import Path

import numpy as np
import pytest

from analysis import plots
from analysis.fit import analyse
from analysis.load import load


@pytest.fixture(scope="module")
def drawn(good):
    return analyse(load(good))


def labels(axes):
    return axes.get_legend_handles_labels()[1]


def test_loss_over_size_has_a_line_per_horizon_through_its_points(drawn):
    axes = plots.loss_by_size(drawn).axes[0]
    curves = [line for line in axes.lines if len(line.get_xdata()) == 100]
    assert len(curves) == 5
    law, theta = drawn.chosen.fit.law, drawn.chosen.fit.theta
    for line, D in zip(curves, (0.5e6, 0.75e6, 1.2e6, 2e6, 4e6), strict=True):
        N = np.asarray(line.get_xdata())
        assert line.get_ydata() == pytest.approx(law.loss(theta, N, np.full(100, D)))
    assert labels(axes) == ["500k", "750k", "1.2M", "2M", "4M", "held out"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("parameters N", "loss L (nats/token)")


def test_loss_over_tokens_has_a_line_per_size(drawn):
    axes = plots.loss_by_tokens(drawn).axes[0]
    assert labels(axes) == ["24k", "40k", "70k", "120k", "240k", "400k", "held out"]
    assert axes.get_xlabel() == "training tokens D"


def test_the_frontier_ends_at_the_last_budget_and_lies_within_its_band(drawn):
    axes = plots.contours(drawn).axes[0]
    assert labels(axes) == ["fitted run", "held out", "90 % band", "compute-optimal"]
    last = drawn.optimal[-1]
    dashed = axes.lines[-1]
    assert dashed.get_xdata()[-1] == pytest.approx(last.N, rel=1e-6)
    assert dashed.get_ydata()[-1] == pytest.approx(last.D, rel=1e-6)


def test_residuals_show_the_seed_noise_band(drawn):
    figure = plots.residuals(drawn)
    assert [a.get_xlabel() for a in figure.axes] == ["parameters N", "training tokens D"]
    assert labels(figure.axes[1]) == ["± 2 seed σ", "held out"]
    shown = figure.axes[0].collections[0].get_offsets()
    assert np.sort(np.asarray(shown)[:, 1]) == pytest.approx(
        np.sort(100 * drawn.chosen.fit.residuals)
    )


def test_the_held_out_figure_names_errors_of_the_law_and_both_baselines(drawn):
    text = " ".join(labels(plots.held_out(drawn).axes[0]))
    for name in ("chinchilla", "largest", "log-linear"):
        assert f"{100 * drawn.holdout.error(name):.2f} %" in text


def test_training_curves_draw_each_trunk_and_each_cooldown(drawn):
    axes = plots.training_curves(drawn).axes[0]
    thin = [line for line in axes.lines if line.get_linewidth() < 1]
    assert len(thin) == 13
    assert len(axes.lines) - len(thin) == 65


def test_an_unidentified_law_is_not_drawn(ray):
    analysis = analyse(load(ray))
    for figure in (plots.loss_by_size, plots.loss_by_tokens):
        axes = figure(analysis).axes[0]
        assert not [line for line in axes.lines if len(line.get_xdata()) == 100]
        assert len(axes.collections[0].get_offsets()) == 6
    assert labels(plots.contours(analysis).axes[0]) == ["fitted run"]
    assert plots.held_out(analysis) is None


def test_no_pyplot():
    for file in Path(plots.__file__).parent.glob("*.py"):
        assert "pyplot" not in {
            word for line in file.read_text(encoding="utf-8").splitlines()
            if line.startswith(("import ", "from ")) for word in re.split(r"[\s.]", line)
        }  # fmt: skip
