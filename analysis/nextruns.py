"""Which runs to buy next for one prediction, from a finished sweep or any table of losses.

The law is the γ law, as in the default prediction (analysis.population).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.choose import at_random, cheapest_first, greedy
from analysis.flops import FlopsPerToken
from analysis.identify import diagnose
from analysis.information import Basis, Noise, components, working_point
from analysis.law import Optimum
from analysis.laws import GAMMA
from analysis.load import Study
from analysis.market import Kind, Market, Purchase, State
from analysis.offers import SAME, Size, on_sale
from analysis.planned import cooldown
from analysis.read import DataError
from analysis.shapes import Ladder, ladder
from analysis.targets import Target
from analysis.words import amount, compute, counted, number

SEEDS = 8  # new trunks of one size at most
DRAWS = 20  # random choices that are averaged
STEPS_SHOWN = 40


@dataclass(frozen=True)
class Advice:
    """The runs to buy and what they are worth; `before` and after are (noise, with misfit)."""

    study: Study
    target: Target
    noise: Noise
    theta: np.ndarray
    optimum: Optimum
    ladder: Ladder | str
    sizes: tuple[Size, ...]
    state: State
    existing: tuple[str, ...]  # label of each trunk that stood open before
    before: tuple[float, float]
    rivals: Mapping[str, tuple[float, float]]
    notes: tuple[str, ...]


def advise(
    study: Study, budget: float, target: Target, C: float, noise: Noise | None,
    misfit: float | None,
) -> Advice:  # fmt: skip
    """Spend `budget` FLOPs on the error of `target`, greedily; DataError where it buys nothing."""
    rows = study.train
    flops = FlopsPerToken()
    if study.is_sweep and study.flops_known:
        flops = FlopsPerToken.from_rows(rows.N, rows.D, rows.C, "flops_exact")
    share, notes = cooldown(study.used[~study.holdout], rows.trunk)
    shapes = ladder(study.table) if study.is_sweep else "a foreign table names no shapes"
    sizes = on_sale(study, shapes, flops, budget)
    fit = working_point(GAMMA, rows, noise or Noise())
    best = GAMMA.optimal(fit.theta, np.array([C]), flops)
    cells = [(s.N, d) for s in sizes for d in s.horizons]
    N, D = (np.array(v) for v in zip(*cells, strict=True))
    basis = Basis.of(
        GAMMA, fit.theta, np.concatenate([rows.N, N, best.N]),
        np.concatenate([rows.D, D, best.D]),
    )  # fmt: skip
    if noise is None:
        noise = components(basis, rows, fit.residuals, Noise(), misfit)
    noise = noise if misfit is None else replace(noise, misfit=misfit)
    kinds, start = [], 0
    for s in sizes:
        indices = tuple(range(start, start + len(s.horizons)))
        kinds.append(Kind(s.per_token, indices, SEEDS))
        start += len(s.horizons)
    goal = basis.target(target, flops)[None]
    market = Market(basis, noise, basis.rows(N, D), D, tuple(kinds), goal, share)
    standing = _standing(study, sizes, kinds, D) if study.is_sweep and 0 < share < 1 else []
    known = (basis.rows(rows.N, rows.D), rows.trunk)

    def fresh() -> State:
        return State.of(market, known, [(kind, held) for kind, held, _ in standing])

    state = fresh()
    before, least = state.sd(), min(o[3] for o in state.options())
    if least > budget:
        raise DataError(
            f"--flops {budget:g} buys no run: the cheapest that could be trained costs "
            f"{least:.2g} FLOP; give --flops {least:.2g} or more"
        )
    drawn = [at_random(fresh(), budget, i).sd() for i in range(DRAWS)]
    rivals = {
        "cheapest first": cheapest_first(fresh(), budget).sd(),
        f"random (mean of {DRAWS})": tuple(np.sqrt(np.mean(np.square(drawn), axis=0)).tolist()),
    }
    existing = tuple(label for _, _, label in standing)
    state = greedy(state, budget)
    return Advice(
        study, target, noise, fit.theta, best, shapes, sizes, state, existing, before, rivals, notes
    )


def _standing(
    study: Study, sizes: tuple[Size, ...], kinds: list[Kind], D: np.ndarray
) -> list[tuple[int, list[int], str]]:
    """Trunks that further horizons can join: (kind, cells they have, label)."""
    rows, found = study.train, []
    labels = study.used["trunk"].to_numpy()[~study.holdout]
    for trunk in np.unique(rows.trunk):
        mine = rows.trunk == trunk
        near = [abs(np.log(s.N / rows.N[mine][0])) for s in sizes]
        kind = int(np.argmin(near))
        if near[kind] < SAME:
            cells = np.array(kinds[kind].cells)
            apart = np.abs(np.log(D[cells][:, None] / rows.D[mine][None]))
            held = cells[(apart < 0.01).any(1)].tolist()
            found.append((kind, held, str(labels[mine][0])))
    return found


def describe(advice: Advice, budget: float, C: float) -> list[str]:
    """The choice as text: what is assumed, the steps, what they are worth, the target's shape."""
    rows, noise, state = advice.study.train, advice.noise, advice.state
    values = GAMMA.named(advice.theta)
    shown = ", ".join(f"{k} = {number(v)}" for k, v in values.items())
    what = "a" if advice.target.kind == "a" else f"log L at the optimum of {compute(C)} FLOP"
    lines = [
        f"{advice.study.name}: {counted(len(rows), 'row')} on "
        f"{counted(len(np.unique(rows.trunk)), 'trunk')}; next runs for {what}",
        f"γ law at hand: {shown} (with the population prior)",
        f"noise in log loss: trunk {100 * noise.trunk:.2g} %, row {100 * noise.row:.2g} %; "
        + (f"misfit of the form: {100 * noise.misfit:.2g} %" if noise.misfit else "no misfit"),
        *advice.notes,
    ]
    blind = diagnose(rows, GAMMA, {}).problems
    lines += [f"warning: {', '.join(k for k in blind)} {text}" for text in set(blind.values())]
    lines += ["", f"{'':>4}{'N':>9}{'':>10}{'horizons D':<32}{'seeds':>6}{'FLOP':>10}"]
    lines[-1] += f"{'noise':>10}{'+ misfit':>10}"
    lines.append(f"{'':>4}{'before':<57}{'':>10}{_pair(advice, advice.before)}")
    steps = _steps(state.bought)
    for i, (first, last, seeds, cost) in enumerate(steps[:STEPS_SHOWN], 1):
        size = advice.sizes[first.kind]
        label = "new size" if size.new else "new seed"
        if not first.new:
            label = "longer" if first.trunk < len(advice.existing) else "same run"
        D = ", ".join(amount(state.market.D[c]) for c in first.cells)
        after = (last.noise_sd, last.total_sd)
        lines.append(
            f"{i:>3} {amount(size.N):>9} {label:<9}{D:<32}{seeds:>6}{compute(cost):>10}"
            f"{_pair(advice, after)}"
        )
    if len(steps) > STEPS_SHOWN:
        lines.append(f"    ... and {len(steps) - STEPS_SHOWN} further steps")
    lines.append(f"{'':>4}{f'after {compute(state.spent)} of {compute(budget)} FLOP':<67}")
    lines[-1] += _pair(advice, state.sd())
    for name, sd in advice.rivals.items():
        lines.append(f"{'':>4}{f'the same budget, {name}':<67}{_pair(advice, sd)}")
    if not state.bought:
        lines.append(
            "no run that this budget can pay lowers the error: what the form may be wrong by "
            "outweighs it; raise --flops, or trust the form with --misfit 0"
        )
    return [*lines, "", *_optimum(advice, C)]


def _pair(advice: Advice, sd: tuple[float, float]) -> str:
    if advice.target.kind == "a":
        return "".join(f"{number(v):>10}" for v in sd)
    return "".join(f"{f'{100 * v:.2f} %':>10}" for v in sd)


def _steps(bought: Sequence[Purchase]) -> list[tuple[Purchase, Purchase, int, float]]:
    """Equal purchases in a row as one step: first, last, how many, their cost."""
    steps: list[tuple[Purchase, Purchase, int, float]] = []
    for one in bought:
        if steps:
            first, _, count, cost = steps[-1]
            if (first.kind, first.cells, first.new) == (one.kind, one.cells, one.new):
                steps[-1] = (first, one, count + 1, cost + one.cost)
                continue
        steps.append((one, one, 1, one.cost))
    return steps


def _optimum(advice: Advice, C: float) -> list[str]:
    best, shapes = advice.optimum, advice.ladder
    N, D, L = (float(v[0]) for v in (best.N, best.D, best.L))
    lines = [f"optimum of {compute(C)} FLOP: N* {amount(N)}, D* {amount(D)}, loss {number(L)}"]
    if isinstance(shapes, Ladder):
        width = shapes.nearest(N)
        n, d = shapes.N(width), C / shapes.per_token(width)
        there = float(GAMMA.loss(advice.theta, np.array([n]), np.array([d]))[0])
        told = ", ".join(f"{k} = {v}" for k, v in shapes.shape(width).items() if k != "seq_len")
        lines.append(
            f"nearest buildable: {told}: N {amount(n)}, D {amount(d)}, loss {number(there)}"
        )
    else:
        lines.append(f"not rounded to a buildable shape: {shapes}")
    return lines
