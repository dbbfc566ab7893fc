"""The choice of runs replayed on published grids, where nothing is known beforehand.

Rows above a tenth of the largest compute are held out; the rest is the pool. A tenth of the pool's
FLOPs is spent by the greedy choice, which knows only the losses that it has bought, by
cheapest-first, and at random; each choice and the whole pool are fitted and predict the held-out
rows. Beside it the simulated grid of `analysis.simulated`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from analysis import public
from analysis.choose import at_random, cheapest_first, greedy
from analysis.compare import mean_error
from analysis.information import Basis, Noise, components, typical, working_point
from analysis.law import Law
from analysis.laws import CHINCHILLA, GAMMA
from analysis.market import Kind, Market, State
from analysis.population import fit_population
from analysis.rows import Rows
from analysis.solve import fit_law

BUDGET = 0.1
PILOT = 0.1  # share of the budget that is spent cheapest-first before anything is known
LEAST = 8  # runs of the pilot, and of a choice that is fitted, at least
HELD_OUT = 10.0  # rows above the largest compute by this factor are held out
DRAWS = 20  # random choices that are averaged
# Grids -> cooldown share: checkpoints, annealed branches of 10 %, independent cosine runs.
GRIDS: Mapping[str, float] = {
    "gemstones_hot": 0.0,
    "gemstones_cool_end": 0.1,
    "misfitting_best": 1.0,
    "porian_rw_tuned": 0.0,
    "porian_owt2_tuned": 0.0,
    "porian_rw_cosine": 1.0,
}


def form(law: Law, rows: Rows) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The law by Huber, without prior, as a function of N, D."""
    fit = fit_law(law, (rows.N, rows.D), rows.L)
    return lambda N, D: law.loss(fit.theta, N, D)


def default(rows: Rows) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The default prediction (analysis.population), as a function of N, D."""
    C = 6 * rows.N * rows.D
    surface = fit_population((rows.N, rows.D), C, rows.L, trunk=rows.trunk).surface
    return lambda N, D: np.exp(surface.log_loss(N, D, np.log(6 * N * D))[0])


FITS = {
    "chinchilla": partial(form, CHINCHILLA),
    "gamma": partial(form, GAMMA),
    "default": default,
}


@dataclass(frozen=True)
class Pool:
    """A finished grid, its rows unknown until bought: every trunk once, its rows as cells."""

    rows: Rows
    kinds: tuple[Kind, ...]
    cooldown: float

    @classmethod
    def of(cls, rows: Rows, cooldown: float) -> "Pool":
        order = np.lexsort((rows.D, rows.trunk))
        trunk = rows.trunk[order]
        groups = np.split(order, np.flatnonzero(np.diff(trunk)) + 1)
        kinds = [Kind(6 * float(rows.N[g[0]]), tuple(g.tolist()), 1) for g in groups]
        return cls(rows, tuple(kinds), cooldown)

    def market(self, basis: Basis, noise: Noise, targets: np.ndarray) -> Market:
        """The pool on sale."""
        table = basis.rows(self.rows.N, self.rows.D)
        return Market(basis, noise, table, self.rows.D, self.kinds, targets, self.cooldown)

    def blind(self) -> State:
        """Nothing bought and no law known: for choices that ask for none."""
        basis = Basis.of(CHINCHILLA, typical(self.rows.N, self.rows.D), self.rows.N, self.rows.D)
        return State.of(self.market(basis, Noise(), basis.rows(self.rows.N[:1], self.rows.D[:1])))

    @property
    def cost(self) -> float:
        """FLOPs of the whole pool."""
        market = self.blind().market
        return sum(market.cost(k, kind.cells) for k, kind in enumerate(self.kinds))

    def pilot(self, budget: float) -> State:
        """The cheapest runs, for the share PILOT of the budget, but LEAST of them."""
        state = cheapest_first(self.blind(), PILOT * budget)
        share = PILOT
        while len(state.rows_bought()[0]) < LEAST and share < 1:
            share = min(2 * share, 1.0)
            state = cheapest_first(self.blind(), share * budget)
        return state

    def greedy(self, test: Rows, budget: float) -> np.ndarray:
        """Rows of the greedy choice: a cheap pilot, then the most informative for `test`."""
        pilot = self.pilot(budget)
        cells, trunk = pilot.rows_bought()
        bought = self.rows.take(cells)
        fit = working_point(GAMMA, bought, Noise())
        N, D = np.append(self.rows.N, test.N), np.append(self.rows.D, test.D)
        basis = Basis.of(GAMMA, fit.theta, N, D)
        noise = components(basis, bought, fit.residuals, Noise())
        market = self.market(basis, noise, basis.rows(test.N, test.D))
        started = [(p.kind, p.trunk) for p in pilot.bought if p.new]
        held = [(kind, cells[trunk == t].tolist()) for kind, t in started]
        taken = {kind for kind, _ in started}
        kinds = [replace(k, copies=0) if i in taken else k for i, k in enumerate(self.kinds)]
        market = replace(market, kinds=tuple(kinds))
        state = State.of(market, (market.table[cells], self.rows.trunk[cells]), held)
        greedy(state, budget - pilot.spent)
        return np.concatenate([cells, state.rows_bought()[0]])


def replayed(
    folder: Path, draws: int = DRAWS, grids: Sequence[str] = tuple(GRIDS), share: float = BUDGET
) -> list[dict]:
    """Rows of the replay: error (mean |L_pred/L - 1|) on the held-out rows of public grids.

    `share` of the pool's FLOPs is spent; `error` is the geometric mean over `draws` choices.
    """
    found = []
    for name in grids:
        rows = public.read(name, folder).rows
        C = 6 * rows.N * rows.D
        far = C.max() / C < HELD_OUT
        test = rows.take(far)
        pool = Pool.of(rows.take(~far), GRIDS[name])
        budget = share * pool.cost
        picks = {
            "full grid": [np.arange(len(pool.rows))],
            "greedy": [pool.greedy(test, budget)],
            "cheapest first": [cheapest_first(pool.blind(), budget).rows_bought()[0]],
            "random": [at_random(pool.blind(), budget, i).rows_bought()[0] for i in range(draws)],
        }
        for choice, chosen in picks.items():
            for fit in FITS:
                fitted = [c for c in chosen if len(c) >= LEAST]  # fewer rows carry no γ law
                laws = [FITS[fit](pool.rows.take(c)) for c in fitted]
                errors = [mean_error(law(test.N, test.D), test.L) for law in laws]
                found.append(
                    {"suite": "design", "grid": name, "choice": choice, "fit": fit, "share": share}
                    | {"error": float(np.exp(np.mean(np.log(errors)))), "worst": max(errors)}
                    | {"draws": len(chosen), "too_few_rows": len(chosen) - len(fitted)}
                    | {"runs": float(np.mean([len(c) for c in chosen])), "held_out": len(test)}
                )
    return found


def lines(rows: Sequence[dict]) -> list[str]:
    """Tables of `simulated` and `replayed` rows as text."""
    found = []
    here = [r for r in rows if "believed" in r]
    if here:
        found += [
            "sd of log L at 10x the largest compute, simulated grid (information; refits)",
            f"{'grid':<12}{'true misfit':>12}{'allowed for':>12}{'choice':>16}{'runs':>7}"
            f"{'FLOP':>7}{'by information':>16}{'by refits':>11}",
        ]
    found += [
        f"{r['grid']:<12}{100 * r['misfit']:>10.2g} %{100 * r['believed']:>10.2g} %"
        f"{r['choice']:>16}{r['runs']:>7.0f}{r['flops']:>7.2f}"
        f"{100 * r['sd']:>14.3f} %{100 * r['rms']:>9.2f} %"
        for r in here
    ]
    real = [r for r in rows if "fit" in r]
    if real:
        choices = list(dict.fromkeys(r["choice"] for r in real))
        part = f"{100 * real[0]['share']:g} % of the FLOPs"
        found += ["", f"error on held-out rows (C > C_max/10) of published grids, {part}"]
        found.append(f"{'grid':<22}{'fit':<14}" + "".join(f"{c:>16}" for c in choices))
    cells = {(r["grid"], r["fit"]): {} for r in real}
    for r in real:
        cells[r["grid"], r["fit"]][r["choice"]] = r["error"]
    for (grid, fit), errors in cells.items():
        shown = "".join(f"{100 * errors[c]:>14.2f} %" for c in errors)
        found.append(f"{grid:<22}{fit:<14}{shown}")
    for fit in dict.fromkeys(fit for _, fit in cells):
        own = [e for (_, f), e in cells.items() if f == fit]
        ratio = [np.exp(np.mean([np.log(e[c] / e["full grid"]) for e in own])) for c in own[0]]
        shown = "".join(f"{r:>16.2f}" for r in ratio)
        found.append(f"{'times the full grid':<22}{fit:<14}{shown}")
    return found
