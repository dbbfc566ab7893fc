"""The default prediction: prior on and off, conflict, intervals, units, studies it never saw."""

import dataclasses

import numpy as np
import pytest
from synthetic import write_sweep

from analysis import public
from analysis.analyse import analyse
from analysis.coverage import DESIGNS, simulate
from analysis.forecast import default_fit
from analysis.laws import CHINCHILLA, GAMMA
from analysis.load import load
from analysis.pipeline import TRUTHS
from analysis.population import PRIOR, RULE, fit_population
from analysis.surface import LEAST_ROWS


def study(truth="chinchilla", seed=0, sd=0.001):
    law, theta = TRUTHS[truth]
    return simulate(law, np.array(theta), DESIGNS[1].rows(), sd, np.random.default_rng(seed))


def fitted(rows, **options):
    return fit_population((rows.N, rows.D), rows.C, rows.L, trunk=rows.trunk, **options)


@pytest.mark.parametrize("truth", list(TRUTHS))
def test_held_out_compute_is_predicted(truth):
    rows = study(truth)
    law, theta = TRUTHS[truth]
    N, D = np.array([3e8]), np.array([4e9])
    L, noise, misfit = fitted(rows).predict(N, D, np.log(6 * N * D), 0.9)
    known = law.loss(np.array(theta), N, D)[0]
    assert L[0] == pytest.approx(known, rel=0.03)
    assert misfit[0].low < known < misfit[0].high
    assert misfit[0].width >= noise[0].width


def test_more_weight_on_the_prior_moves_the_law_towards_it():
    rows = study(sd=0.004)
    names = ("alpha", "beta", "E", "gamma")
    apart = []
    for tau in (0.1, 30.0, 3000.0):
        fit = fitted(rows, rule=dataclasses.replace(RULE, tau=tau))
        q = GAMMA.log_coordinates(fit.theta)[[GAMMA.index(n) for n in names]]
        q[2] -= np.log(rows.L.min())
        away = q - np.array(PRIOR.mean)
        apart.append(float(away @ np.linalg.solve(np.array(PRIOR.covariance), away)))
    assert apart[2] < apart[1] < apart[0]
    assert apart[2] < 0.5


def test_a_source_far_from_web_text_turns_the_prior_off():
    rows = DESIGNS[1].rows()
    steep = np.array([0.05, 4e6, 8e6, 1.3, 1.1])
    rows = simulate(CHINCHILLA, steep, rows, 0.001, np.random.default_rng(0))
    fit = fitted(rows)
    assert fit.prior is None
    assert fit.conflict < 0.01
    assert "conflicts with these data" in fit.why


def test_the_caller_turns_the_prior_off():
    fit = fitted(study(), off="the loss is in bits")
    assert fit.prior is None
    assert fit.conflict is None
    assert fit.why == "population prior off: the loss is in bits"
    assert not fit.shift


def test_bytes_known_entropies_and_other_units_have_no_prior(good):
    whole = load(good)
    assert default_fit(whole, whole.train, {}).prior is not None
    assert "entropy" in default_fit(whole, whole.train, {"E": 1.3}).why
    bits = dataclasses.replace(whole, loss_unit="bits")
    assert "not known to be in nats/token" in default_fit(bits, whole.train, {}).why
    frame = whole.used.assign(vocab_size=257)
    assert "bytes" in default_fit(dataclasses.replace(whole, used=frame), whole.train, {}).why
    few = whole.train.take(np.arange(len(whole.train)) < LEAST_ROWS - 1)
    assert default_fit(whole, few, {}) is None


def test_too_few_rows_are_refused():
    rows = study().take(np.arange(60) < LEAST_ROWS - 1)
    with pytest.raises(ValueError, match=r"rows"):
        fitted(rows)


def test_an_interval_widens_with_the_distance():
    fit = fitted(study())
    N = np.geomspace(1e7, 1e10, 6)
    D = 20 * N
    _, noise, misfit = fit.predict(N, D, np.log(6 * N * D), 0.9)
    for ends in (noise, misfit):
        widths = [np.log(i.high / i.low) for i in ends]
        assert (np.diff(widths[1:]) > 0).all()


@pytest.mark.parametrize(
    ("name", "factor", "bar"), [("epoch", 10, 0.0075), ("llama3", 30, 0.0075), ("epoch", 30, 0.01)]
)
def test_public_studies_are_extrapolated(name, factor, bar):
    folder = public.folder()
    if folder is None:
        pytest.skip("public data not here: ../shared/data")
    rows = public.read(name, folder).rows
    inside = rows.C * factor <= rows.C.max()
    train, test = rows.take(inside), rows.take(~inside)
    L, _, _ = fitted(train).predict(test.N, test.D, np.log(test.C), 0.9)
    assert np.mean(np.abs(L / test.L - 1)) < bar


def test_the_report_tells_of_both(tmp_path):
    analysis = analyse(load(write_sweep(tmp_path / "s")), resamples=100)
    default = analysis.default
    assert default is not None
    assert default.prior
    assert set(default.shift) <= {"alpha", "beta", "E", "gamma"}
    assert [f.flops for f in default.forecasts] == [a.flops for a in analysis.optimal]
    for forecast in default.forecasts:
        assert forecast.misfit.width > forecast.noise.width > 0
        assert forecast.selected == pytest.approx(forecast.L, rel=0.02)
    assert "default" in analysis.rolling[0].errors
