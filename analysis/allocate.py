"""Compute-optimal allocation of the chosen law, and approaches 1 and 2 beside it."""

from functools import partial

import numpy as np

from analysis.curves import Noise
from analysis.envelope import envelope
from analysis.flops import FlopsPerToken
from analysis.interval import Interval
from analysis.isoflop import curve_scatter, isoflop, isoflop_curves
from analysis.noise import SeedNoise
from analysis.optima import surface_bias
from analysis.result import Allocation, Beside, LawResult
from analysis.rows import Rows
from analysis.targets import Target
from analysis.uncertainty import WIDE_A

WIDE = 10  # an interval of N* or D* that spans a larger factor is no allocation


def allocations(
    result: LawResult, train: Rows, flops: FlopsPerToken, level: float
) -> tuple[Allocation, ...]:
    """N*, D*, L* from the smallest measured compute to ten times the largest.

    Refused where a is not identified by the design, where an interval spans more than a factor of
    10, and beyond the measured compute where a's interval is open or wider than 0.2.
    """
    low, high = float(train.C.min()), float(train.C.max())
    budgets = [float(f"{c:.2g}") for c in (*np.geomspace(low, high, 4), 3 * high, 10 * high)]
    C = np.array(list(dict.fromkeys(budgets)))
    best = result.law.optimal(result.theta, C, flops)
    kinds = ("optimal-n", "optimal-d", "optimal-loss")
    problems = result.design.problems
    # A law whose N* is no power of C still has an optimum at every C.
    structural = problems.get("a") if result.law.scale_free else next(iter(problems.values()), None)
    if not result.law.scale_free and set(problems) == {"a"}:
        structural = None
    nothing = Interval(None, None)
    ends = [nothing] * (3 * len(C))
    if structural is None:
        targets = [Target(kind, kind, (float(c),)) for c in C for kind in kinds]
        ends = result.estimate.intervals(targets, flops, level)
    rows = []
    for i in range(len(C)):
        n, d, loss = ends[3 * i : 3 * i + 3]
        beyond = bool(C[i] > high * 1.01)
        note = structural
        if note is None and beyond and result.intervals["a"].width > WIDE_A:
            note = (
                "N* and D* beyond the measured compute are not identified by this design: the "
                f"interval of a is open or wider than {WIDE_A}; widen the range of sizes"
            )
        elif note is None and not (n.closed and d.closed and _factor(n) < WIDE > _factor(d)):
            note = (
                "N* and D* are not identified by this design where their interval is open or "
                f"spans more than a factor of {WIDE}; widen the range of sizes and horizons"
            )
        refused = note is not None
        rows.append(
            Allocation(
                flops=float(C[i]),
                N=None if refused else float(best.N[i]),
                D=None if refused else float(best.D[i]),
                L=None if structural else float(best.L[i]),
                N_interval=nothing if refused else n,
                D_interval=nothing if refused else d,
                L_interval=nothing if structural else loss,
                extrapolated=beyond,
                note=note,
            )
        )
    return tuple(rows)


def _factor(interval: Interval) -> float:
    return (interval.high or np.inf) / (interval.low or np.nan)


def beside(
    result: LawResult, train: Rows, noise: SeedNoise, flops: FlopsPerToken, level: float
) -> tuple[Beside, ...]:
    """Approach 1, and approach 2 by parabola and Akima, each with its bias under the law.

    Re-noised with the estimated noise of trunks and rows; where every row is a run of its own, with
    the spread between seeds, or without repeats with the scatter about the parabolas.
    """
    gls = result.estimate.gls
    if result.estimate.estimator == "gls-reml":
        spread = Noise(gls.row_sd, gls.trunk_sd, level=level)
    else:
        sigma = noise.sigma if noise.sigma > 0 else curve_scatter(isoflop_curves(train))
        spread = Noise(sigma, level=level) if sigma > 0 else None
    methods = [envelope, partial(isoflop, method="parabola"), partial(isoflop, method="akima")]
    found = []
    for method in methods:
        approach = method(train, noise=spread)
        bias = None
        if approach.a is not None and "a" not in result.design.problems:
            bias = surface_bias(
                method,
                train,
                lambda N, D: result.law.loss(result.theta, N, D),
                lambda C: result.law.optimal(result.theta, C, flops).N,
            )
        found.append(Beside(approach, bias))
    return tuple(found)
