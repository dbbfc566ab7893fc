"""What public studies teach about a study that is none of them: prior, rule, interval factor.

Protocol: rows with C = 6ND up to max C / k are fitted, the others predicted. For the study that is
scored everything is learned on other laboratories (studies of one are no independent evidence);
where something is chosen among candidates there, each laboratory is scored with a prior learned
without it too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from analysis import public
from analysis.laws import GAMMA
from analysis.population import CONFLICT, RULE
from analysis.rows import Rows
from analysis.solve import fit_law
from analysis.surface import PLACES, Prior, Ready, Rule, Surface, minimum, prepare

CORE = ("epoch", "llama3", "misfitting_best")
WIDE = (
    *CORE, "gadre_c4", "gadre_rpj", "gadre_rw", "gemstones_cool_end", "gemstones_hot",
    "porian_rw_tuned", "porian_owt2_tuned", "porian_rw_cosine", "datablations_once",
)  # fmt: skip
TIMES = (10, 30)
LEVEL = 0.9
# kappa 0: the γ law alone
LEVELS = {"kappa": (0.0, 0.5, 1.0, 2.0), "tau": (1.0, 3.0, 10.0), "power": (0.15, 0.3, 0.45)}
CANDIDATES = tuple(
    replace(RULE, **dict(zip(LEVELS, values, strict=True))) for values in product(*LEVELS.values())
)
# The spread of a handful of studies is itself uncertain, and their correlations more so.
INFLATION = 1.5
DIAGONAL = 0.5
ROUNDING = 1e-6  # C = 6ND of one isoFLOP curve differs by rounding


@dataclass(frozen=True)
class Cell:
    """One study cut at max C / times."""

    name: str
    group: str
    times: int
    train: Rows
    test: Rows

    @property
    def core(self) -> bool:
        return self.name in CORE


def cells(folder: Path) -> list[Cell]:
    """Both cuts of every study, C = 6ND."""
    found = []
    for name in WIDE:
        study = public.read(name, folder)
        rows = replace(study.rows, C=6 * study.rows.N * study.rows.D)
        for times in TIMES:
            inside = rows.C.max() / times * (1 + ROUNDING) >= rows.C
            found.append(Cell(name, study.group, times, rows.take(inside), rows.take(~inside)))
    return found


@dataclass
class Learner:
    """Fits of all cells, each made once; `without`: the laboratories that nothing may know."""

    cells: Sequence[Cell]
    ready: dict[tuple[Any, ...], Ready] = field(default_factory=dict)
    points: dict[tuple[Any, ...], np.ndarray] = field(default_factory=dict)
    found: dict[tuple[Any, ...], np.ndarray] = field(default_factory=dict)

    @property
    def groups(self) -> list[str]:
        return sorted({cell.group for cell in self.cells})

    def prior(self, power: float, without: frozenset[str]) -> Prior:
        """Mean and spread over laboratories of γ fits to all rows, with the rule's row weights."""
        others = [g for g in self.groups if g not in without]
        q = np.array([np.mean([self._q(c, power) for c in self._of(g)], axis=0) for g in others])
        spread = np.cov(q.T)
        own = np.diag(np.diag(spread))
        return Prior.of(q.mean(0), INFLATION * ((1 - DIAGONAL) * spread + DIAGONAL * own))

    def _of(self, group: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.group == group]

    def _q(self, cell: Cell, power: float) -> np.ndarray:
        """q of the whole study, log E relative to the smallest loss of the cell's training rows."""
        key = (cell.name, power)
        if key not in self.points:
            rows = [np.append(a, b) for a, b in ((cell.train.N, cell.test.N),
                    (cell.train.D, cell.test.D), (cell.train.L, cell.test.L))]  # fmt: skip
            C = rows[0] * rows[1]
            weights = (C / C.max()) ** power
            fit = fit_law(GAMMA, rows[:2], rows[2], weights=weights / weights.mean())
            self.points[key] = GAMMA.log_coordinates(fit.theta)[PLACES]
        q = self.points[key].copy()
        q[PLACES.index(GAMMA.index("E"))] -= np.log(cell.train.L.min())
        return q

    def surface(self, cell: Cell, rule: Rule, without: frozenset[str]) -> Surface:
        """The default prediction of a cell by a rule, its prior learned without `without`."""
        key = (cell.name, cell.times, rule.kappa, rule.power)
        rows = cell.train
        if key not in self.ready:
            self.ready[key] = prepare((rows.N, rows.D), rows.C, rows.L, rows.trunk, rule, {})
        ready = replace(self.ready[key], rule=rule)
        prior = self.prior(rule.power, without)
        phi, distance = minimum(ready, prior)
        if stats.chi2.sf(distance, len(PLACES)) < CONFLICT:
            return Surface.at(ready, ready.phi)
        return Surface.at(ready, phi, prior)

    def score(self, cell: Cell, rule: Rule, without: frozenset[str]) -> np.ndarray:
        """log L_pred - log L of the held-out rows, and the sd of a run there, shape (2, rows)."""
        key = (cell.name, cell.times, rule, without)
        if key not in self.found:
            test = cell.test
            surface = self.surface(cell, rule, without)
            z, variance = surface.log_loss(test.N, test.D, np.log(test.C))
            self.found[key] = np.stack([z - np.log(test.L), np.sqrt(variance)])
        return self.found[key]

    def error(self, cell: Cell, rule: Rule, without: frozenset[str]) -> float:
        return float(np.mean(np.abs(np.expm1(self.score(cell, rule, without)[0]))))

    def choose(self, group: str) -> Rule:
        """Each constant at its level of least mean error over the other laboratories' cells.

        Mean over the levels of the other constants too: the best of all candidates on so few
        studies is mostly luck.
        """
        others = [cell for cell in self.cells if cell.group != group]

        def mean(rule: Rule) -> float:
            return float(
                np.mean([self.error(c, rule, frozenset((group, c.group))) for c in others])
            )

        error = {rule: mean(rule) for rule in CANDIDATES}
        best = {
            name: min(
                levels, key=lambda v: sum(e for r, e in error.items() if getattr(r, name) == v)
            )
            for name, levels in LEVELS.items()
        }
        return replace(RULE, **best)

    def factor(self, group: str, rule: Rule) -> float:
        """What the sd must be multiplied by to cover 90 % of the other laboratories' rows.

        Every laboratory has the same weight, so has each of its cells.
        """
        ratios, weights = [], []
        for other in self.groups:
            if other == group:
                continue
            own = self._of(other)
            for cell in own:
                e, sd = self.score(cell, rule, frozenset((group, other)))
                ratios.append(np.abs(e) / sd)
                weights.append(np.full(len(e), 1 / (len(e) * len(own))))
        ratio, weight = np.concatenate(ratios), np.concatenate(weights)
        order = np.argsort(ratio)
        share = np.cumsum(weight[order]) / weight.sum()
        return float(ratio[order][np.searchsorted(share, LEVEL)])
