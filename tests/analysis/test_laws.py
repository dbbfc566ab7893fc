"""The law objects: values, derivatives, the linear part, and the compute-optimal allocation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from analysis.laws import CHINCHILLA, LAWS, FlopsPerToken, SumLaw, Term, law_named

THETA = {
    "chinchilla": np.array([1.7, 400.0, 2000.0, 0.34, 0.37]),
    "two-term": np.array([30.0, 90.0, 0.2, 0.3]),
}
positive = st.floats(0.05, 1e4)
exponent = st.floats(0.05, 1.5)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_loss_is_the_sum_that_the_formula_states(law):
    E, A, B = (list(THETA[law.name][:-2]) if law.name == "chinchilla" else [0.0, 30.0, 90.0])[:3]
    alpha, beta = THETA[law.name][-2:]
    N, D = np.array([1e5, 3e6]), np.array([2e6, 1e8])
    expected = E + A * N**-alpha + B * D**-beta
    assert law.loss(THETA[law.name], N, D) == pytest.approx(expected, rel=1e-14)


@settings(max_examples=60)
@given(E=positive, A=positive, B=positive, alpha=exponent, beta=exponent)
def test_log_jacobian_equals_finite_differences(E, A, B, alpha, beta):
    theta = np.array([E, A, B, alpha, beta])
    N, D = np.array([1e4, 1e6, 3e7]), np.array([1e6, 1e7, 3e9])
    J = CHINCHILLA.log_jacobian(theta, N, D)
    phi, h = CHINCHILLA.log_coordinates(theta), 1e-6
    for i in range(5):
        step = np.zeros(5)
        step[i] = h
        up = np.log(CHINCHILLA.loss(CHINCHILLA.values(phi + step), N, D))
        down = np.log(CHINCHILLA.loss(CHINCHILLA.values(phi - step), N, D))
        assert J[:, i] == pytest.approx((up - down) / (2 * h), abs=2e-7)


def test_recentre_keeps_the_loss():
    phi = CHINCHILLA.log_coordinates(THETA["chinchilla"])
    N, D = np.array([1e5, 1e7]), np.array([1e7, 1e9])
    shifted = CHINCHILLA.values(CHINCHILLA.recentre(phi, np.log(1e6), np.log(1e8)))
    assert CHINCHILLA.loss(shifted, N / 1e6, D / 1e8) == pytest.approx(
        CHINCHILLA.loss(THETA["chinchilla"], N, D), rel=1e-12
    )


def test_a_law_is_data_a_shared_exponent_needs_no_new_code():
    tied = SumLaw(
        name="tied",
        formula="E + A N^-alpha + B D^-alpha",
        terms=(Term("E"), Term("A", "alpha", "N"), Term("B", "alpha", "D")),
        source="Gadre et al. 2024",
    )
    N, D = np.array([1e5, 1e6]), np.array([1e7, 1e8])
    assert tied.parameters == ("E", "A", "B", "alpha")
    same = CHINCHILLA.loss(np.array([1.5, 50.0, 90.0, 0.3, 0.3]), N, D)
    assert tied.loss(np.array([1.5, 50.0, 90.0, 0.3]), N, D) == pytest.approx(same, rel=1e-14)


def test_linear_part_finds_the_coefficients_of_an_exact_law():
    theta = THETA["chinchilla"]
    N, D = (m.ravel() for m in np.meshgrid(np.geomspace(1e5, 1e8, 5), np.geomspace(1e6, 1e9, 5)))
    L = CHINCHILLA.loss(theta, N, D)
    T = CHINCHILLA.design(np.log(N), np.log(D))
    exponents = np.array([[0.34, 0.37], [0.5, 0.2]])
    found, rss = CHINCHILLA.linear_part(T, exponents, L, np.full(3, np.nan))
    assert found[0] == pytest.approx(theta[:3], rel=1e-4)
    assert rss[0] < 1e-12 < rss[1]
    assert (found >= 0).all()


def test_optimal_with_6nd_equals_the_closed_form():
    E, A, B, alpha, beta = theta = THETA["chinchilla"]
    C = np.array([1e17, 1e21, 1e25])
    G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    N = G * (C / 6) ** (beta / (alpha + beta))
    best = CHINCHILLA.optimal(theta, C, FlopsPerToken())
    assert pytest.approx(N, rel=1e-9) == best.N
    assert pytest.approx(C / 6 / N, rel=1e-9) == best.D
    assert pytest.approx(E + A * N**-alpha + B * (C / 6 / N) ** -beta, rel=1e-12) == best.L


def test_optimal_follows_the_ladders_own_flops():
    sizes = np.geomspace(2e4, 2e6, 7)
    cost = 6 * (0.8 * sizes + 3e4)
    flops = FlopsPerToken.from_rows(sizes, np.ones(7), cost, "own")
    theta = THETA["chinchilla"]
    for C in (1e12, 1e14):

        def loss(u, C=C):
            D = C / np.exp(flops(np.array([u]))[0])
            return float(CHINCHILLA.loss(theta, np.exp([u]), D)[0])

        direct = minimize_scalar(loss, bounds=(5, 30), method="bounded", options={"xatol": 1e-9})
        found = CHINCHILLA.optimal(theta, np.array([C]), flops)
        assert found.L[0] == pytest.approx(direct.fun, rel=1e-10)
        assert found.N[0] == pytest.approx(np.exp(direct.x), rel=1e-3)


def test_flops_per_token_passes_through_the_rows_and_goes_on_straight():
    N = np.array([1e4, 1e4, 1e5, 1e6])
    flops = FlopsPerToken.from_rows(N, np.full(4, 10.0), 10 * 6 * (N + 2e4), "own")
    value, slope = flops(np.log(N))
    assert np.exp(value) == pytest.approx(6 * (N + 2e4), rel=1e-12)
    assert (slope > 0).all()
    far, _ = flops(np.log(np.array([1e7, 1e8, 1e9])))
    assert np.diff(far)[0] == pytest.approx(np.diff(far)[1], rel=1e-9)


def test_batches_of_parameters_give_the_single_answers():
    theta = np.stack([THETA["chinchilla"], THETA["chinchilla"] * 1.1])
    C = np.array([1e18, 1e20])
    both = CHINCHILLA.optimal(theta, C, FlopsPerToken())
    for i in range(2):
        alone = CHINCHILLA.optimal(theta[i], C, FlopsPerToken())
        assert both.N[i] == pytest.approx(alone.N, rel=1e-12)
        assert both.L[i] == pytest.approx(alone.L, rel=1e-12)


def test_an_unknown_law_lists_the_choices():
    with pytest.raises(ValueError, match="unknown law 'kaplen'; choose from chinchilla, two-term"):
        law_named("kaplen")
