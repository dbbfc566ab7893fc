"""Which estimator carries a law, and its intervals.

`gls-reml` where trunks have several rows: generalised least squares of the random-trunk model with
`reml-profile-t` intervals, which cover 85-94 % at nominal 90 % on simulated designs with as few as
six trunks. `huber` elsewhere: the robust minimum with `trunk-bootstrap` intervals. Parameters and
intervals of one estimate come from one estimator. Rows are never the units: they cover 48-72 %.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.bootstrap import Draws
from analysis.flops import FlopsPerToken
from analysis.gls import GlsFit
from analysis.identify import Design
from analysis.interval import Interval
from analysis.law import Law
from analysis.profile import Ends, cr2, degrees, profile_t
from analysis.solve import Fit
from analysis.targets import Evaluator, Target

ESTIMATORS = ("gls-reml", "huber")
METHODS = {"gls-reml": "reml-profile-t", "huber": "trunk-bootstrap"}
WIDE_A = 0.2  # an interval of a wider than this is no allocation rule
FEW = 3.0  # degrees of freedom below which the noise is as good as unknown
LEAST_TRUNKS = 4  # with fewer neither resampling nor clusters say anything
MAX_CLUSTERS = 5000  # CR2 needs an eigendecomposition per trunk
PIECE = 4_000_000  # rows times targets profiled at once
FIXED = "fixed by the user"


@dataclass(frozen=True)
class Estimate:
    """Values of a law by one estimator, and where its intervals come from."""

    law: Law
    estimator: str
    theta: np.ndarray
    residuals: np.ndarray
    fixed: Mapping[str, float]
    design: Design
    gls: GlsFit
    draws: Draws | None

    @property
    def method(self) -> str:
        return METHODS[self.estimator]

    @property
    def rms(self) -> float:
        """Root mean square of the log residuals (0.01 = 1 %)."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    def intervals(
        self, targets: Sequence[Target], flops: FlopsPerToken, level: float, method: str = ""
    ) -> list[Interval]:
        """Interval of every target by this estimate's own method, or by another that applies."""
        method = method or self.method
        trunks = len(self.gls.trunks.count)
        if trunks < LEAST_TRUNKS and method != "reml-profile-t":
            note = f"no bounds: {trunks} trunk{'s' * (trunks > 1)}, {LEAST_TRUNKS} are needed"
            return [Interval(None, None, note)] * len(targets)
        if method == "trunk-bootstrap":
            if self.draws is None:
                note = f"no bounds: {len(self.residuals)} rows, resampled for the headline law only"
                return [Interval(None, None, note)] * len(targets)
            return self.draws.intervals(targets, flops, level)
        return self._linear(targets, flops, level, method)

    def df(self, targets: Sequence[Target], flops: FlopsPerToken) -> list[float]:
        """Degrees of freedom behind the interval of every target."""
        return degrees(self.gls, Evaluator(self.gls.problem, flops, targets)).tolist()

    def _linear(
        self, targets: Sequence[Target], flops: FlopsPerToken, level: float, method: str
    ) -> list[Interval]:
        function = {"reml-profile-t": profile_t, "cr2": cr2}[method]
        step = max(PIECE // (2 * len(self.residuals)), 1)
        found = []
        for i in range(0, len(targets), step):
            part = targets[i : i + step]
            evaluator = Evaluator(self.gls.problem, flops, part)
            ends = function(self.gls, evaluator, level)
            found += [self._closed(evaluator, t, e) for t, e in zip(part, ends, strict=True)]
        return found

    def _closed(self, evaluator: Evaluator, target: Target, ends: Ends) -> Interval:
        """The ends in the target's natural unit, open where a limit was reached."""
        held = self._held(target)
        if held:
            return Interval(None, None, f"no bounds: {held} at its limit")
        low, high = evaluator.natural(target, ends.low), evaluator.natural(target, ends.high)
        note = None
        if low is None and high is None:
            note = "no bounds: the profile reaches a limit on both sides"
        elif low is None or high is None:
            note = f"no {'lower' if low is None else 'upper'} bound: the profile reaches a limit"
        elif ends.df < FEW:
            note = (
                f"trunk noise estimated from lack of fit (df = {ends.df:.1f}), not from repeats: "
                "add a size or 2 seeds at the cheapest sizes"
            )
        return Interval(low, high, note)

    def _held(self, target: Target) -> str:
        """A parameter that the target depends on and that the estimate holds at a limit."""
        law = self.law
        away = [
            name
            for i, name in enumerate(law.parameters)
            if not self.gls.free[i] and name not in self.fixed
        ]
        if target.kind == "parameter":
            return target.name if target.name in away else ""
        if target.kind in ("a", "optimal-n", "optimal-d"):
            return next((name for name in away if name != "E"), "")
        return ""


def parameter_targets(law: Law) -> list[Target]:
    """A target per parameter, and a."""
    return [*(Target(name, "parameter") for name in law.parameters), Target("a", "a")]


def parameter_intervals(
    estimate: Estimate, flops: FlopsPerToken, level: float, method: str = ""
) -> dict[str, Interval]:
    """Interval of each parameter and of a; fixed ones are points, unidentified ones open."""
    found: dict[str, Interval] = {}
    wanted = []
    for target in parameter_targets(estimate.law):
        name = target.name
        if name in estimate.fixed:
            found[name] = Interval(estimate.fixed[name], estimate.fixed[name], FIXED)
        elif name in estimate.design.problems:
            found[name] = Interval(None, None, estimate.design.problems[name])
        else:
            wanted.append(target)
            found[name] = Interval(None, None)
    for target, interval in zip(
        wanted, estimate.intervals(wanted, flops, level, method) if wanted else [], strict=True
    ):
        found[target.name] = interval
    return found


def disagreement(fit: Fit, estimate: Estimate) -> dict[str, float]:
    """Parameters on which the Huber and the GLS estimate differ, in GLS standard errors.

    Without those that the design cannot identify: there any two estimates differ.
    """
    gls = estimate.gls
    se = np.zeros(len(gls.phi))
    se[gls.free] = np.sqrt(np.maximum(np.diag(gls.covariance), 0.0))
    apart = np.abs(gls.problem.coordinates(fit.theta) - gls.phi)
    names = [n for n in gls.law.parameters if n not in estimate.design.problems]
    pairs = {n: (apart[gls.law.index(n)], se[gls.law.index(n)]) for n in names}
    return {n: float(a / s) for n, (a, s) in pairs.items() if s > 0}
