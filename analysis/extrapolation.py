"""How well is held-out compute predicted? Public studies, nothing learned on the one that is scored.

Protocol: a study's rows with C = 6ND up to max C / k are fitted, the others predicted; the error is
mean |L_pred/L - 1|. Two columns for the default prediction. Shipped: constants that were chosen on
these very studies. Nested: prior, form, tau, row weights and interval factor learned on the other
laboratories only; where they are chosen among candidates, each other laboratory is scored with a
prior learned without it too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from analysis import public
from analysis.laws import CHINCHILLA, GAMMA, TIED, TWO_TERM
from analysis.population import CONFLICT, RULE, fit_population
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
FORMS = {law.name: law for law in (CHINCHILLA, TIED, TWO_TERM, GAMMA)}
CANDIDATES = tuple(
    replace(RULE, kappa=kappa, tau=tau, power=power)
    for kappa, tau, power in product((0.0, 0.5, 1.0, 2.0), (1.0, 3.0, 10.0), (0.15, 0.3, 0.45))
)
# The spread of a handful of studies is itself uncertain, and their correlations more so.
INFLATION = 1.5
DIAGONAL = 0.5
ROUNDING = 1e-6  # C = 6ND of one isoFLOP curve differs by rounding
Progress = Callable[[str], None]


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


@dataclass(frozen=True, eq=False)
class Score:
    """One cell: mean errors (0.01 = 1 %) by form, shipped and nested; held-out rows covered.

    choice: what the other laboratories chose; factor: of the interval, learned on them; width:
    median full width of the nested interval in log L.
    """

    name: str
    group: str
    times: int
    core: bool
    train: int
    held_out: int
    forms: Mapping[str, float]
    shipped: float
    nested: float
    choice: str
    factor: float
    covered_shipped: int
    covered_nested: int
    width: float

    def to_json(self) -> dict[str, Any]:
        return {"suite": "extrapolation", **asdict(self)}


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
        """The candidate with the least mean error over the other laboratories' cells."""
        others = [cell for cell in self.cells if cell.group != group]

        def mean(rule: Rule) -> float:
            return float(
                np.mean([self.error(c, rule, frozenset((group, c.group))) for c in others])
            )

        return min(CANDIDATES, key=mean)

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


def form_errors(cell: Cell) -> dict[str, float]:
    """Errors of the plain forms, Huber on log losses with equal weights."""
    found = {}
    for name, law in FORMS.items():
        fit = fit_law(law, (cell.train.N, cell.train.D), cell.train.L)
        L = law.loss(fit.theta, cell.test.N, cell.test.D)
        found[name] = float(np.mean(np.abs(L / cell.test.L - 1)))
    return found


def shipped(cell: Cell) -> tuple[float, int]:
    """Error and covered rows of the default prediction as it ships."""
    rows, test = cell.train, cell.test
    fit = fit_population((rows.N, rows.D), rows.C, rows.L, trunk=rows.trunk)
    L, _, misfit = fit.predict(test.N, test.D, np.log(test.C), LEVEL)
    low, high = np.array([[i.low, i.high] for i in misfit], float).T
    inside = (low <= test.L) & (high >= test.L)
    return float(np.mean(np.abs(L / test.L - 1))), int(inside.sum())


def extrapolate(folder: Path, progress: Progress = lambda text: None) -> list[Score]:
    """Scores of every cell; DataError where a file is not as its source has it."""
    learner = Learner(cells(folder))
    table = []
    for group in dict.fromkeys(cell.group for cell in learner.cells):
        rule = learner.choose(group)
        factor = learner.factor(group, rule)
        choice = f"κ {rule.kappa:g}, τ {rule.tau:g}, power {rule.power:g}"
        progress(f"{group}: the others choose {choice}, factor {factor:.2f}")
        for cell in learner.cells:
            if cell.group != group:
                continue
            alone = frozenset((group,))
            e, sd = learner.score(cell, rule, alone)
            error, covered = shipped(cell)
            table.append(
                Score(
                    cell.name, group, cell.times, cell.core, len(cell.train), len(e),
                    form_errors(cell), error, learner.error(cell, rule, alone), choice, factor,
                    covered, int((np.abs(e) <= factor * sd).sum()),
                    float(np.median(2 * factor * sd)),
                )
            )  # fmt: skip
    return table


def summary(table: Sequence[Score]) -> dict[str, Any]:
    """Mean and worst errors over core and wide cells, and coverage of all held-out rows."""
    found: dict[str, Any] = {"suite": "extrapolation"}
    columns = {name: [s.forms[name] for s in table] for name in FORMS}
    columns |= {"shipped": [s.shipped for s in table], "nested": [s.nested for s in table]}
    core = np.array([s.core for s in table])
    for name, values in columns.items():
        for where, mask in (("core", core), ("wide", np.ones(len(table), bool))):
            found[f"{name} {where} mean"] = float(np.mean(np.array(values)[mask]))
            found[f"{name} {where} worst"] = float(np.max(np.array(values)[mask]))
    rows = sum(s.held_out for s in table)
    for name in ("shipped", "nested"):
        covered = {s: getattr(s, f"covered_{name}") for s in table}
        found[f"{name} coverage"] = sum(covered.values()) / rows
        for group in dict.fromkeys(s.group for s in table):
            own = [s for s in table if s.group == group]
            share = sum(covered[s] for s in own) / sum(s.held_out for s in own)
            found[f"{name} coverage {group}"] = share
    return found


def lines(table: Sequence[Score]) -> list[str]:
    """The table as text, errors in per cent."""
    names = [*FORMS, "shipped", "nested"]
    out = [
        f"{'study, max C / k':<24}{'fitted':>7}{'held':>5}"
        + "".join(f"{name:>11}" for name in names)
        + f"{'covered':>9}{'width':>7}"
    ]
    for s in table:
        values = [*s.forms.values(), s.shipped, s.nested]
        out.append(
            f"{s.name + ' / ' + str(s.times):<24}{s.train:>7}{s.held_out:>5}"
            + "".join(f"{100 * v:>11.2f}" for v in values)
            + f"{s.covered_nested / s.held_out:>9.2f}{100 * s.width:>7.1f}"
        )
    total = summary(table)
    for where in ("core", "wide"):
        for what in ("mean", "worst"):
            values = [total[f"{name} {where} {what}"] for name in names]
            out.append(f"{where + ' ' + what:<36}" + "".join(f"{100 * v:>11.2f}" for v in values))
    groups = dict.fromkeys(s.group for s in table)
    for name in ("shipped", "nested"):
        by = ", ".join(f"{g} {total[f'{name} coverage {g}']:.2f}" for g in groups)
        out.append(
            f"{name}: the {LEVEL:.0%} interval with misfit holds {total[f'{name} coverage']:.1%} "
            f"of the held-out rows ({by})"
        )
    out.append(
        "shipped: constants have seen these studies; nested: nothing learned on the one scored"
    )
    return out
