"""Trunk bootstrap: the law refitted under exponential weights drawn per trunk.

Makes no assumption about the noise but that trunks are exchangeable; covers 83-97 % at nominal 90 %
on simulated designs, because a resample can lose most of a size (docs/benchmarks.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.flops import FlopsPerToken
from analysis.interval import Interval, percentile
from analysis.law import Law
from analysis.refit import Refits, refit
from analysis.rows import Rows
from analysis.solve import Fit
from analysis.targets import Target

RESAMPLES = 2000
WORK = 3_000_000  # rows times resamples: beyond it fewer resamples, but never under LEAST
LEAST = 100


@dataclass(frozen=True)
class Draws:
    """Refits under resampled trunks: values (resamples, p) and where they stand at a limit."""

    law: Law
    refits: Refits

    @property
    def theta(self) -> np.ndarray:
        return self.refits.theta

    def limits(self) -> dict[str, tuple[float, float]]:
        """Share of resamples at the low and the high limit of each parameter.

        Where every term of an exponent is dead the exponent has no meaning, nor has a coefficient
        whose exponent is at a limit: they then count at both limits.
        """
        law = self.law
        low = dict(zip(law.parameters, self.refits.at_low.mean(0), strict=True))
        high = dict(zip(law.parameters, self.refits.at_high.mean(0), strict=True))
        found = {name: (float(low[name]), float(high[name])) for name in law.parameters}
        for exponent in law.exponents:
            with_it = [c for c, e in law.pairs if e == exponent]
            dead = min((float(low[c]) for c in with_it), default=0.0)
            found[exponent] = (found[exponent][0] + dead, found[exponent][1] + dead)
        for coefficient, exponent in law.pairs:
            stuck = float(low[exponent] + high[exponent])
            below, above = found[coefficient]
            found[coefficient] = (below + stuck, above + stuck)
        return found

    def intervals(
        self, targets: Sequence[Target], flops: FlopsPerToken, level: float
    ) -> list[Interval]:
        """Percentile interval of every target; open where refits stand at a limit too often."""
        law, limits = self.law, self.limits()
        stuck = max((max(limits[name]) for name in law.exponents if law.scale_free), default=0.0)
        found = []
        for target in targets:
            ends, what = (0.0, 0.0), " of alpha or beta"
            if target.kind == "parameter":
                values, ends = self.theta[:, law.index(target.name)], limits[target.name]
                what = ""
            elif target.kind == "a":
                values = np.asarray(law.allocation_exponent(self.theta))
                alpha, beta = limits["alpha"], limits["beta" if "beta" in limits else "alpha"]
                # a falls with alpha and rises with beta.
                ends = max(alpha[1], beta[0]), max(alpha[0], beta[1])
            elif target.kind == "loss":
                values = law.loss(self.theta, *(np.array([v]) for v in target.at))[:, 0]
            else:
                best = law.optimal(self.theta, np.array(target.at), flops)
                kinds = {"optimal-n": best.N, "optimal-d": best.D, "optimal-loss": best.L}
                values = kinds[target.kind][:, 0]
                ends = (0.0, 0.0) if target.kind == "optimal-loss" else (stuck, stuck)
            found.append(percentile(values, level, *ends, what=what))
        return found


def bootstrap(fit: Fit, rows: Rows, resamples: int, seed: int = 0) -> Draws:
    """Refit under exponential weights drawn per trunk (Rubin 1981, The Bayesian Bootstrap).

    Rows of one trunk share a weight: their noise is shared too, so they are one observation.
    """
    resamples = min(resamples, max(WORK // len(rows), LEAST))
    weights = trunk_weights(rows.trunk, resamples, seed)
    X = rows.variables(fit.law.variables)
    return Draws(fit.law, refit(fit, X, rows.L, weights))


def trunk_weights(trunk: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Weights (resamples, rows), mean 1 over trunks in every resample."""
    labels, codes = np.unique(trunk, return_inverse=True)
    w = np.random.default_rng(seed).exponential(size=(resamples, len(labels)))
    return (w / w.mean(1, keepdims=True))[:, codes]
