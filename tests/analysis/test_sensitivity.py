"""What the numbers hang on: every kind of refit, and the leverage of each row."""

import dataclasses

import numpy as np
import pytest
from synthetic import TRUTH, Plan, results_frame, rows_of, truth_loss, write_sweep

from analysis.compare import point
from analysis.flops import FlopsPerToken
from analysis.gls import descend, fit_gls
from analysis.laws import CHINCHILLA
from analysis.load import load
from analysis.sensitivity import leverage, sensitivity
from analysis.solve import fit_law

FLOPS = FlopsPerToken()
KINDS = ("fit", "N", "D", "delta", "weights", "convention")


@pytest.fixture(scope="module")
def study(good):
    return load(good)


def table_of(study, estimator="gls-reml", fixed=None):
    fixed = fixed or {}
    theta = point(CHINCHILLA, study.train, fixed, estimator)
    return theta, sensitivity(study, CHINCHILLA, theta, fixed, estimator, FLOPS)


@pytest.fixture(scope="module")
def table(study):
    return table_of(study)[1]


def test_every_kind_of_refit_is_there(table):
    kinds = [r.kind for r in table]
    assert list(dict.fromkeys(kinds)) == list(KINDS)
    assert [kinds.count(kind) for kind in KINDS[:5]] == [1, 6, 5, 4, 1]
    rows = [r.n_rows for r in table]
    assert rows[:12] == [60, 45, 45, 45, 55, 55, 55, 48, 48, 48, 48, 48]
    assert all(np.isfinite([r.a, r.loss_10x, *r.parameters.values()]).all() for r in table)
    whats = [r.what for r in table if r.kind == "delta"]
    assert whats == ["Huber 0.0001", "Huber 0.01", "least squares", "Huber 0.001"]
    pairs = [r.what for r in table if r.kind == "convention"]
    assert pairs[0] == "n_total, flops_exact"
    assert "n_non_embedding, 6ND" in pairs


@pytest.mark.parametrize("estimator", ["gls-reml", "huber"])
def test_the_first_row_is_the_fit_itself(study, estimator):
    theta, table = table_of(study, estimator)
    test = study.test
    first = table[0]
    assert list(first.parameters.values()) == pytest.approx(theta)
    L = CHINCHILLA.loss(theta, test.N, test.D)
    assert first.holdout_error == pytest.approx(np.mean(np.abs(L / test.L - 1)))
    best = CHINCHILLA.optimal(theta, np.array([10 * study.train.C.max()]), FLOPS)
    assert first.loss_10x == pytest.approx(best.L[0])
    # With C = 6ND the slope of N* is beta/(alpha+beta) everywhere.
    assert first.a == pytest.approx(CHINCHILLA.allocation_exponent(theta), rel=1e-6)


@pytest.mark.parametrize("estimator", ["gls-reml", "huber"])
def test_leaving_a_size_or_horizon_out_is_a_refit_without_its_rows(study, estimator):
    _, table = table_of(study, estimator)
    train = study.train
    for kind, values in (("N", train.N), ("D", train.D)):
        refits = [r for r in table if r.kind == kind]
        for refit, value in zip(refits, np.unique(values), strict=True):
            assert float(refit.what) == pytest.approx(value, rel=1e-5)
            direct = point(CHINCHILLA, train.take(values != value), {}, estimator)
            assert list(refit.parameters.values()) == pytest.approx(direct, rel=1e-9)
    nearest = [r for r in table if r.kind == "N"][-1]
    assert nearest.holdout_error > table[0].holdout_error  # the size next to the held-out one


def test_other_objectives_are_refits_with_them(study, table):
    train = study.train
    X = (train.N, train.D)
    for refit in (r for r in table if r.kind == "delta" and r.what.startswith("Huber")):
        direct = fit_law(CHINCHILLA, X, train.L, delta=float(refit.what.split()[1]))
        assert list(refit.parameters.values()) == pytest.approx(direct.theta, rel=1e-9)
    (weighted,) = (r for r in table if r.kind == "weights")
    w = train.C**0.3
    direct = fit_law(CHINCHILLA, X, train.L, weights=w / w.mean())
    assert list(weighted.parameters.values()) == pytest.approx(direct.theta, rel=1e-6)


def test_another_count_of_parameters_moves_what_it_must(study, table):
    """N 20 % smaller throughout: A changes by its power, the exponents not at all."""
    by = {r.what: r for r in table if r.kind == "convention"}
    own, other = by["n_total, flops_exact"], by["n_non_embedding, flops_exact"]
    assert other.parameters["alpha"] == pytest.approx(own.parameters["alpha"], rel=2e-3)
    ratio = other.parameters["A"] / own.parameters["A"]
    assert ratio == pytest.approx(0.8 ** own.parameters["alpha"], rel=2e-2)
    assert own.holdout_error is None  # the held-out rows are counted in the study's own way


def test_fixed_parameters_stay_fixed_in_every_refit(study):
    _, table = table_of(study, fixed={"E": 1.3})
    assert all(r.parameters["E"] == pytest.approx(1.3, rel=1e-12) for r in table)


def test_a_scatter_of_sizes_is_not_left_out_one_by_one(tmp_path):
    sizes = tuple(np.geomspace(2e4, 5e5, 14))
    study = load(write_sweep(tmp_path / "s", Plan(sizes=sizes, holdout=())))
    _, table = table_of(study, "huber")
    assert not [r for r in table if r.kind == "N"]
    assert len([r for r in table if r.kind == "D"]) == 5
    assert all(r.holdout_error is None for r in table)


def test_an_isoflop_grid_has_its_budgets_left_out(tmp_path):
    """Every row has a D of its own there, so what can be left out is a budget."""
    frame = results_frame(Plan(repeats=1, horizons=(1.0, 2.0, 3.0), holdout=()))
    C = np.geomspace(1e12, 1e13, 3)[frame["horizon_index"]]
    D = (C / 6 / frame["n_total"]).astype(int)
    frame = frame.assign(tokens=D, flops_exact=C, trunk_id=frame["run_id"])
    frame = frame.assign(val_loss=truth_loss(frame["n_total"], D))
    study = load(write_sweep(tmp_path / "s", frame=frame))
    _, table = table_of(study, "huber")
    budgets = [r for r in table if r.kind == "C"]
    assert [float(r.what) for r in budgets] == pytest.approx(np.unique(C), rel=1e-5)
    assert [r.n_rows for r in budgets] == [12, 12, 12]
    assert not [r for r in table if r.kind == "D"]
    for refit in budgets:
        assert list(refit.parameters.values()) == pytest.approx([*TRUTH.values()], rel=1e-3)


def test_a_part_that_leaves_too_few_rows_is_skipped(tmp_path):
    plan = Plan(sizes=(2e4, 1e5), horizons=(1e6, 2e6, 4e6), repeats=1, holdout=())
    frame = results_frame(plan)
    study = load(write_sweep(tmp_path / "s", frame=frame))
    _, table = table_of(study, "huber")
    assert not [r for r in table if r.kind in "ND"]  # 3 or 4 rows for 5 parameters


# Leverage.


def deletions(rows, gls, C):
    """log L*(C) of refits without each row, in standard errors: rho² held, and refitted."""

    def far(theta):
        return float(np.log(CHINCHILLA.optimal(theta, np.array([C]), FLOPS).L[0]))

    held, free = [], []
    for i in range(len(rows)):
        part = rows.take(np.arange(len(rows)) != i)
        fit = fit_law(CHINCHILLA, (part.N, part.D), part.L)
        again = fit_gls(CHINCHILLA, (part.N, part.D), part.L, part.trunk, fit.rivals)
        free.append(far(again.theta))
        phi = descend(again.problem, again.trunks, gls.rho2, again.phi[None])[0]
        held.append(far(again.problem.values(phi[0])))
    return np.array(held) - far(gls.theta), np.array(free) - far(gls.theta)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(holdout=(), seed=2),
        Plan(holdout=(), seed=4, repeats=1),
        Plan(holdout=(), seed=5, trunk_noise=0.0, row_noise=2e-3),
    ],
    ids=["repeats", "one seed", "no trunk noise"],
)
def test_leverage_is_what_deleting_the_row_does(plan):
    rows = rows_of(plan)
    X, C = (rows.N, rows.D), 10 * float(rows.C.max())
    gls = fit_gls(CHINCHILLA, X, rows.L, rows.trunk, fit_law(CHINCHILLA, X, rows.L).rivals)
    found = leverage(gls, FLOPS, C)
    held, free = deletions(rows, gls, C)
    assert np.corrcoef(found.shift, held)[0, 1] > 0.99
    assert np.corrcoef(found.shift, free)[0, 1] > 0.95
    top = np.argsort(-np.abs(held))[:8]
    assert (np.sign(found.shift[top]) == np.sign(held[top])).all()
    assert np.argmax(np.abs(found.shift)) in top[:3]


def test_hat_values_are_shares_and_add_up_to_the_parameters():
    rows = rows_of(Plan(holdout=(), seed=5, trunk_noise=0.0, row_noise=2e-3))
    alone = dataclasses.replace(rows, trunk=np.arange(len(rows)))
    X = (rows.N, rows.D)
    fit = fit_law(CHINCHILLA, X, rows.L)
    gls = fit_gls(CHINCHILLA, X, rows.L, alone.trunk, fit.rivals)
    hat = leverage(gls, FLOPS, 1e14).hat
    assert ((hat > 0) & (hat < 1)).all()
    assert hat.sum() == pytest.approx(5, rel=1e-9)
    Q = np.linalg.qr(gls.X)[0]
    assert hat == pytest.approx((Q**2).sum(1), rel=1e-6)


def test_leverage_is_in_the_order_of_the_rows():
    rows = rows_of(Plan(holdout=(), seed=3))
    order = np.random.default_rng(0).permutation(len(rows))
    found = []
    for part in (rows, rows.take(order)):
        X = (part.N, part.D)
        fit = fit_law(CHINCHILLA, X, part.L)
        gls = fit_gls(CHINCHILLA, X, part.L, part.trunk, fit.rivals)
        found.append(leverage(gls, FLOPS, 1e14))
    assert found[1].hat == pytest.approx(found[0].hat[order], rel=1e-4)
    assert found[1].shift == pytest.approx(found[0].shift[order], rel=1e-2, abs=1e-3)
