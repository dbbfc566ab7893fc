"""How far the numbers can be trusted: trunk bootstrap, seed noise, lack of fit, and what the
design of a study cannot tell at all."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.laws import FlopsPerToken, SumLaw
from analysis.load import Rows
from analysis.solve import Fit, Refits, refit

RESAMPLES = 2000
OPEN = 0.05  # an end where more of the resamples than this stand at a limit is open
COLLINEAR = 0.1  # sd of log D at given log N below which the two cannot be told apart
WIDE_A = 0.2  # an interval of a wider than this is no allocation rule
METHOD = "trunk-bootstrap"


@dataclass(frozen=True)
class Interval:
    """Interval ends; None is an open end, `note` says why."""

    low: float | None
    high: float | None
    note: str | None = None

    @property
    def closed(self) -> bool:
        return self.low is not None and self.high is not None

    @property
    def width(self) -> float:
        if self.low is None or self.high is None:
            return float("inf")
        return self.high - self.low


@dataclass(frozen=True)
class Draws:
    """Refits under resampled trunks: values (resamples, p) and where they stand at a limit."""

    law: SumLaw
    refits: Refits

    @property
    def theta(self) -> np.ndarray:
        return self.refits.theta

    def limits(self) -> dict[str, tuple[float, float]]:
        """Share of resamples at the low and the high limit of each parameter.

        A dead term leaves its exponent without meaning, and an exponent at its limit its
        coefficient: the other then counts at both limits.
        """
        law, found = self.law, {}
        low, high = self.refits.at_low.mean(0), self.refits.at_high.mean(0)
        for i, name in enumerate(law.parameters):
            found[name] = (float(low[i]), float(high[i]))
        for i, term in enumerate(law.terms):
            if term.exponent:
                k = law.parameters.index(term.exponent)
                dead, stuck = float(low[i]), float(low[k] + high[k])
                below, above = found[term.exponent]
                found[term.exponent] = (below + dead, above + dead)
                found[term.coefficient] = (float(low[i]) + stuck, float(high[i]) + stuck)
        return found


@dataclass(frozen=True)
class SeedNoise:
    """Pooled spread of log L between runs that differ only in the seed.

    sigma: in log units (0.01 = 1 %), nan without repeats; df_rows counts repeated rows, df_trunks
    repeated trunks: rows of a trunk share its noise, so tests use df_trunks.
    """

    sigma: float
    df_rows: int
    df_trunks: int
    max_seeds: int


@dataclass(frozen=True)
class LackOfFit:
    """F-test of the law's residuals against seed noise (both in log-loss units)."""

    F: float
    df: tuple[int, int]
    p: float
    rms: float
    sigma: float

    @property
    def rejected(self) -> bool:
        return self.p < 0.05

    @property
    def weak(self) -> bool:
        """Too few repeated trunks for the test to notice a misfit of several sigma."""
        return not self.rejected and self.df[1] < 3 and self.rms > self.sigma


@dataclass(frozen=True)
class Design:
    """What was varied, and `problems`: parameter -> why this design cannot identify it."""

    sizes: int
    horizons: int
    trunks: int
    decades_n: float
    decades_d: float
    ratio: tuple[float, float]
    spread: float
    problems: Mapping[str, str]

    @property
    def df_size(self) -> int:
        """Trunks left to estimate trunk noise: E, A, alpha take three of them."""
        return self.trunks - 3


def bootstrap(fit: Fit, rows: Rows, resamples: int, seed: int = 0) -> Draws:
    """Refit under exponential weights drawn per trunk (Rubin 1981, The Bayesian Bootstrap).

    Rows of one trunk share a weight: their noise is shared too, so they are one observation.
    """
    W = trunk_weights(rows.trunk, resamples, seed)
    return Draws(fit.law, refit(fit, rows.N, rows.D, rows.L, W))


def trunk_weights(trunk: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Weights (resamples, rows), mean 1 over trunks in every resample."""
    labels, codes = np.unique(trunk, return_inverse=True)
    w = np.random.default_rng(seed).exponential(size=(resamples, len(labels)))
    return (w / w.mean(1, keepdims=True))[:, codes]


def interval(
    values: np.ndarray, level: float, at_low: float = 0.0, at_high: float = 0.0, what: str = ""
) -> Interval:
    """Central percentile interval; an end is open where too many resamples stand at its limit."""
    tail = (1 - level) / 2
    low, high = (float(v) for v in np.quantile(values, [tail, 1 - tail]))
    note = None
    if at_low > OPEN and at_high > OPEN:
        note = (
            f"no bounds: {min(max(at_low, at_high), 1):.0%} of the resamples are at a limit{what}"
        )
    elif at_low > OPEN:
        note = f"no lower bound: {at_low:.0%} of the resamples are at the lower limit{what}"
    elif at_high > OPEN:
        note = f"no upper bound: {at_high:.0%} of the resamples are at the upper limit{what}"
    # Where nearly all resamples stand at one limit, the other end is that limit, not a finding.
    open_low, open_high = at_low > OPEN or at_high > 1 - tail, at_high > OPEN or at_low > 1 - tail
    return Interval(
        None if open_low or not np.isfinite(low) else low,
        None if open_high or not np.isfinite(high) else high,
        note,
    )


def parameter_intervals(
    draws: Draws, design: Design, fixed: Mapping[str, float], level: float
) -> dict[str, Interval]:
    """Interval of each parameter and of a = beta/(alpha+beta); fixed ones are points."""
    law, limits = draws.law, draws.limits()
    found = {}
    for i, name in enumerate(law.parameters):
        if name in fixed:
            found[name] = Interval(fixed[name], fixed[name], "fixed by the user")
        elif name in design.problems:
            found[name] = Interval(None, None, design.problems[name])
        else:
            found[name] = interval(draws.theta[:, i], level, *limits[name])
    if "a" in design.problems:
        found["a"] = Interval(None, None, design.problems["a"])
    else:
        alpha, beta = limits["alpha"], limits["beta"]
        # a falls with alpha and rises with beta.
        ends = max(alpha[1], beta[0]), max(alpha[0], beta[1])
        values = law.allocation_exponent(draws.theta)
        found["a"] = interval(values, level, *ends, what=" of alpha or beta")
    return found


def optimum_intervals(
    draws: Draws, C: np.ndarray, flops: FlopsPerToken, level: float
) -> list[tuple[Interval, Interval, Interval]]:
    """Intervals of N*, D*, L* at each compute C; open where an exponent is at a limit too often."""
    limits = draws.limits()
    stuck = max(max(limits[name]) for name in draws.law.exponents)
    best = draws.law.optimal(draws.theta, C, flops)
    what = " of alpha or beta"
    return [
        (
            interval(best.N[:, i], level, stuck, stuck, what),
            interval(best.D[:, i], level, stuck, stuck, what),
            interval(best.L[:, i], level),
        )
        for i in range(len(C))
    ]


def seed_noise(rows: Rows) -> SeedNoise:
    """Pooled variance of log L within cells of equal N and horizon but different trunk.

    N must be equal, not close: a scatter of nearly equal sizes holds no repeats.
    """
    size, horizon, z = np.unique(rows.N, return_inverse=True)[1], rows.horizon, np.log(rows.L)
    ss, df_rows, most = 0.0, 0, 1
    trunks: dict[int, set[int]] = {}
    for cell in np.unique(np.stack([size, horizon], 1), axis=0):
        here = (size == cell[0]) & (horizon == cell[1])
        labels = set(rows.trunk[here].tolist())
        if len(labels) > 1:
            ss += float(((z[here] - z[here].mean()) ** 2).sum())
            df_rows += int(here.sum()) - 1
            most = max(most, len(labels))
            trunks.setdefault(int(cell[0]), set()).update(labels)
    df_trunks = sum(len(labels) - 1 for labels in trunks.values())
    sigma = float(np.sqrt(ss / df_rows)) if df_rows else float("nan")
    return SeedNoise(sigma, df_rows, df_trunks, most)


def lack_of_fit(fit: Fit, rows: Rows, noise: SeedNoise) -> LackOfFit | None:
    """Compare the cell means' distance from the law with the spread between seeds.

    F = (sum n·(mean residual of a cell)² / (cells - free parameters)) / sigma². The noise has
    df_trunks, not df_rows. None without repeats or without cells to spare.
    """
    cells = np.unique(np.stack([rows.size, rows.horizon], 1), axis=0, return_inverse=True)[1]
    cells = cells.ravel()
    count = np.bincount(cells)
    df = len(count) - fit.n_free
    if not noise.df_trunks or df < 1 or not noise.sigma > 0:
        return None
    mean = np.bincount(cells, fit.residuals) / count
    F = float((count * mean**2).sum() / df / noise.sigma**2)
    p = float(stats.f.sf(F, df, noise.df_trunks))
    return LackOfFit(F, (df, noise.df_trunks), p, fit.rms, noise.sigma)


def variance_components(fit: Fit, rows: Rows) -> dict[str, float | int | None]:
    """Moment estimates of trunk and row standard deviation of the residuals (log units)."""
    _, codes = np.unique(rows.trunk, return_inverse=True)
    count = np.bincount(codes)
    mean = np.bincount(codes, fit.residuals) / count
    within = len(rows) - len(count)
    if within < 1 or len(count) < 2:
        return {"trunk_sd": None, "row_sd": None, "trunks": len(count)}
    row = float(((fit.residuals - mean[codes]) ** 2).sum() / within)
    trunk = float(np.mean(mean**2) - row * np.mean(1 / count))
    return {"trunk_sd": max(trunk, 0.0) ** 0.5, "row_sd": row**0.5, "trunks": len(count)}


def diagnose(rows: Rows, law: SumLaw, fixed: Mapping[str, float]) -> Design:
    """What the design varies and which of the law's parameters it therefore cannot identify.

    Rules: D a function of N leaves one curve for two power laws; an exponent needs three distinct
    values of its variable (two fit every exponent); E, A, alpha need more than three trunks.
    """
    x, y = np.log(rows.N), np.log(rows.D)
    sizes, horizons = int(rows.size.max()) + 1, int(rows.horizon.max()) + 1
    trunks = len(np.unique(rows.trunk))
    ratio = rows.D / rows.N
    # sd of log D that log N does not explain (a line: D ∝ N^k is as blind as D = kN).
    slope = np.polyfit(x - x.mean(), y, 1)[0] if sizes > 1 else 0.0
    spread = float(np.std(y - slope * (x - x.mean())))
    problems: dict[str, str] = {}
    everything = (*law.parameters, "a")
    if sizes > 1 and horizons > 1 and spread < COLLINEAR:
        constant = ratio.max() / ratio.min() < 1.25
        how = (
            f"every run has D/N near {np.median(ratio):.3g}"
            if constant
            else f"D is proportional to N^{slope:.2g} in every run"
        )
        text = (
            f"not identified by this design: {how}, so the N term and the D term cannot be told "
            "apart; train each size at 4 or more horizons, D/N spread over a factor of 8 or more"
        )
        problems |= dict.fromkeys(everything, text)
    if sizes < 3:
        text = (
            f"not identified by this design: {sizes} {'size' if sizes == 1 else 'sizes'}, and "
            "any exponent fits fewer than 3; add sizes (5 or more over a decade of N)"
        )
        for name in ("A", "alpha", "E", "a"):
            problems.setdefault(name, text)
    if horizons < 3:
        text = (
            f"not identified by this design: {horizons} "
            f"{'horizon' if horizons == 1 else 'horizons'}, and any exponent fits fewer than 3; "
            "add horizons (branches of the same trunks)"
        )
        for name in ("B", "beta", "E", "a"):
            problems.setdefault(name, text)
    size_parameters = len({"E", "A", "alpha"} & set(law.parameters) - set(fixed))
    if trunks <= size_parameters and sizes >= 3:
        text = (
            f"not identified by this design: {trunks} trunks, {size_parameters} size parameters, "
            "no repeats; add one size or 2 seeds"
        )
        for name in ("A", "alpha", "E", "a"):
            problems.setdefault(name, text)
    problems = {k: v for k, v in problems.items() if k in everything and k not in fixed}
    return Design(
        sizes=sizes,
        horizons=horizons,
        trunks=trunks,
        decades_n=float(np.ptp(x) / np.log(10)),
        decades_d=float(np.ptp(y) / np.log(10)),
        ratio=(float(ratio.min()), float(ratio.max())),
        spread=spread,
        problems=problems,
    )
