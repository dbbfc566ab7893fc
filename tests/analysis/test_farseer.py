"""The Farseer law: against its formula, recovery of a known truth, fixed values, optimum."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.farseer import FarseerLaw
from analysis.flops import FlopsPerToken
from analysis.laws import CHINCHILLA
from analysis.refit import refit
from analysis.solve import fit_law

LAW = FarseerLaw(name="farseer", formula="", source="")
SIX_ND = FlopsPerToken()
# The authors' constants as PlanarG/active-sl@e0a58ff quotes them (farseer_scaling_law/laws.py);
# loss in bits per character.
TRUTH = np.array(
    [-0.062465473, 0.13, 0.128488068, 230.734370759, -0.1729, -1.544209554, -1.665630816, 0.0459,
     3.133347199]
)  # fmt: skip
BY_NAME = LAW.named(TRUTH)
EPOCH = Path(__file__).parents[2] / "../shared/data/epoch_chinchilla/svg_extracted_data.csv"


def grid(sizes=10, horizons=8):
    N, D = np.meshgrid(np.geomspace(1e8, 1e10, sizes), np.geomspace(1e9, 5e11, horizons))
    return N.ravel(), D.ravel()


def direct(theta, N, D):
    s, q, S, B, b, Q, A, a, K = theta
    return np.exp(s * N**q + S) + np.exp(B * N**b + Q) * D ** -np.exp(A * N**a + K)


def powers():
    small = st.floats(-1e-3, 1e-3)
    return st.tuples(*(st.one_of(st.floats(-0.5, 0.5), small, st.just(0.0)) for _ in range(3)))


def coordinates(q):
    """Centred coordinates of a plausible law with these powers."""
    F, G, H = (-0.1, q[0], 0.6), (-1.0, q[1], 9.0), (-0.2, q[2], -1.0)
    return np.array([[*F, *G, *H]])


def centred():
    N, D = grid(4, 3)
    return np.stack([np.log(N / 1e9), np.log(D)], axis=-1)


def test_it_is_the_formula():
    N, D = grid()
    np.testing.assert_allclose(LAW.loss(TRUTH, N, D), direct(TRUTH, N, D), rtol=1e-12)
    several = LAW.loss(np.stack([TRUTH, 1.01 * TRUTH]), N, D)
    np.testing.assert_allclose(several[1], direct(1.01 * TRUTH, N, D), rtol=1e-12)


@pytest.mark.parametrize("fixed", [(), ("floor_S", "rate_K"), ("scale_Q",)])
@given(powers(), st.integers(0, 10**6))
@settings(max_examples=15)
def test_derivatives_are_those_of_the_loss(fixed, q, seed):
    law, phi, features = LAW.under(dict.fromkeys(fixed, 1.0)), coordinates(q), centred()
    n, step = len(features), 1e-5
    rng = np.random.default_rng(seed)
    psi, inner, w = rng.normal(size=(1, n)), rng.uniform(size=(1, n)), rng.uniform(size=(1, n))
    state = law.forward(features, phi)[1]
    J = law.jacobian(features, state)
    g, H, scale, size = law.second_order(features, state, psi, inner, w)
    by_J, by_H = np.empty_like(J), np.empty_like(H)
    for k in range(9):
        up, down = (law.forward(features, phi + s * np.eye(9)[k]) for s in (step, -step))
        by_J[..., k] = (up[0] - down[0]) / (2 * step)
        slopes = [np.einsum("rn,rnp->rp", psi, law.jacobian(features, s)) for _, s in (up, down)]
        by_H[..., k] = (slopes[0] - slopes[1]) / (2 * step)
    by_H += np.einsum("rn,rnp,rnq->rpq", inner, J, J)
    np.testing.assert_allclose(J, by_J, atol=1e-7 * (1 + np.abs(J).max()))
    np.testing.assert_allclose(H, by_H, atol=1e-6 * (1 + np.abs(H).max()))
    np.testing.assert_allclose(g, np.einsum("rn,rnp->rp", psi, J), atol=1e-8)
    np.testing.assert_allclose(scale, np.einsum("rn,rnp->rp", w, J**2), rtol=1e-9)
    np.testing.assert_allclose(size, np.einsum("rn,rnp->rp", w, np.abs(J)), rtol=1e-9)


@given(powers(), st.floats(-3, 3))
def test_coordinates_move_with_the_centre_and_back(q, by):
    phi, features, centre = coordinates(q), centred(), np.array([by, 0.0])
    moved = LAW.recentre(phi, centre)
    np.testing.assert_allclose(LAW.recentre(moved, -centre), phi, atol=1e-9)
    same = LAW.forward(features - centre, moved)[0]
    np.testing.assert_allclose(same, LAW.forward(features, phi)[0], atol=1e-10)


@given(powers())
def test_values_give_the_loss_of_the_coordinates(q):
    features, phi = centred(), coordinates(q)
    theta = LAW.values(LAW.recentre(phi, -np.log([1e9, 1.0])))
    raw = np.exp(features + np.log([1e9, 1.0]))
    z = LAW.forward(features, phi)[0][0]
    # A power of zero has no finite amplitude: it is read as 1e-9.
    np.testing.assert_allclose(np.log(LAW.loss(theta[0], *raw.T)), z, atol=1e-5)


def test_exact_losses_give_the_truth_back():
    X = grid()
    fit = fit_law(LAW, X, LAW.loss(TRUTH, *X))
    assert fit.certified, fit.status
    np.testing.assert_allclose(fit.theta, TRUTH, rtol=1e-8)


def test_noisy_losses_give_nearly_the_truth():
    X = grid(12, 10)
    noise = np.random.default_rng(0).normal(size=120) * 1e-3
    fit = fit_law(LAW, X, LAW.loss(TRUTH, *X) * np.exp(noise))
    assert fit.certified, fit.status
    assert not fit.at_limit
    far = LAW.loss(fit.theta, np.array([3e10]), np.array([5e12]))
    np.testing.assert_allclose(far, LAW.loss(TRUTH, np.array([3e10]), np.array([5e12])), rtol=5e-3)


def test_the_unit_of_n_does_not_matter():
    N, D = grid()
    L = LAW.loss(TRUTH, N, D) * np.exp(np.random.default_rng(0).normal(size=80) * 1e-3)
    plain, millions = fit_law(LAW, (N, D), L), fit_law(LAW, (N / 1e6, D), L)
    assert millions.objective == pytest.approx(plain.objective, rel=1e-9)
    np.testing.assert_allclose(millions.theta[1::3], plain.theta[1::3], rtol=1e-4)


@pytest.mark.parametrize(
    "fixed",
    [("floor_q",), ("floor_S",), ("scale_Q", "rate_K"), ("floor_q", "floor_S", "scale_b")],
)
def test_powers_and_offsets_can_be_fixed(fixed):
    X = grid()
    L = LAW.loss(TRUTH, *X)
    right = {name: BY_NAME[name] for name in fixed}
    fit = fit_law(LAW.under(right), X, L, fixed=right)
    np.testing.assert_allclose(fit.theta, TRUTH, rtol=1e-7)
    wrong = {name: 1.1 * value for name, value in right.items()}
    fit = fit_law(LAW.under(wrong), X, L, fixed=wrong)
    assert {name: fit.parameters[name] for name in fixed} == pytest.approx(wrong, rel=1e-9)
    assert 0 < fit.rms < 0.01


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"floor_s": 1.0}, "depends on its power; fix floor_q or floor_S"),
        ({"scale_b": 0.0}, "a power of this law is between -0.8 and 0.8, and not zero"),
        ({"rate_K": np.nan}, "must be a finite number"),
        ({"alpha": 0.3}, "law farseer has no parameter 'alpha'; it has floor_s, floor_q"),
    ],
)
def test_impossible_fixed_values_are_refused(fixed, message):
    X = grid()
    with pytest.raises(ValueError, match=message):
        fit_law(LAW, X, LAW.loss(TRUTH, *X), fixed=fixed)


def test_refits_under_equal_weights_are_the_fit():
    X = grid()
    L = LAW.loss(TRUTH, *X) * np.exp(np.random.default_rng(0).normal(size=80) * 1e-3)
    fit = fit_law(LAW, X, L)
    again = refit(fit, X, L, np.ones((3, 80)))
    np.testing.assert_allclose(LAW.loss(again.theta, *X)[1], LAW.loss(fit.theta, *X), rtol=1e-5)


def test_optimum_is_the_lowest_loss_at_that_compute():
    C = np.geomspace(1e20, 1e24, 5)
    best = LAW.optimal(np.stack([TRUTH, TRUTH * 1.001]), C, SIX_ND)
    for j, c in enumerate(C):
        N = best.N[0, j] * np.exp(np.linspace(-1.5, 1.5, 2001))
        L = LAW.loss(TRUTH, N, c / (6 * N))
        assert best.L[0, j] <= L.min() * (1 + 1e-12)
        assert best.L[0, j] == pytest.approx(L[1000], rel=1e-12)
    np.testing.assert_allclose(6 * best.N * best.D, np.broadcast_to(C, (2, 5)), rtol=1e-12)
    # The paper's finding: tokens per parameter grow with compute.
    assert (np.diff(best.D[0] / best.N[0]) > 0).all()


def test_without_an_optimum_there_is_no_number():
    rising = TRUTH.copy()
    rising[:3] = 0.05, 0.13, -1.0  # the floor rises with N: smaller is always better
    rising[3:9] = 1e-9, 0.1, 3.0, 1e-9, 0.1, np.log(0.01)
    best = LAW.optimal(rising, np.array([1e21]), SIX_ND)
    assert np.isnan([best.N[0], best.D[0], best.L[0]]).all()


def test_the_allocation_exponent_is_local():
    assert not LAW.scale_free
    assert np.isnan(LAW.allocation_exponent(TRUTH))
    C = np.array([1e20, 1e22])
    N = LAW.optimal(TRUTH, np.concatenate([C / 1.1, C * 1.1]), SIX_ND).N.reshape(2, 2)
    a = np.log(N[1] / N[0])
    assert a[1] < a[0]


def test_epoch_rows_are_fitted_better_than_by_chinchilla():
    if not EPOCH.exists():
        pytest.skip("shared/data/epoch_chinchilla is not here")
    frame = pd.read_csv(EPOCH).sort_values("loss").iloc[:-5]
    N, L = frame["Model Size"].to_numpy(), frame["loss"].to_numpy()
    X = N, frame["Training FLOP"].to_numpy() / (6 * N)
    fit = fit_law(LAW, X, L)
    assert fit.certified, fit.status
    assert fit.objective < 0.8 * fit_law(CHINCHILLA, X, L).objective
