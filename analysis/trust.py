"""Whether to believe a fitted law: one stated rule, and the reasons it gives."""

from collections.abc import Mapping

import numpy as np

from analysis.interval import OPEN, Interval
from analysis.noise import LackOfFit, SeedNoise
from analysis.solve import Fit
from analysis.uncertainty import FEW, WIDE_A, Estimate

MIN_NOISE_DF = 3  # fewer repeated trunks than this: seed noise is a guess
LOW_RMS = 0.01
GOOD_HOLDOUT = 0.01
NEAR = 0.02  # half the misfit-aware interval at ten times the compute, as a share of the loss
APART = 2.0  # standard errors by which the two estimators may differ


def judge(
    fit: Fit,
    estimate: Estimate,
    intervals: Mapping[str, Interval],
    df: Mapping[str, float],
    apart: Mapping[str, float],
    noise: SeedNoise,
    test: LackOfFit | None,
    holdout_error: float | None,
    baseline: float | None,
    far: Interval | None = None,
) -> tuple[str, tuple[str, ...]]:
    """Trust in a law and the reasons, by this rule.

    low: optimum not certified; a parameter at a limit; a parameter not identified; a's interval
    wider than 0.2 or on fewer than 3 degrees of freedom; no setting with 3 seeds or fewer than 3
    degrees of freedom of seed noise; fewer than 5 trunks; fewer than 4 sizes; rejected by the
    lack-of-fit test with a residual RMS above 1 %; hold-out error above 1 % and worse than the
    better baseline.
    high: none of these, not rejected, hold-out rows predicted within 1 % and better than both
    baselines, every profile bounded, the two estimators within 2 standard errors, 5 or more sizes
    over a decade, and the misfit-aware interval at ten times the compute (`far`) within ±2 %.
    medium: the rest.
    """
    design = estimate.design
    low, medium = [], []
    if not fit.certified:
        low.append(f"the optimum is not certified ({fit.status.rstrip('.')})")
    low += [f"at a limit: {text}" for text in fit.at_limit.values()]
    unknown = [k for k, i in intervals.items() if i.low is None and i.high is None]
    half = [k for k, i in intervals.items() if not i.closed and k not in unknown]
    if unknown:
        low.append(f"not identified by this design: {', '.join(unknown)}")
    elif intervals["a"].width > WIDE_A:
        low.append(f"the interval of a is wider than {WIDE_A}: no allocation rule follows")
    elif estimate.estimator == "gls-reml" and df["a"] < FEW:
        low.append(f"the interval of a stands on {df['a']:.1f} degrees of freedom")
    if half:
        medium.append(f"one-sided interval: {', '.join(half)}")
    if noise.max_seeds < 2:
        low.append("no repeated seeds: noise cannot be told from misfit")
    elif noise.max_seeds < 3 or noise.df_trunks < MIN_NOISE_DF:
        low.append(
            f"too few repeated seeds: {noise.max_seeds} at most, {noise.df_trunks} degrees of "
            f"freedom of seed noise, {MIN_NOISE_DF} are needed"
        )
    if design.trunks < 5:
        low.append(
            f"trunks: {design.trunks} only, {max(design.df_size, 0)} degrees of freedom left"
        )
    if design.sizes < 4:
        low.append(f"sizes: {design.sizes} only, 4 are needed")
    if test and test.rejected:
        text = (
            "the law is rejected by the lack-of-fit test with residual RMS "
            f"{100 * estimate.rms:.2f} %"
        )
        (low if estimate.rms > LOW_RMS else medium).append(text)
    if holdout_error is None:
        medium.append("no held-out runs: no prediction was tested")
    else:
        worse = baseline is not None and holdout_error > baseline
        if holdout_error > GOOD_HOLDOUT:
            text = f"hold-out error is {100 * holdout_error:.2f} %"
            (low if worse else medium).append(text + (", worse than a baseline" if worse else ""))
        elif worse:
            medium.append("a baseline predicts the held-out runs better")
    differ = [f"{k} by {v:.1f}" for k, v in apart.items() if v > APART]
    if differ:
        medium.append(f"Huber and GLS differ in standard errors: {', '.join(differ)}")
    if estimate.estimator == "huber" and estimate.draws is not None:
        stalled = float(np.mean(estimate.draws.refits.gradient > 1e-4))
        if stalled > OPEN:
            medium.append(f"{100 * stalled:.0f} % of the bootstrap refits did not converge")
    if far is not None and far.low is not None and far.high is not None:
        spread = 0.5 * float(np.log(far.high / far.low))
        if spread > NEAR:
            medium.append(
                f"at ten times the compute the prediction is good to ±{100 * spread:.1f} % only"
            )
    if design.sizes < 5 or design.decades_n < 1:
        medium.append(
            f"sizes: {design.sizes} over {design.decades_n:.2g} decades of N, 5 over one are needed"
        )
    if low:
        return "low", tuple(low + medium)
    if medium:
        return "medium", tuple(medium)
    return "high", ("certified, identified, within noise, and the hold-out was predicted",)
