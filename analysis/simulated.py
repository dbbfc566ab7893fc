"""The choice of runs on a simulated grid whose law, noise and misfit are known.

54 runs (9 sizes x 6 ratios D/N), independent or as 9 trunks; 10 % of their FLOPs spent by the
greedy choice, by cheapest-first, at random, and all of them. The error of the loss at the optimum
of 10 times the largest compute: by information, and by refitting simulated losses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.choose import at_random, cheapest_first, greedy
from analysis.flops import FlopsPerToken
from analysis.gls import Trunks
from analysis.information import Basis, Noise
from analysis.laws import CHINCHILLA
from analysis.market import Kind, Market, State
from analysis.newton import Problem
from analysis.solve import problem_of
from analysis.targets import Target

BUDGET = 0.1
DRAWS = 20  # random choices that are averaged
COPIES = 500  # seeds of one cell or trunk that can be bought
CASES = ((0.0, 0.0), (0.0, 0.01), (0.01, 0.0), (0.01, 0.01))  # simulated, believed misfit

# Besiroglu et al. 2024 (arXiv 2404.10102): Hoffmann's law refitted; E, A, B, alpha, beta.
TRUTH = np.array([1.8172, 482.01, 2085.43, 0.3478, 0.3658])
SIZES = np.geomspace(1e5, 10**6.5, 9)
RATIOS = np.array([5.0, 10, 20, 40, 80, 160])
N = np.repeat(SIZES, len(RATIOS))
D = np.outer(SIZES, RATIOS).ravel()
REACH = 10 * float((6 * N * D).max())  # FLOPs of the target
FLOPS = FlopsPerToken()
BEST = CHINCHILLA.optimal(TRUTH, np.array([REACH]), FLOPS)


@dataclass(frozen=True)
class Simulation:
    """A grid on sale, everything of it bought, and the noise that its losses really have."""

    market: Market
    full: State
    truth: Noise

    @property
    def budget(self) -> float:
        return BUDGET * self.full.spent


def simulation(truth: Noise, believed: Noise, cooldown: float) -> Simulation:
    """The 54-run grid; `believed` is the noise that the choice assumes.

    Cooldown 1: 54 runs on their own; below 1: 9 trunks with 6 horizons each.
    """
    basis = Basis.of(CHINCHILLA, TRUTH, np.append(N, BEST.N), np.append(D, BEST.D))
    target = basis.target(Target("loss", "optimal-loss", (REACH,)), FLOPS)
    cells = [(i,) for i in range(len(N))]
    if cooldown < 1:
        cells = [tuple(range(i, i + len(RATIOS))) for i in range(0, len(N), len(RATIOS))]
    kinds = tuple(Kind(6 * float(N[c[0]]), c, COPIES) for c in cells)
    market = Market(basis, believed, basis.rows(N, D), D, kinds, target[None], cooldown)
    full = State.of(market)
    for k, kind in enumerate(kinds):
        full.buy(k, -1, kind.cells)
    return Simulation(market, full, truth)


def simulated(
    refits: int = 300, seed: int = 0, cases: Sequence[tuple[float, float]] = CASES
) -> list[dict]:
    """Rows of the simulated benchmark; `sd` by information, `rms` by refits, both in log loss.

    `misfit` is simulated, `believed` the one that the choice allows for.
    """
    runs = Noise(trunk=0.0, row=0.002, misfit=0.0)
    wsd = Noise(trunk=0.002, row=0.001, misfit=0.0)
    found = []
    for name, noise, cooldown in (("54 runs", runs, 1.0), ("9 trunks", wsd, 0.2)):
        for misfit, believed in cases:
            truth = replace(noise, misfit=misfit)
            case = simulation(truth, replace(noise, misfit=believed), cooldown)
            for choice, states in _choices(case).items():
                found.append(
                    {"suite": "design", "grid": name, "choice": choice, "misfit": misfit}
                    | {"believed": believed}
                    | judged(case, states, refits, seed)
                )
    return found


def _choices(case: Simulation) -> dict[str, list[State]]:
    market, budget = case.market, case.budget
    return {
        "full grid": [case.full],
        "greedy": [greedy(State.of(market), budget)],
        "cheapest first": [cheapest_first(State.of(market), budget)],
        "random": [at_random(State.of(market), budget, i) for i in range(DRAWS)],
    }


def judged(case: Simulation, states: Sequence[State], refits: int, seed: int = 0) -> dict:
    """Mean error of some choices under the simulated truth; `refits` are shared among them."""
    target, p = case.market.targets[0], case.market.basis.p
    each = max(refits // len(states), 1)
    rows = []
    for i, state in enumerate(states):
        cells, trunk = state.rows_bought()
        M = Trunks.of(trunk).moments(case.market.table[cells][:, :p], case.truth.rho2)
        sd = case.truth.row * np.sqrt(target[:p] @ np.linalg.pinv(M, hermitian=True) @ target[:p])
        rms = _refitted(case, cells, trunk, each, np.random.default_rng([seed, i]))
        rows.append((float(sd), rms, len(cells), state.spent / case.full.spent))
    return dict(zip(("sd", "rms", "runs", "flops"), np.mean(rows, axis=0).tolist(), strict=True))


def _refitted(
    case: Simulation, cells: np.ndarray, trunk: np.ndarray, refits: int, rng: np.random.Generator
) -> float:
    """Root mean square error of the target's log loss over simulated and refitted studies."""
    truth, p = case.truth, case.market.basis.p
    table, target = case.market.table[cells], case.market.targets[0]
    misfit = truth.misfit * rng.normal(size=(refits, table.shape[1] - p))
    codes = np.unique(trunk, return_inverse=True)[1]
    z = np.log(CHINCHILLA.loss(TRUTH, N[cells], D[cells])) + misfit @ table[:, p:].T
    z = z + truth.trunk * rng.normal(size=(refits, codes.max() + 1))[:, codes]
    z = z + truth.row * rng.normal(size=z.shape)
    problem = problem_of(CHINCHILLA, (N[cells], D[cells]), np.exp(z[0]), {})[0]
    start = problem.coordinates(TRUTH)
    phi = refitted(problem, Trunks.of(trunk), truth.rho2, z, start)
    predicted = np.log(CHINCHILLA.loss(problem.values(phi), BEST.N, BEST.D))[:, 0]
    return float(np.sqrt(np.mean((predicted - np.log(BEST.L) - misfit @ target[p:]) ** 2)))


def refitted(
    problem: Problem, trunks: Trunks, rho2: float, z: np.ndarray, start: np.ndarray, steps: int = 25
) -> np.ndarray:
    """Generalised least squares of many simulated studies z (R, rows) at once, from one start.

    Levenberg-Marquardt inside the problem's limits; returns phi (R, p).
    """
    phi = np.repeat(start[None], len(z), axis=0)
    damping, k = np.full(len(z), 1e-6), trunks.shrink(rho2)

    def system(at: np.ndarray) -> np.ndarray:
        value, J = problem.law.linearised(problem.features, at)
        columns = np.concatenate([J, (value - z)[..., None]], axis=2)
        S = trunks.sums(columns)
        return np.swapaxes(columns, 1, 2) @ columns - np.swapaxes(S * k[:, None], 1, 2) @ S

    M = system(phi)
    for _ in range(steps):
        H, g = M[:, :-1, :-1], M[:, :-1, -1]
        ridge = damping[:, None] * np.einsum("rpp->rp", H) + 1e-300
        step = np.linalg.solve(H + ridge[:, :, None] * np.eye(len(start)), g[..., None])[..., 0]
        trial = np.clip(phi - step, problem.low, problem.high)
        new = system(trial)
        better = new[:, -1, -1] <= M[:, -1, -1]
        phi = np.where(better[:, None], trial, phi)
        M = np.where(better[:, None, None], new, M)
        damping = np.where(better, np.maximum(damping * 0.1, 1e-12), damping * 10)
    return phi
