"""Whether to believe a fitted law: one stated rule, and the reasons it gives."""

from collections.abc import Mapping

from analysis.solve import Fit
from analysis.uncertainty import OPEN, WIDE_A, Design, Interval, LackOfFit, SeedNoise

MIN_NOISE_DF = 3  # fewer repeated trunks than this: seed noise is a guess
LOW_RMS = 0.01
GOOD_HOLDOUT = 0.01


def judge(
    fit: Fit,
    design: Design,
    intervals: Mapping[str, Interval],
    noise: SeedNoise,
    test: LackOfFit | None,
    holdout_error: float | None,
    baseline: float | None,
    stalled: float = 0.0,
) -> tuple[str, tuple[str, ...]]:
    """Trust in a law and the reasons, by this rule.

    low: optimum not certified; a parameter at a limit; a parameter not identified; a's interval
    wider than 0.2; no setting with 3 seeds or fewer than 3 degrees of freedom of seed noise; fewer
    than 5 trunks; fewer than 4 sizes; rejected by the lack-of-fit test with a residual RMS above
    1 %; hold-out error above 1 % and worse than the better baseline.
    high: none of these, not rejected, hold-out rows predicted within 1 % and better than both
    baselines, 5 or more sizes over a decade, under 5 % of the bootstrap refits `stalled`.
    medium: the rest.
    """
    low, medium = [], []
    if not fit.certified:
        low.append(f"the optimum is not certified ({fit.status.rstrip('.')})")
    low += [f"at a limit: {text}" for text in fit.at_limit.values()]
    unknown = [k for k, i in intervals.items() if i.low is None and i.high is None]
    if unknown:
        low.append(f"not identified by this design: {', '.join(unknown)}")
    elif intervals["a"].width > WIDE_A:
        low.append(f"the interval of a is wider than {WIDE_A}: no allocation rule follows")
    if noise.max_seeds < 2:
        low.append("no repeated seeds: noise cannot be told from misfit")
    elif noise.max_seeds < 3 or noise.df_trunks < MIN_NOISE_DF:
        low.append(
            f"too few repeated seeds: {noise.max_seeds} at most, {noise.df_trunks} degrees of "
            f"freedom of seed noise, {MIN_NOISE_DF} are needed"
        )
    if design.trunks < 5:
        low.append(f"{design.trunks} trunks only: {max(design.df_size, 0)} degrees of freedom left")
    if design.sizes < 4:
        low.append(f"{design.sizes} sizes only")
    if test and test.rejected:
        text = (
            f"the law is rejected by the lack-of-fit test with residual RMS {100 * fit.rms:.2f} %"
        )
        (low if fit.rms > LOW_RMS else medium).append(text)
    if holdout_error is None:
        medium.append("no held-out runs: no prediction was tested")
    else:
        worse = baseline is not None and holdout_error > baseline
        if holdout_error > GOOD_HOLDOUT:
            text = f"hold-out error is {100 * holdout_error:.2f} %"
            (low if worse else medium).append(text + (", worse than a baseline" if worse else ""))
        elif worse:
            medium.append("a baseline predicts the held-out runs better")
    if stalled > OPEN:
        medium.append(f"{100 * stalled:.0f} % of the bootstrap refits did not converge")
    if design.sizes < 5 or design.decades_n < 1:
        medium.append(f"{design.sizes} sizes over {design.decades_n:.2g} decades of N")
    if low:
        return "low", tuple(low + medium)
    if medium:
        return "medium", tuple(medium)
    return "high", ("certified, identified, within noise, and the hold-out was predicted",)
