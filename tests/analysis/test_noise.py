"""Noise between seeds, and the test of residuals against it."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from synthetic import Plan, rows_of

from analysis.laws import CHINCHILLA
from analysis.noise import lack_of_fit, seed_noise
from analysis.rows import Rows
from analysis.solve import fit_law


def f_test(rows):
    residuals = fit_law(CHINCHILLA, (rows.N, rows.D), rows.L).residuals
    return lack_of_fit(residuals, 5, rows, seed_noise(rows))


def test_seed_noise_is_the_pooled_spread_between_trunks():
    N = np.repeat([1e5, 1e5, 2e5, 2e5, 4e5], 2)
    D = np.tile([1e6, 2e6], 5)
    trunk = np.repeat(np.arange(5), 2)
    z = np.array([0.0, 0.0, 0.02, 0.04, 0.1, 0.1, 0.1, 0.1, 7.0, 7.0])
    noise = seed_noise(Rows(N, D, 6 * N * D, np.exp(z), trunk))
    assert noise.sigma == pytest.approx(np.sqrt((2 * 0.01**2 + 2 * 0.02**2) / 4))
    assert (noise.df_rows, noise.df_trunks, noise.max_seeds) == (4, 2, 2)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), factor=st.floats(0.1, 10))
def test_order_units_and_labels_do_not_matter(seed, factor):
    rows = rows_of(Plan(seed=1, cheap=5))
    order = np.random.default_rng(seed).permutation(len(rows))
    mixed = dataclasses.replace(
        rows.take(order), L=rows.L[order] * factor, trunk=rows.trunk[order] * 3 + 11
    )
    one, other = seed_noise(rows), seed_noise(mixed)
    assert other.sigma == pytest.approx(one.sigma, rel=1e-9)
    assert dataclasses.replace(other, sigma=0.0) == dataclasses.replace(one, sigma=0.0)


def test_sizes_that_are_only_close_are_no_repeats():
    rows = rows_of(Plan(repeats=1, sizes=(1e5, 1.004e5, 2e5, 4e5), holdout=()))
    assert int(rows.size.max()) == 2
    assert seed_noise(rows).df_rows == 0


def test_the_spread_of_many_seeds_is_that_of_both_noises():
    rows = rows_of(Plan(cheap=6, repeats=30, trunk_noise=3e-3, row_noise=4e-3, holdout=()))
    noise = seed_noise(rows)
    assert noise.sigma == pytest.approx(5e-3, rel=0.1)
    assert (noise.df_trunks, noise.df_rows, noise.max_seeds) == (6 * 29, 30 * 29, 30)


def test_without_repeats_there_is_no_noise_and_no_test():
    rows = rows_of(Plan(repeats=1))
    noise = seed_noise(rows)
    assert noise.df_rows == 0
    assert np.isnan(noise.sigma)
    assert f_test(rows) is None


def test_lack_of_fit_is_the_f_test_of_the_cell_means():
    rows = rows_of(Plan(holdout=(), seed=4))
    fit = fit_law(CHINCHILLA, (rows.N, rows.D), rows.L)
    noise = seed_noise(rows)
    found = lack_of_fit(fit.residuals, 5, rows, noise)
    total, cells = 0.0, 0
    for n in np.unique(rows.N):
        for d in np.unique(rows.D):
            here = np.isclose(rows.N, n) & np.isclose(rows.D, d)
            total += here.sum() * fit.residuals[here].mean() ** 2
            cells += 1
    F = total / (cells - 5) / noise.sigma**2
    assert pytest.approx(F, rel=1e-12) == found.F
    assert found.df == (25, 6)
    assert found.p == pytest.approx(stats.f.sf(F, 25, 6))
    assert found.rms == pytest.approx(fit.rms)


def test_lack_of_fit_accepts_the_truth_and_rejects_a_bent_law():
    accepted = sum(not f_test(rows_of(Plan(seed=seed))).rejected for seed in range(20))
    assert accepted >= 17
    found = f_test(rows_of(Plan(bend=0.02)))
    assert found.rejected
    assert found.df == (25, 6)
    assert found.p < 0.01


def test_a_test_with_one_repeat_calls_itself_weak():
    rows = rows_of(Plan(cheap=1, repeats=2, bend=0.01, holdout=()))
    found = f_test(rows)
    assert found.df[1] == 1
    assert found.rms > found.sigma
    assert found.weak != found.rejected


def test_no_cells_to_spare_no_test():
    rows = rows_of(Plan(holdout=()))
    fit = fit_law(CHINCHILLA, (rows.N, rows.D), rows.L)
    assert lack_of_fit(fit.residuals, 30, rows, seed_noise(rows)) is None
