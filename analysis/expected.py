"""What a planned grid can reach: standard errors before compute is spent, and what more buys."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from analysis.flops import FlopsPerToken
from analysis.gls import GlsFit, Trunks
from analysis.identify import diagnose
from analysis.information import Basis, Noise, typical
from analysis.law import Law
from analysis.laws import CHINCHILLA, law_named
from analysis.planned import Planned, repeated, stretched, wider
from analysis.profile import small_sample
from analysis.read import DataError
from analysis.rows import Rows
from analysis.solve import problem_of
from analysis.targets import Evaluator, Target
from analysis.uncertainty import FEW
from analysis.words import amount, compute, counted, number

SINGULAR = 1e13  # condition of the scaled information above which a combination is not identified
REACH = 10.0  # times the largest planned compute, where the loss is predicted
LAW_SOURCE = (
    "assumed law: Chinchilla's form with what published studies have in common: α = {alpha}, "
    "β = {beta}, E {E} of the smallest loss, both power laws equal at the middle of the grid "
    "(means of analysis.population.PRIOR); give --assume fits.json for your own"
)


@dataclass(frozen=True)
class Expectation:
    """What a grid will tell of one quantity: standard error, degrees of freedom, interval width.

    `se` and `width` (full, of the t interval) in the unit of the estimate: of log E and log L for E
    and losses. Infinite where it is not identified.
    """

    name: str
    se: float
    df: float
    width: float


@dataclass(frozen=True)
class Assumed:
    """The law and noise that expectations rest on, and where they come from."""

    law: Law
    theta: np.ndarray
    noise: Noise
    source: str


def assumed(
    plan: Planned, fits: Path | None, noise: Noise | None = None, misfit: float | None = None
) -> Assumed:
    """The law of a fits.json (its selected one, with its variance components), else a typical one.

    `noise` and `misfit` override. DataError for a file that holds no such fit.
    """
    found = _assumed(plan, fits, noise)
    if misfit is None:
        return found
    return replace(found, noise=replace(found.noise, misfit=misfit))


def _assumed(plan: Planned, fits: Path | None, noise: Noise | None) -> Assumed:
    if fits is None:
        theta = typical(plan.rows.N, plan.rows.D)
        values = CHINCHILLA.named(theta)
        text = LAW_SOURCE.format(**{k: f"{values[k]:.2g}" for k in ("alpha", "beta", "E")})
        return Assumed(CHINCHILLA, theta, noise or Noise(), text)
    try:
        content = json.loads(fits.read_text(encoding="utf-8"))
        entry = next(f for f in content["fits"] if f["law"] == content["selected"])
        law = law_named(entry["law"])
        theta = np.array([float(entry["parameters"][name]) for name in law.parameters])
        found = {k: entry["variance"][f"{k}_sd"] for k in ("trunk", "row")}
    except OSError as error:
        raise DataError(f"--assume {fits}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise DataError(
            f"--assume {fits}: holds no selected fit ({error!r}); write it with "
            "`python -m analysis.fit SOURCE --json FILE`"
        ) from error
    known = {k: float(v) for k, v in found.items() if v}
    text = f"assumed law and noise: {law.name}, the selected fit of {fits}"
    return Assumed(law, theta, noise or replace(Noise(), **known), text)


def expectations(
    law: Law, theta: np.ndarray, rows: Rows, noise: Noise, flops: FlopsPerToken,
    targets: Sequence[Target], level: float,
) -> list[Expectation]:  # fmt: skip
    """Standard errors that generalised least squares will have on `rows`, if `theta` is the law.

    The inverse information of the random-trunk model with the given variances; widths at `level`
    with degrees of freedom and small-sample factor of `analysis.profile`. Losses are not used.
    """
    problem = problem_of(law, (rows.N, rows.D), law.loss(theta, rows.N, rows.D), {})[0]
    phi, trunks = problem.coordinates(theta), Trunks.of(rows.trunk)
    J = law.linearised(problem.features, phi[None])[1][0]
    # Without a trunk of several rows the two variances are one.
    several = len(trunks.count) < len(rows)
    rho2, row = (noise.rho2, noise.row) if several else (0.0, noise.run)
    M = trunks.moments(J, rho2)
    scale = np.sqrt(np.maximum(np.diag(M), 1e-300))
    gradient = Evaluator(problem, flops, targets).at(phi)[1]
    n, p = J.shape
    if n <= p or np.linalg.cond(M / np.outer(scale, scale)) > SINGULAR:
        return [Expectation(t.name, np.inf, 0.0, np.inf) for t in targets]
    fit = GlsFit(
        problem=problem, trunks=trunks, phi=phi, theta=theta, free=np.ones(p, bool), rho2=rho2,
        row_sd=row, rss=(n - p) * row**2, X=J, residuals=np.zeros(n),
        covariance=row**2 * np.linalg.inv(M), decrement=0.0,
    )  # fmt: skip
    se = np.sqrt(np.einsum("tp,pq,tq->t", gradient, fit.covariance, gradient))
    df, factor = small_sample(fit, gradient)
    width = 2 * stats.t.ppf(0.5 + level / 2, df) * factor * se
    return [
        Expectation(t.name, float(s), float(f), float(w))
        for t, s, f, w in zip(targets, se, df, width, strict=True)
    ]


def targets_of(law: Law, reach: float) -> list[Target]:
    """alpha, beta, log E, a, where the law has them, and the loss at the optimum of `reach`."""
    names = [name for name in ("alpha", "beta", "E") if name in law.parameters]
    found = [Target(name, "parameter") for name in names]
    return [*found, Target("a", "a"), Target("loss", "optimal-loss", (reach,))]


def misfit_error(law: Law, theta: np.ndarray, rows: Rows, noise: Noise, at: Target, flops) -> float:
    """Root mean square error of a loss by noise and misfit, of generalised least squares."""
    best = law.optimal(theta, np.array(at.at), flops)
    basis = Basis.of(law, theta, np.append(rows.N, best.N), np.append(rows.D, best.D))
    columns, goal = basis.rows(rows.N, rows.D), basis.target(at, flops)
    M, p = Trunks.of(rows.trunk).moments(columns, noise.rho2), basis.p
    u = np.linalg.pinv(M[:p, :p], hermitian=True) @ goal[:p]
    off = M[p:, :p] @ u - goal[p:]
    return float(np.sqrt(noise.row**2 * (goal[:p] @ u) + noise.misfit**2 * (off @ off)))


def report(plan: Planned, assume: Assumed, level: float) -> list[str]:
    """The judgement of a plan, as lines of text."""
    rows, flops, noise = plan.rows, plan.flops, assume.noise
    reach = REACH * float(rows.C.max())
    targets = targets_of(assume.law, reach)
    design = diagnose(rows, assume.law, {})
    lost = {*design.problems, *(["loss"] if "a" in design.problems else [])}

    def judged(grid: Rows) -> list[Expectation]:
        return expectations(assume.law, assume.theta, grid, noise, flops, targets, level)

    now, cost = judged(rows), plan.cost(rows)
    lines = [*_head(plan, design, cost), assume.source]
    lines.append(
        f"assumed noise in log loss: trunk {100 * noise.trunk:.3g} %, row {100 * noise.row:.3g} %"
    )
    lines += ["", *(f"warning: {text}" for text in _warnings(design, now))]
    names = {"loss": f"log L at {compute(reach)} FLOP ({REACH:g}x the largest run)", "E": "log E"}
    lines.append(f"{'expected of this plan':<44}{'SE':>10}{'df':>8}{f'{level:.0%} width':>12}")
    for e in now:
        shown = "not identified" if e.name in lost else f"{number(e.se)}"
        rest = "" if e.name in lost else f"{e.df:8.1f}{number(e.width):>12}"
        lines.append(f"{names.get(e.name, e.name):<44}{shown:>10}{rest}")
    if "loss" not in lost:
        error = misfit_error(assume.law, assume.theta, rows, noise, targets[-1], flops)
        lines.append(
            f"where the form itself is {100 * noise.misfit:.3g} % wrong, that loss is off by "
            f"{100 * error:.2g} % (root mean square, noise included)"
        )

    def row(grid: Rows, found: Sequence[Expectation]) -> str:
        if "a" in diagnose(grid, assume.law, {}).problems:
            return "   not identified"
        error = misfit_error(assume.law, assume.theta, grid, noise, targets[-1], flops)
        return "".join(f"{number(e.width):>10}" for e in found) + f"{100 * error:>9.2g} %"

    short = {"loss": "log L", "E": "log E"}
    heads = "".join(f"{short.get(t.name, t.name):>10}" for t in targets)
    lines += ["", f"{'interval widths of':<44}{'FLOP':>9}{heads}{'rms L':>11}"]
    lines.append(f"{'the plan':<44}{'':>9}{row(rows, now)}")
    for label, grid in _larger(plan).items():
        more = plan.cost(grid) / cost - 1
        lines.append(f"{'+ ' + label:<44}{f'+{100 * more:.3g} %':>9}{row(grid, judged(grid))}")
    return lines


def _head(plan: Planned, design, cost: float) -> list[str]:
    rows = plan.rows
    ratio = f"D/N {number(design.ratio[0])} to {number(design.ratio[1])}"
    text = (
        f"{plan.name}: {counted(len(rows), 'run')} to fit on {counted(design.trunks, 'trunk')}: "
        f"{counted(design.sizes, 'size')} ({amount(rows.N.min())} to {amount(rows.N.max())}, "
        f"{design.decades_n:.2f} decades), {counted(design.horizons, 'horizon')}, {ratio}, "
        f"{compute(cost)} FLOP"
    )
    left = [f"{count} {reason}" for reason, count in plan.left_out.items()]
    return [text, *([f"not counted: {', '.join(left)}"] if left else []), *plan.notes]


def _warnings(design, now: Sequence[Expectation]) -> list[str]:
    """What the plan cannot identify, a sentence for each reason."""
    found: dict[str, list[str]] = {}
    for name, reason in design.problems.items():
        found.setdefault(reason, []).append(name)
    texts = [f"{', '.join(names)} {reason}" for reason, names in found.items()]
    few = [e for e in now if e.df < FEW and e.name not in design.problems and np.isfinite(e.se)]
    if few and not texts:
        least = min(few, key=lambda e: e.df)
        texts.append(
            f"{', '.join(e.name for e in few)}: trunk noise will be estimated from lack of fit "
            f"(df = {least.df:.1f} for {least.name}), not from repeats; give the cheapest sizes "
            "3 seeds, or add sizes"
        )
    return texts


def _larger(plan: Planned) -> dict[str, Rows]:
    """Larger grids that are worth a look, by name; those that add nothing left out."""
    above, below = wider(plan, (1, 2)), wider(plan, (-1, -2))
    grids = {
        "3 seeds at the 3 cheapest sizes": repeated(plan, 3, 3),
        "3 seeds everywhere": repeated(plan, 3, len(plan.rows)),
        f"two sizes above (N to {amount(above.N.max())})": above,
        f"two sizes below (N from {amount(below.N.min())})": below,
        "every trunk twice as long": stretched(plan, (2.0,)),
        "every run also at 1/4, 1/2, 2 times its D": stretched(plan, (0.25, 0.5, 2.0)),
    }
    if not diagnose(plan.rows, CHINCHILLA, {}).problems:
        grids.popitem()  # the remedy of a plan that varies D with N alone
    return {label: grid for label, grid in grids.items() if len(grid) > len(plan.rows)}
