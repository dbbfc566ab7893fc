"""The frozen result of an analysis."""

from dataclasses import dataclass

import numpy as np

from analysis.compare import Criteria, Holdout, Origin
from analysis.flops import FlopsPerToken
from analysis.identify import Design
from analysis.interval import Interval
from analysis.law import Law
from analysis.load import Study
from analysis.noise import LackOfFit, SeedNoise
from analysis.optima import Approach, SurfaceBias
from analysis.sensitivity import Leverage, Refit
from analysis.solve import Fit
from analysis.uncertainty import Estimate


@dataclass(frozen=True)
class LawResult:
    """One law: the estimate that is reported, the certified Huber fit, and whether to believe it.

    other_intervals: method -> intervals by it; df: degrees of freedom per target; apart: by how
    many standard errors the two estimators differ on each parameter.
    """

    fit: Fit
    estimate: Estimate
    intervals: dict[str, Interval]
    other_intervals: dict[str, dict[str, Interval]]
    df: dict[str, float]
    apart: dict[str, float]
    criteria: Criteria
    holdout_error: float | None
    lack_of_fit: LackOfFit | None
    trust: str
    trust_reasons: tuple[str, ...]

    @property
    def law(self) -> Law:
        return self.fit.law

    @property
    def name(self) -> str:
        return self.fit.law.name

    @property
    def theta(self) -> np.ndarray:
        """Values of the reported estimator."""
        return self.estimate.theta

    @property
    def parameters(self) -> dict[str, float]:
        return self.law.named(self.theta)

    @property
    def design(self) -> Design:
        return self.estimate.design

    @property
    def a(self) -> float:
        return float(self.law.allocation_exponent(self.theta))


@dataclass(frozen=True)
class Allocation:
    """Compute-optimal N*, D*, L* at one compute budget; None where `note` refuses a number.

    L_interval covers noise under the given law; `Forecast` has the interval with misfit.
    """

    flops: float
    N: float | None
    D: float | None
    L: float | None
    N_interval: Interval
    D_interval: Interval
    L_interval: Interval
    extrapolated: bool
    note: str | None


@dataclass(frozen=True)
class Forecast:
    """The default prediction at the compute-optimal N, D of one budget.

    noise: interval under the form; misfit: interval that also covers the error of every form;
    plain: loss by the same form without prior and weights; selected: by the headline law at its
    own optimum, None where the design does not identify it.
    """

    flops: float
    N: float
    D: float
    L: float
    noise: Interval
    misfit: Interval
    plain: float
    selected: float | None
    extrapolated: bool


@dataclass(frozen=True)
class Default:
    """The γ law with the population prior and mild weight on large compute.

    why: that the prior is on, or why it is off; shift: how far the prior moved alpha, beta, log E,
    log gamma, in standard errors of the fit without it; conflict: p-value of prior against data.
    """

    parameters: dict[str, float]
    prior: bool
    why: str
    shift: dict[str, float]
    conflict: float | None
    forecasts: tuple[Forecast, ...]
    holdout_error: float | None


@dataclass(frozen=True)
class Beside:
    """Approaches 1 and 2, and the bias that each would have if the fitted law were the truth."""

    approach: Approach
    bias: SurfaceBias | None


@dataclass(frozen=True)
class Analysis:
    """Everything the reports print, computed once."""

    study: Study
    level: float
    noise: SeedNoise
    results: tuple[LawResult, ...]
    selected: str
    selected_by: str
    flops: FlopsPerToken
    optimal: tuple[Allocation, ...]
    default: Default | None
    holdout: Holdout | None
    holdout_intervals: tuple[Interval, ...]
    rolling: tuple[Origin, ...]
    approaches: tuple[Beside, ...]
    sensitivity: tuple[Refit, ...]
    leverage: Leverage | None

    @property
    def chosen(self) -> LawResult:
        """The law that the headline speaks of."""
        return next(r for r in self.results if r.name == self.selected)
