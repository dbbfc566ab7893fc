"""What runs, trained or planned, tell about a law: information under a stated noise and misfit.

Near the law theta, log L of row i of trunk j is J_i phi + misfit(ln N_i, ln D_i) + u_j + e_ij:
u ~ N(0, trunk²), e ~ N(0, row²), and misfit, by which the form itself is wrong, a Gaussian process
of standard deviation `misfit` and correlation exp(-d²/2·LENGTH²), d the distance in (ln N, ln D)
(Kennedy & O'Hagan 2001). So all is one linear model: columns of the law, then of the misfit.
"""

from dataclasses import dataclass, replace

import numpy as np

from analysis import discrepancy
from analysis.flops import FlopsPerToken
from analysis.gls import Trunks
from analysis.law import Law
from analysis.newton import Penalty, Problem
from analysis.population import PRIOR
from analysis.rows import Rows
from analysis.solve import Fit, fit_law, problem_of
from analysis.targets import Evaluator, Target

LENGTH = 2.0  # e-folds of N or D over which the misfit changes
# Standard deviations that say next to nothing; they keep a choice among few rows finite.
VAGUE = {"E": 2.0, "A": 3.0, "B": 3.0, "alpha": 0.5, "beta": 0.5, "gamma": 1.0, "P": 3.0}
ROUNDS = 2  # of the working point: its residuals weigh its prior
ROBUST = 0.01  # Huber delta of the working point: what misses by more is a mistake, not noise


@dataclass(frozen=True)
class Noise:
    """Standard deviations in log loss (0.01 = 1 %): of a trunk, of a row in it, of the misfit.

    Trunk and row by default as in careful sweeps on web text; the misfit as in published grids,
    whose residuals are 0.3 to 3 %, and where `analysis.replay` chose best with it.
    """

    trunk: float = 0.002
    row: float = 0.001
    misfit: float = 0.01

    @property
    def rho2(self) -> float:
        """Variance of a trunk in units of the row's."""
        return (self.trunk / self.row) ** 2

    @property
    def run(self) -> float:
        """Standard deviation of a run that is a trunk of its own."""
        return float(np.hypot(self.trunk, self.row))


def typical(N: np.ndarray, D: np.ndarray) -> np.ndarray:
    """Hoffmann's form with the values that published studies have in common, for runs N, D.

    alpha, beta and E over the smallest loss are the means of the population prior; both power laws
    are equal at the middle of the runs. The smallest loss is 1: log losses do not know the unit.
    Order of CHINCHILLA: E, A, B, alpha, beta.
    """
    alpha, beta, log_e, _ = PRIOR.mean
    E = float(np.exp(log_e))
    n, d = np.log(N), np.log(D)
    gain_n, gain_d = np.exp(-alpha * (n.max() - n.mean())), np.exp(-beta * (d.max() - d.mean()))
    middle = (1 - E) / (gain_n + gain_d)
    A, B = middle * np.exp(alpha * n.mean()), middle * np.exp(beta * d.mean())
    return np.array([E, A, B, alpha, beta])


def working_point(law: Law, rows: Rows, noise: Noise) -> Fit:
    """The law around which information is computed: Huber's fit with the population prior.

    The prior on alpha, beta, log E and log gamma keeps a few cheap rows from a law at its limits.
    Rows weigh by their residuals around a first fit, where these are larger than the noise.
    """
    sd = float(np.hypot(noise.run, noise.misfit))
    for _ in range(ROUNDS):
        fit = _with_prior(law, rows, sd)
        spare = max(len(rows) - len(law.parameters), 1)
        off = np.minimum(np.abs(fit.residuals), 2 * ROBUST)
        sd = max(noise.run, float(np.sqrt((off**2).sum() / spare)))
    return _with_prior(law, rows, sd)


def _with_prior(law: Law, rows: Rows, sd: float) -> Fit:
    """The fit where rows are off by `sd` (in log loss) and the prior has its own spread."""
    names = ("alpha", "beta", "E", "gamma")
    precision = np.zeros((len(law.parameters),) * 2)
    centre = np.zeros(len(law.parameters))
    spreads = np.sqrt(np.diag(np.array(PRIOR.covariance)))
    for name, mean, spread in zip(names, PRIOR.mean, spreads, strict=True):
        if name in law.parameters:
            k = law.index(name)
            precision[k, k] = sd**2 / spread**2
            centre[k] = mean + (np.log(rows.L.min()) if name == "E" else 0.0)
    penalty = Penalty(precision, centre)
    return fit_law(law, (rows.N, rows.D), rows.L, delta=ROBUST, penalty=penalty)


@dataclass(frozen=True)
class Basis:
    """The law linearised at `phi` (centred coordinates, p of them) and the misfit as columns."""

    problem: Problem
    phi: np.ndarray
    misfit: discrepancy.Basis

    @classmethod
    def of(cls, law: Law, theta: np.ndarray, N: np.ndarray, D: np.ndarray) -> "Basis":
        """For use at the points N, D: rows, candidates and targets alike."""
        problem = problem_of(law, (N, D), law.loss(theta, N, D), {})[0]
        x = np.log(np.column_stack([N, D])) - problem.centre
        phi = problem.coordinates(np.asarray(theta, float))
        # A misfit of this length does not tell points closer than a tenth of it apart.
        coarse = np.round(x / (0.1 * LENGTH)) * (0.1 * LENGTH)
        return cls(problem, phi, discrepancy.Basis.of(coarse, LENGTH))

    @property
    def law(self) -> Law:
        return self.problem.law

    @property
    def p(self) -> int:
        """Columns of the law."""
        return len(self.phi)

    def rows(self, N: np.ndarray, D: np.ndarray) -> np.ndarray:
        """Columns at N, D, shape (rows, p + misfit columns)."""
        x = np.log(np.column_stack([N, D])) - self.problem.centre
        J = self.law.linearised(self.law.prepare(x), self.phi[None])[1][0]
        return np.hstack([J, self.misfit(x)])

    def target(self, target: Target, flops: FlopsPerToken) -> np.ndarray:
        """Columns of a target; a loss carries the misfit at its point, a parameter none."""
        if target.kind == "loss":
            return self.rows(*(np.array([v]) for v in target.at))[0]
        if target.kind == "optimal-loss":  # envelope theorem: N* and D* need not move
            best = self.law.optimal(self.problem.values(self.phi), np.array(target.at), flops)
            return self.rows(best.N, best.D)[0]
        gradient = Evaluator(self.problem, flops, [target]).at(self.phi)[1][0]
        return np.concatenate([gradient, np.zeros(len(self.misfit.points))])

    def precision(self) -> np.ndarray:
        """Vague prior precision of the law's columns."""
        return np.array([VAGUE.get(name, 1.0) ** -2 for name in self.law.parameters])


# Grids of the variance components, and how far (in e-folds) the prior lets them go.
RHO2 = np.array([0.0, 0.25, 1.0, 4.0, 16.0, 64.0])
RATIO = np.geomspace(0.03, 100.0, 22)  # misfit over row
ROW = np.geomspace(2e-4, 0.03, 31)
WORST = 0.05  # misfit above which no information about the law is left to plan with
CLIP = 4.0  # robust standard deviations beyond which a residual is a mistake
MISFIT_SPREAD, ROW_SPREAD, TRUNK_SPREAD = 1.0, 1.0, 1.5


def components(
    basis: Basis, rows: Rows, residuals: np.ndarray, assumed: Noise, misfit: float | None = None
) -> Noise:
    """Trunk, row and misfit standard deviations that explain the residuals of `rows` best.

    Restricted likelihood (Patterson & Thompson 1971) times log-normal priors around `assumed`, at
    its maximum on a grid: few rows leave what is assumed, many decide. `misfit` holds that one.
    `residuals`: log L_pred - log L.
    """
    n, p = len(rows), basis.p
    held = assumed if misfit is None else replace(assumed, misfit=misfit)
    if n <= p:
        return held
    limit = CLIP * discrepancy.MAD * float(np.median(np.abs(residuals)))
    residuals = np.clip(residuals, -limit, limit)
    columns = np.column_stack([basis.rows(rows.N, rows.D), residuals])
    trunks = Trunks.of(rows.trunk)
    several = len(trunks.count) < n
    row = assumed.row if several else assumed.run  # without trunks the two are one
    pairs = [(ratio, ROW) for ratio in RATIO]
    if misfit is not None:
        pairs = [(misfit / sd, np.array([sd])) for sd in ROW]
    best, found = -np.inf, held
    for rho2 in RHO2 if several else RHO2[:1]:
        M = trunks.moments(columns, rho2)
        prior = np.log1p(trunks.count * rho2).sum()
        if several:
            prior += (np.log(max(rho2, RHO2[1]) / assumed.rho2) / (2 * TRUNK_SPREAD)) ** 2
        for ratio, sd in pairs:
            away = (np.log(sd / row) / ROW_SPREAD) ** 2 + prior
            if misfit is None:
                away = away + (np.log(ratio * sd / assumed.misfit) / MISFIT_SPREAD) ** 2
                away = np.where(ratio * sd <= WORST, away, np.inf)
            value = _restricted(M, p, ratio, n, sd) - 0.5 * away
            k = int(np.argmax(value))
            if value[k] > best:
                best = float(value[k])
                found = Noise(float(sd[k] * rho2**0.5), float(sd[k]), float(ratio * sd[k]))
    return found


def _restricted(M: np.ndarray, p: int, ratio: float, n: int, row: np.ndarray) -> np.ndarray:
    """Restricted log-likelihood at row standard deviations `row`, from moments of [J F r].

    The misfit's columns F are integrated out (Woodbury); `ratio` is misfit over row.
    """
    inner = np.arange(p, len(M) - 1)
    outer = np.r_[np.arange(p), len(M) - 1]
    G = np.eye(len(inner)) + ratio**2 * M[np.ix_(inner, inner)]
    cross = M[np.ix_(inner, outer)]
    left = M[np.ix_(outer, outer)] - ratio**2 * cross.T @ np.linalg.solve(G, cross)
    H, b = left[:p, :p] + 1e-10 * np.diag(np.diag(left)[:p]), left[:p, p]
    rss = max(left[p, p] - b @ np.linalg.solve(H, b), 1e-300)
    log_det = np.linalg.slogdet(G)[1] + np.linalg.slogdet(H)[1]
    return -0.5 * (log_det + (n - p) * np.log(row**2) + rss / row**2)
