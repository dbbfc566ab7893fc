"""The default prediction: the γ law and a smooth misfit, with a prior learned from public studies.

The prior is the median and the spread of γ fits to public studies of web text in nats/token
(docs/benchmarks.md); without it six parameters from a few rows extrapolate badly. It is off where
the caller knows better or the data contradict it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import stats

from analysis.gls import GlsFit, fit_gls
from analysis.interval import Interval
from analysis.laws import GAMMA
from analysis.profile import small_sample
from analysis.surface import PLACES, Prior, Q, Rule, Surface, inverse, minimum, prepare

# α, β, log E - log min L, log γ
PRIOR = Prior.of((0.30, 0.30, -0.40, -0.70), np.diag(np.square([0.15, 0.15, 0.25, 0.50])))
RULE = Rule()
CONFLICT = 0.01  # p-value of prior against data below which the prior is off
LOOSE = 0.5  # standard error of log γ without prior above which γ stays at 1


@dataclass(frozen=True)
class PopulationFit:
    """The default prediction of one study.

    surface: law and misfit as used; prior: whether it is on, `why`; conflict: p-value of prior
    against data, None where the caller turned it off; shift: of α, β, log E, log γ by the prior, in
    standard errors without it; plain: the same fit without prior, None where the prior is off.
    """

    surface: Surface
    prior: Prior | None
    why: str
    conflict: float | None
    shift: Mapping[str, float]
    plain: "PopulationFit | None"
    trunk: np.ndarray

    @property
    def theta(self) -> np.ndarray:
        """Values of the γ law, without the misfit beside it."""
        return self.surface.theta

    def predict(
        self, N: np.ndarray, D: np.ndarray, log_c: np.ndarray, level: float
    ) -> tuple[np.ndarray, list[Interval], list[Interval]]:
        """Loss at N, D of compute exp(log_c); its intervals for noise, and for noise and misfit.

        Noise: of the law, if it is the truth (t quantile of the random-trunk model). With misfit:
        of a run, normal quantile times a factor that was calibrated at 90 % on public studies,
        each left out in turn.
        """
        z, variance = self.surface.log_loss(N, D, log_c)
        rule = self.surface.ready.rule
        noise = self._noise(N, D, level)
        normal = float(stats.norm.ppf(0.5 + level / 2) / stats.norm.ppf(0.95))
        misfit = np.maximum(rule.factor * normal * np.sqrt(variance), noise)
        return np.exp(z), _ends(z, noise), _ends(z, misfit)

    @cached_property
    def _trunks(self) -> GlsFit:
        """The random-trunk model linearised at the law, with the prior's information added.

        Residuals beyond three robust sd count as three: least squares would follow an outlier.
        """
        ready, whole = self.surface.ready, self.surface.phi
        law, phi = ready.law, whole[: len(GAMMA.parameters)]
        z = ready.problem.law.forward(ready.problem.features, whole[None])[0][0]
        most = 3 * ready.delta / ready.rule.huber
        z = z - np.clip(z - law.z, -most, most)
        fixed = {
            n: float(v)
            for n, v, k in zip(GAMMA.parameters, self.theta, law.free, strict=True)
            if not k
        }
        X = tuple(np.exp(law.features + law.centre).T)
        gls = fit_gls(GAMMA, X, np.exp(z), self.trunk, phi[None], fixed)
        free = self.surface.free[: len(phi)]
        J = GAMMA.linearised(law.features, phi[None])[1][0][:, free]
        information = gls.trunks.moments(J, gls.rho2) / gls.row_sd**2
        if self.prior is not None:
            own = np.zeros((len(phi),) * 2)
            own[np.ix_(PLACES, PLACES)] = np.linalg.inv(np.array(self.prior.covariance))
            information += own[np.ix_(free, free)]
        return replace(gls, X=J, free=free, covariance=inverse(information))

    def _noise(self, N: np.ndarray, D: np.ndarray, level: float) -> np.ndarray:
        """Half width in log L."""
        gls = self._trunks
        x = np.log(np.stack([N, D], axis=-1)) - gls.problem.centre
        phi = self.surface.phi[None, : len(gls.free)]
        G = GAMMA.linearised(GAMMA.prepare(x), phi)[1][0][:, gls.free]
        df, factor = small_sample(gls, G)
        sd = factor * np.sqrt(np.einsum("np,pq,nq->n", G, gls.covariance, G))
        return stats.t.ppf(0.5 + level / 2, df) * sd


def _ends(z: np.ndarray, half: np.ndarray) -> list[Interval]:
    ends = zip(np.exp(z - half), np.exp(z + half), strict=True)
    return [Interval(float(low), float(high)) for low, high in ends]


def fit_population(
    X: Sequence[np.ndarray], C: np.ndarray, L: np.ndarray, *, trunk: np.ndarray | None = None,
    off: str = "", fixed: Mapping[str, float] | None = None, rule: Rule = RULE,
) -> PopulationFit:  # fmt: skip
    """The default prediction from X = (N, D), compute C, losses L and trunk labels.

    off: the caller's reason to leave the prior out (another unit than nats/token, a known entropy).
    ValueError for fewer than 8 rows.
    """
    fixed = dict(fixed or {})
    trunk = np.arange(len(L)) if trunk is None else trunk
    ready = prepare(X, C, L, trunk, rule, fixed)
    labels = trunk if len(ready.w) == len(L) else np.arange(len(ready.w))
    free, p = Surface.at(ready, ready.phi), None
    if not off:
        phi, distance = minimum(ready, PRIOR)
        p = float(stats.chi2.sf(distance, int(ready.law.free[PLACES].sum()) or 1))
        if p >= CONFLICT:
            plain = PopulationFit(free, None, "without prior", None, {}, None, labels)
            moved = (phi - free.phi)[PLACES]
            se = np.sqrt(np.maximum(free.shared * np.diag(free.covariance)[PLACES], 1e-12))
            shift = {
                name: float(moved[i] / se[i])
                for i, name in enumerate(Q)
                if free.free[PLACES[i]]
            }  # fmt: skip
            why = "population prior of web text in nats/token"
            surface = Surface.at(ready, phi, PRIOR)
            return PopulationFit(surface, PRIOR, why, p, shift, plain, labels)
        off = f"it conflicts with these data (p = {p:.2g})"
    k = GAMMA.index("gamma")
    if not free.free[k] or free.shared * free.covariance[k, k] > LOOSE**2:
        ready = prepare(X, C, L, trunk, rule, {"gamma": 1.0, **fixed})
        free = Surface.at(ready, ready.phi)
    return PopulationFit(free, None, f"population prior off: {off}", p, {}, None, labels)
