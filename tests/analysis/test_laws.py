"""The law objects: values, derivatives, the linear part, and the compute-optimal allocation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar, nnls

from analysis.cells import nonnegative
from analysis.flops import FlopsPerToken
from analysis.laws import (
    CHINCHILLA,
    GAMMA,
    KAPLAN,
    KAPLAN_E,
    LAWS,
    PRODUCT,
    law_named,
)
from analysis.sumlaw import START_EXPONENTS, SumLaw, Term

# Kaplan et al. 2020, table 2: alpha_N .076, alpha_D .103, N_c 6.4e13, D_c 1.8e13.
NC, DC, ALPHA_N, ALPHA_D = 6.4e13, 1.8e13, 0.076, 0.103
THETA = {
    "chinchilla": np.array([1.7, 400.0, 2000.0, 0.34, 0.37]),
    "tied": np.array([1.7, 400.0, 2000.0, 0.36]),
    "two-term": np.array([30.0, 90.0, 0.2, 0.3]),
    "gamma": np.array([1.7, 4e4, 2e6, 0.34, 0.37, 0.6]),
    "product": np.array([1.7, 400.0, 2000.0, 3e4, 0.34, 0.37]),
    "kaplan": np.array([NC ** (ALPHA_N / ALPHA_D), DC, ALPHA_N, ALPHA_D]),
    "kaplan-e": np.array([1.2, 1e5, 1e8, 0.3, 0.25]),
}
# The formulas as they are printed, in the order of `parameters`.
FORMULAS = {
    "chinchilla": lambda N, D, E, A, B, a, b: E + A / N**a + B / D**b,
    "tied": lambda N, D, E, A, B, a: E + A / N**a + B / D**a,
    "two-term": lambda N, D, A, B, a, b: A / N**a + B / D**b,
    "gamma": lambda N, D, E, A, B, a, b, g: E + (A / N ** (a / g) + B / D ** (b / g)) ** g,
    "product": lambda N, D, E, A, B, P, a, b: E + A / N**a + B / D**b + P / N**a / D**b,
    "kaplan": lambda N, D, A, B, a, b: (A / N ** (a / b) + B / D) ** b,
    "kaplan-e": lambda N, D, E, A, B, a, b: E + (A / N ** (a / b) + B / D) ** b,
}
X = (np.array([1e5, 3e6, 2e7, 1e9]), np.array([2e6, 1e8, 1e8, 2e10]))
by_name = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)


@st.composite
def points(draw, law):
    """Solver coordinates (2, p) of two problems, and centred log variables (5, variables)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    phi = rng.uniform(-2.5, 1.5, (2, len(law.parameters)))
    for name in law.exponents:
        phi[:, law.index(name)] = rng.uniform(0.12, 1.5, 2)
    if "gamma" in law.parameters:
        phi[:, law.index("gamma")] = rng.uniform(-1.5, 1.5, 2)
    return phi, rng.uniform(-2.0, 2.0, (5, len(law.variables)))


def differences(function, phi, h=2e-4):
    """d function / d phi by the five-point rule, error O(h^4); the new axis is the last."""
    parts = []
    for i in range(phi.shape[1]):
        e = h * np.eye(phi.shape[1])[i]
        near = function(phi + e) - function(phi - e)
        far = function(phi + 2 * e) - function(phi - 2 * e)
        parts.append((8 * near - far) / (12 * h))
    return np.stack(parts, axis=-1)


def close(found, expected, tolerance):
    """Equal within `tolerance` of the largest entry: differences lose the digits below that."""
    assert np.abs(found - expected).max() <= tolerance * (1 + np.abs(expected).max())


@by_name
def test_loss_is_what_the_formula_states(law):
    expected = FORMULAS[law.name](*X, *THETA[law.name])
    assert law.loss(THETA[law.name], *X) == pytest.approx(expected, rel=1e-13)


def test_kaplan_is_the_published_form():
    N, D = X
    published = ((NC / N) ** (ALPHA_N / ALPHA_D) + DC / D) ** ALPHA_D
    assert KAPLAN.loss(THETA["kaplan"], N, D) == pytest.approx(published, rel=1e-13)
    assert KAPLAN_E.loss(np.array([0.7, *THETA["kaplan"]]), N, D) == pytest.approx(
        0.7 + published, rel=1e-13
    )


@by_name
def test_names_fit_together(law):
    assert len(law.parameters) == len(THETA[law.name]) == len(set(law.parameters))
    assert set(law.logged) | set(law.exponents) == set(law.parameters)
    assert set(law.coefficients) <= set(law.logged)
    assert {name for pair in law.pairs for name in pair} <= set(law.parameters)
    assert law.named(THETA[law.name]) == dict(zip(law.parameters, THETA[law.name], strict=True))


@by_name
def test_derivatives_equal_differences_at_random_points(law):
    @settings(max_examples=25, deadline=None)
    @given(point=points(law), seed=st.integers(0, 2**32 - 1))
    def check(point, seed):
        phi, x = point
        features = law.prepare(x)
        J = law.jacobian(features, law.forward(features, phi)[1])
        close(J, differences(lambda p: law.forward(features, p)[0], phi), 1e-8)

        rng = np.random.default_rng(seed)
        psi, inner, w = (
            rng.normal(size=(2, 5)),
            rng.uniform(0, 1, (2, 5)),
            rng.uniform(0, 2, (2, 5)),
        )
        g, H, squares, sizes = law.second_order(
            features, law.forward(features, phi)[1], psi, inner, w
        )
        curvature = differences(lambda p: law.jacobian(features, law.forward(features, p)[1]), phi)
        expected = np.einsum("rn,rnp,rnq->rpq", inner, J, J)
        expected += np.einsum("rn,rnpq->rpq", psi, curvature)
        close(g, np.einsum("rn,rnp->rp", psi, J), 1e-13)
        close(H, expected, 1e-8)
        close(H, np.swapaxes(H, 1, 2), 1e-13)
        assert (squares >= np.einsum("rn,rnp->rp", w, J**2) * (1 - 1e-12)).all()
        assert (sizes >= np.einsum("rn,rnp->rp", w, np.abs(J)) * (1 - 1e-12)).all()

    check()


@by_name
def test_coordinates_and_values_are_inverse_and_recentring_keeps_the_loss(law):
    @settings(max_examples=25, deadline=None)
    @given(point=points(law), shift=st.tuples(st.floats(-20, 20), st.floats(-25, 25)))
    def check(point, shift):
        phi, x = point
        assert law.log_coordinates(law.values(phi)) == pytest.approx(phi, abs=1e-12)
        centre = np.array(shift[: len(law.variables)])
        moved = law.recentre(phi, centre)
        assert law.recentre(moved, -centre) == pytest.approx(phi, abs=1e-9)
        features, raw = law.prepare(x - centre), law.prepare(x)
        assert law.forward(features, moved)[0] == pytest.approx(law.forward(raw, phi)[0], abs=1e-9)

    check()


def test_gamma_one_is_chinchilla():
    theta = THETA["chinchilla"]
    bent = np.append(theta, 1.0)
    assert GAMMA.loss(bent, *X) == pytest.approx(CHINCHILLA.loss(theta, *X), rel=1e-14)
    C = np.array([1e16, 1e20, 1e24])
    one, other = (
        law.optimal(t, C, FlopsPerToken()) for law, t in ((CHINCHILLA, theta), (GAMMA, bent))
    )
    for name in ("N", "D", "L"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-10)
    assert GAMMA.allocation_exponent(bent) == CHINCHILLA.allocation_exponent(theta)


def test_a_product_without_its_interaction_is_chinchilla():
    theta = np.insert(THETA["chinchilla"], 3, 1e-200)
    assert PRODUCT.loss(theta, *X) == pytest.approx(CHINCHILLA.loss(THETA["chinchilla"], *X))


def test_gamma_keeps_the_effective_exponents():
    """Where one term is alone, L - E falls with slope alpha, whatever gamma is."""
    E, *rest = THETA["gamma"]
    alone = np.array([E, rest[0], 1e-200, *rest[2:]])
    excess = GAMMA.loss(alone, np.array([1e5, 1e6]), np.array([1e9, 1e9])) - E
    assert np.log(excess[0] / excess[1]) / np.log(10) == pytest.approx(rest[2], rel=1e-9)


def test_a_law_is_data_a_third_variable_needs_no_new_code():
    repeated = SumLaw(
        name="unique",
        formula="E + A N^-alpha + B D^-beta + K U^-alpha",
        source="this test",
        terms=(
            Term("E"),
            Term("A", (("alpha", "N"),)),
            Term("B", (("beta", "D"),)),
            Term("K", (("alpha", "U"),)),
        ),
    )
    assert repeated.parameters == ("E", "A", "B", "K", "alpha", "beta")
    assert repeated.variables == ("N", "D", "U")
    N, D = X
    U = D / np.array([1.0, 2.0, 5.0, 9.0])
    expected = 1.5 + 50 * N**-0.3 + 90 * D**-0.4 + 7 * U**-0.3
    theta = np.array([1.5, 50.0, 90.0, 7.0, 0.3, 0.4])
    assert repeated.loss(theta, N, D, U) == pytest.approx(expected, rel=1e-13)


# The linear part.


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), columns=st.integers(1, 4), held=st.sampled_from((None, 0, 1))
)
def test_the_linear_part_equals_nonnegative_least_squares(seed, columns, held):
    rng = np.random.default_rng(seed)
    M = rng.uniform(0.1, 1.0, (12, columns)) ** rng.uniform(0.5, 3.0, columns)
    y = M @ rng.uniform(-0.3, 1.0, columns) + 0.5 + rng.normal(size=12) * 0.05
    fixed = np.full(columns, np.nan)
    if held is not None and columns > 1:
        fixed[held] = 0.1
    free = np.isnan(fixed)
    found, rss = nonnegative((M.T @ M)[None], (M.T @ y)[None], float(y @ y), fixed)
    expected, norm = nnls(M[:, free], y - M[:, ~free] @ fixed[~free])
    assert found[0, free] == pytest.approx(expected, abs=2e-7)
    assert (found[0, ~free] == fixed[~free]).all()
    assert rss[0] == pytest.approx(norm**2, abs=1e-9)


@pytest.mark.parametrize(
    "law", [law for law in LAWS if isinstance(law, SumLaw)], ids=lambda x: x.name
)
def test_starts_hold_an_exact_law_whose_exponents_are_on_the_grid(law):
    rng = np.random.default_rng(0)
    x = rng.uniform(-2.0, 2.0, (40, len(law.variables)))
    phi = np.zeros(len(law.parameters))
    phi[: len(law.terms)] = rng.uniform(-1.5, 0.5, len(law.terms))
    phi[len(law.terms) :] = START_EXPONENTS[[13, 11]][: len(law.exponents)]
    z = law.forward(law.prepare(x), phi[None])[0][0]
    low, high = law.limits(z, np.zeros(len(law.variables)))
    starts = law.starts(x, z, np.ones(40), low, high)
    assert ((starts >= low) & (starts <= high)).all()
    assert np.abs(starts - phi).max(1).min() < 1e-4
    assert law.forward(law.prepare(x), starts)[0][0] == pytest.approx(z, abs=1e-5)


# The optimum.


def test_optimal_with_6nd_equals_the_closed_form():
    E, A, B, alpha, beta = theta = THETA["chinchilla"]
    C = np.array([1e17, 1e21, 1e25])
    G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    N = G * (C / 6) ** (beta / (alpha + beta))
    best = CHINCHILLA.optimal(theta, C, FlopsPerToken())
    assert pytest.approx(N, rel=1e-9) == best.N
    assert pytest.approx(C / 6 / N, rel=1e-9) == best.D
    assert pytest.approx(E + A * N**-alpha + B * (C / 6 / N) ** -beta, rel=1e-12) == best.L


SIZES = np.geomspace(2e4, 2e6, 7)
LADDER = FlopsPerToken.from_rows(SIZES, np.ones(7), 6 * (0.8 * SIZES + 3e4), "own")


@by_name
@pytest.mark.parametrize("flops", [FlopsPerToken(), LADDER], ids=["6ND", "ladder"])
@pytest.mark.parametrize("C", [1e12, 1e14, 1e18])
def test_optimal_is_the_minimum_on_the_line_of_equal_compute(law, flops, C):
    theta = THETA[law.name]

    def loss(u):
        D = C / np.exp(flops(np.array([u]))[0])
        return float(law.loss(theta, np.exp([u]), D)[0])

    u = np.linspace(0, np.log(C), 400)
    start = u[int(np.argmin([loss(v) for v in u]))]  # Brent's method needs the right valley
    direct = minimize_scalar(
        loss, bounds=(start - 0.3, start + 0.3), method="bounded", options={"xatol": 1e-10}
    )
    found = law.optimal(theta, np.array([C]), flops)
    assert found.L[0] == pytest.approx(direct.fun, rel=1e-11)
    assert found.N[0] == pytest.approx(np.exp(direct.x), rel=1e-4)
    assert found.D[0] * np.exp(flops(np.log(found.N))[0])[0] == pytest.approx(C, rel=1e-12)


@pytest.mark.parametrize(
    "law", [law for law in LAWS if law is not PRODUCT], ids=lambda law: law.name
)
def test_the_optimum_of_6nd_grows_with_the_allocation_exponent(law):
    """a = beta/(alpha+beta) for every form but the product, where it holds without P only."""
    theta = THETA[law.name]
    best = law.optimal(theta, np.array([1e20, 1e24]), FlopsPerToken())
    slope = np.log(best.N[1] / best.N[0]) / np.log(1e4)
    assert slope == pytest.approx(law.allocation_exponent(theta), abs=1e-9)


def test_flops_per_token_passes_through_the_rows_and_goes_on_straight():
    N = np.array([1e4, 1e4, 1e5, 1e6])
    flops = FlopsPerToken.from_rows(N, np.full(4, 10.0), 10 * 6 * (N + 2e4), "own")
    value, slope = flops(np.log(N))
    assert np.exp(value) == pytest.approx(6 * (N + 2e4), rel=1e-12)
    assert (slope > 0).all()
    far, _ = flops(np.log(np.array([1e7, 1e8, 1e9])))
    assert np.diff(far)[0] == pytest.approx(np.diff(far)[1], rel=1e-9)


@by_name
def test_batches_of_parameters_give_the_single_answers(law):
    theta = np.stack([THETA[law.name], THETA[law.name] * 1.05])
    C = np.array([1e18, 1e20])
    both = law.optimal(theta, C, FlopsPerToken())
    losses = law.loss(theta, *X)
    for i in range(2):
        alone = law.optimal(theta[i], C, FlopsPerToken())
        assert both.N[i] == pytest.approx(alone.N, rel=1e-10)
        assert both.L[i] == pytest.approx(alone.L, rel=1e-12)
        assert losses[i] == pytest.approx(law.loss(theta[i], *X), rel=1e-14)


def test_an_unknown_law_lists_the_choices():
    listed = "chinchilla, tied, two-term, gamma, product, kaplan, kaplan-e"
    with pytest.raises(ValueError, match=f"unknown law 'kaplen'; choose from {listed}"):
        law_named("kaplen")
    assert [law_named(law.name) for law in LAWS] == list(LAWS)
