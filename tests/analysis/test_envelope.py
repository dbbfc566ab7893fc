"""Approach 1, and what both approaches share: regression, interpolation, noise, refusals."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import analysis.optima as module
from analysis.curves import Noise, SizeCurves
from analysis.envelope import envelope
from analysis.optima import REASONS, power_law, surface_bias
from analysis.rows import Rows

E, A, B, ALPHA, BETA = 1.8, 480.0, 2100.0, 0.35, 0.37


def loss(N, D):
    return E + A * N**-ALPHA + B * D**-BETA


def optimal(C):
    """N* of the surface at compute C = 6ND (Hoffmann et al. 2022, equation 4)."""
    G = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    return G * (np.asarray(C) / 6) ** (BETA / (ALPHA + BETA))


def ladder(sizes, horizons, sigma=0.0, seed=0) -> Rows:
    N, D = (v.ravel() for v in np.meshgrid(sizes, horizons, indexing="ij"))
    z = np.log(loss(N, D)) + sigma * np.random.default_rng(seed).normal(size=len(N))
    return Rows(N, D, 6 * N * D, np.exp(z), np.repeat(np.arange(len(sizes)), len(horizons)))


SIZES, HORIZONS = np.geomspace(3e6, 3e9, 13), np.geomspace(1e8, 1e11, 10)


def test_power_law_of_exact_powers():
    C = np.geomspace(1e18, 1e22, 5)
    exponent, intercept = power_law(C, 0.09 * C**0.49)
    assert (exponent, np.exp(intercept)) == pytest.approx((0.49, 0.09), rel=1e-10)


@given(
    st.lists(st.tuples(st.floats(1, 60), st.floats(-5, 25), st.floats(0.1, 9)), min_size=3),
)
def test_power_law_is_weighted_least_squares_and_leaves_nan_out(points):
    x, v, w = np.array(points).T
    if np.ptp(x) < 0.5:
        return
    exponent, intercept = power_law(np.exp(x), np.exp(v), w)
    assert (exponent, intercept) == pytest.approx(
        tuple(np.polyfit(x, v, 1, w=np.sqrt(w))), rel=1e-5, abs=1e-5
    )
    more = np.array([[*np.exp(v), np.nan], [np.nan] * (len(v) + 1)])
    both, _ = power_law(np.exp([*x, 70.0]), more, np.array([*w, 5.0]))
    assert both[0] == pytest.approx(float(exponent), rel=1e-6, abs=1e-6)
    assert np.isnan(both[1])


def test_interpolation_meets_its_points_and_never_leaves_them():
    rows = ladder(SIZES[:4], HORIZONS)
    curves = SizeCurves.of(rows)
    at_points = curves.at(rows.C[:10], curves.cells.log_l[None])[0]
    assert at_points[:, 0] == pytest.approx(np.log(rows.L[:10]), abs=1e-12)
    C = np.geomspace(rows.C.min() / 10, rows.C.max() * 10, 500)
    log_l = curves.at(C, curves.cells.log_l[None])[0]
    low, high = curves.reach.T
    reached = (low <= C[:, None]) & (high >= C[:, None])
    assert np.array_equal(np.isfinite(log_l), reached)
    D = C[:, None] / 6 / SIZES[:4]
    assert log_l[reached] == pytest.approx(np.log(loss(SIZES[:4], D))[reached], abs=2e-3)


@settings(max_examples=30)
@given(st.lists(st.floats(0.5, 4), min_size=4, max_size=8))
def test_interpolation_does_not_overshoot(losses):
    D = np.geomspace(1e8, 1e10, len(losses))
    rows = Rows(np.full(len(D), 1e7), D, 6e7 * D, np.array(losses), np.zeros(len(D), int))
    curves = SizeCurves.of(rows)
    C = np.geomspace(rows.C[0], rows.C[-1], 200)
    between = curves.at(C, curves.cells.log_l[None])[0, :, 0]
    piece = np.clip(np.searchsorted(rows.C, C, side="right") - 1, 0, len(D) - 2)
    ends = np.sort(np.log(rows.L[np.stack([piece, piece + 1])]), axis=0)
    assert (between >= ends[0] - 1e-9).all()
    assert (between <= ends[1] + 1e-9).all()


def test_recovers_the_exponent_of_a_surface():
    """The staircase of 37 sizes is fine enough for two digits."""
    q = envelope(ladder(np.geomspace(1e6, 1e10, 37), np.geomspace(1e8, 1e12, 20)))
    assert q.a == pytest.approx(BETA / (ALPHA + BETA), abs=0.01)
    assert q.tokens is not None
    assert q.tokens.exponent == pytest.approx(ALPHA / (ALPHA + BETA), abs=0.01)
    for c in q.used:
        assert pytest.approx(optimal(c.C), rel=0.3) == c.N
        assert pytest.approx(c.C, rel=1e-9) == 6 * (c.N or 0) * (c.D or 0)


def test_winners_of_training_curves_equal_brute_force():
    """Evaluations of training curves as arrays: dense, and each size with its own points."""
    rng = np.random.default_rng(0)
    parts = [(n, np.sort(10 ** rng.uniform(8, 10.5, 300))) for n in SIZES[:8]]
    N = np.concatenate([np.full(len(d), n) for n, d in parts])
    D = np.concatenate([d for _, d in parts])
    rows = Rows(N, D, 6 * N * D, loss(N, D), N.astype(int))
    q = envelope(rows)
    assert {c.reason for c in q.curves} == {None, "edge-minimum", "too-few"}
    for c in q.curves:
        here = [(n, d) for n, d in parts if 6 * n * d[0] <= c.C <= 6 * n * d[-1]]
        z = [np.interp(np.log(c.C / 6 / n), np.log(d), np.log(loss(n, d))) for n, d in here]
        win = int(np.argmin(z)) if z else 0
        if len(here) < 3:
            assert c.reason == "too-few"
        elif win in (0, len(here) - 1):
            assert c.reason == "edge-minimum"
        else:
            assert pytest.approx(here[win][0], rel=1e-9) == c.N
    assert (q.method, q.kind) == ("approach-1", "interpolated")


def test_few_sizes_get_a_reason_instead_of_an_exponent():
    q = envelope(ladder(SIZES[4:8], HORIZONS), Noise(0.001))
    assert q.a is None
    assert "an exponent needs 3" in str(q.reason)
    assert len(q.curves) == 200
    assert all(c.reason in (None, *REASONS) for c in q.curves)


def test_two_sizes_and_single_horizons():
    q = envelope(ladder(SIZES[:2], HORIZONS))
    assert {c.reason for c in q.curves} == {"too-few"}
    q = envelope(ladder(SIZES, HORIZONS[:1]))
    assert {c.reason for c in q.curves} == {"too-few"}
    assert "one horizon makes no curve over compute, not used: N = 3e+06" in q.notes[0]


def test_one_row_is_an_answer_not_a_traceback():
    q = envelope(ladder(SIZES[:1], HORIZONS[:1]), Noise(0.001))
    assert q.a is None
    assert {c.reason for c in q.curves} == {"too-few"}


def test_unstable_optima_lose_their_exponent():
    q = envelope(ladder(SIZES[3:7], HORIZONS), Noise(0.5, resamples=200))
    assert "unstable-minimum" in {c.reason for c in q.curves}
    assert all(c.lost > 0.5 for c in q.curves if c.reason == "unstable-minimum" and c.lost)


def test_noise_widens_the_interval_and_trunk_noise_counts():
    rows = ladder(SIZES, HORIZONS)
    widths = []
    for noise in (Noise(0.0005), Noise(0.002), Noise(0.002, trunk=0.004)):
        q = envelope(rows, replace(noise, resamples=300))
        assert q.params is not None
        assert q.params.interval is not None
        low, high = q.params.interval
        assert low <= high
        widths.append(high - low)
    assert widths[0] < widths[1] < widths[2]


def test_noise_may_depend_on_the_loss_and_on_the_number_of_seeds():
    rows = ladder(SIZES, HORIZONS)
    one = envelope(rows, Noise(0.002, resamples=200))
    same = envelope(rows, Noise(lambda L: np.full_like(L, 0.002), resamples=200))
    assert one == same
    four = [np.tile(getattr(rows, k), 4) for k in ("N", "D", "C", "L", "trunk")]
    seeds = envelope(Rows(*four), Noise(0.004, resamples=200))
    assert seeds.params is not None
    assert one.params is not None
    assert seeds.params.interval == pytest.approx(one.params.interval, rel=1e-6)


def test_seeded_and_the_same_in_small_blocks(monkeypatch):
    rows = ladder(SIZES, HORIZONS)
    one = envelope(rows, Noise(0.002, resamples=200))
    assert envelope(rows, Noise(0.002, resamples=200)) == one
    assert envelope(rows, Noise(0.002, resamples=200, seed=1)) != one
    monkeypatch.setattr(module, "BLOCK", 50_000)
    assert envelope(rows, Noise(0.002, resamples=200)) == one


def test_order_of_rows_does_not_matter():
    rows = ladder(SIZES, HORIZONS, sigma=0.001)
    mixed = rows.take(np.random.default_rng(0).permutation(len(rows)))
    assert envelope(mixed).params == envelope(rows).params


def test_bias_is_what_approach_1_does_to_a_noise_free_surface():
    rows = ladder(SIZES, HORIZONS, sigma=0.01)
    bias = surface_bias(envelope, rows, loss, optimal)
    clean = envelope(ladder(SIZES, HORIZONS))
    assert bias.true_a == pytest.approx(BETA / (ALPHA + BETA), rel=1e-9)
    assert clean.a is not None
    assert bias.a == pytest.approx(clean.a - BETA / (ALPHA + BETA), abs=1e-12)
    assert [c for c, _ in bias.factor] == [c.C for c in clean.used]
    assert all(0.6 < f < 1.7 for _, f in bias.factor)


def test_json_has_no_nan_and_no_arrays():
    q = envelope(ladder(SIZES, HORIZONS), Noise(0.001, resamples=100))
    again = json.loads(json.dumps(asdict(q), allow_nan=False))
    assert again["params"]["exponent"] == q.a
    assert again["curves"][0]["reason"] == "too-few"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"L": -1.0}, "row 3: L = -1.0: N, D, C and L must be positive and finite"),
        ({"N": np.nan}, "row 3: N = nan"),
        ({"C": np.inf}, "row 3: C = inf"),
    ],
)
def test_bad_rows_are_named(change, text):
    rows = ladder(SIZES, HORIZONS)
    ((name, value),) = change.items()
    values = getattr(rows, name).copy()
    values[2] = value
    with pytest.raises(ValueError, match=text):
        envelope(replace(rows, **{name: values}))


def test_bad_arguments_are_named():
    rows = ladder(SIZES, HORIZONS)
    with pytest.raises(ValueError, match="no rows"):
        envelope(rows.take(np.zeros(len(rows), bool)))
    with pytest.raises(ValueError, match=r"noise sigma = -0.1"):
        Noise(-0.1)
    with pytest.raises(ValueError, match="noise trunk = nan"):
        Noise(0.1, trunk=float("nan"))
    with pytest.raises(ValueError, match=r"level = 90"):
        Noise(0.1, level=90)
    with pytest.raises(ValueError, match="resamples = 3"):
        Noise(0.1, resamples=3)
    with pytest.raises(ValueError, match="negative or not finite"):
        envelope(rows, Noise(lambda L: -L))
