"""How well is held-out compute predicted? Public studies, nothing learned on the one scored.

The error is mean |L_pred/L - 1| over the rows beyond max C / k. Two columns for the default
prediction. Shipped: constants that were chosen on these very studies. Nested: prior, misfit, tau,
row weights and interval factor learned on other laboratories only (analysis.nested).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.compare import mean_error
from analysis.laws import CHINCHILLA, GAMMA, TIED, TWO_TERM
from analysis.nested import LEVEL, Cell, Learner, cells
from analysis.population import fit_population
from analysis.solve import fit_law

FORMS = {law.name: law for law in (CHINCHILLA, TIED, TWO_TERM, GAMMA)}
Progress = Callable[[str], None]


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


def form_errors(cell: Cell) -> dict[str, float]:
    """Errors of the plain forms, Huber on log losses with equal weights."""
    found = {}
    for name, law in FORMS.items():
        fit = fit_law(law, (cell.train.N, cell.train.D), cell.train.L)
        found[name] = mean_error(law.loss(fit.theta, cell.test.N, cell.test.D), cell.test.L)
    return found


def shipped(cell: Cell) -> tuple[float, int]:
    """Error and covered rows of the default prediction as it ships."""
    rows, test = cell.train, cell.test
    fit = fit_population((rows.N, rows.D), rows.C, rows.L, trunk=rows.trunk)
    L, _, misfit = fit.predict(test.N, test.D, np.log(test.C), LEVEL)
    low, high = np.array([[i.low, i.high] for i in misfit], float).T
    inside = (low <= test.L) & (high >= test.L)
    return mean_error(L, test.L), int(inside.sum())


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
