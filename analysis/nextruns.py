"""Which runs to buy next for one prediction, from a finished sweep or any table of losses.

The law is the γ law, as in the default prediction (analysis.population).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from analysis.checks import MIN_STEPS
from analysis.choose import Kind, Market, State, at_random, cheapest_first, greedy
from analysis.flops import FlopsPerToken
from analysis.information import Basis, Noise, components, working_point
from analysis.law import Optimum
from analysis.laws import GAMMA
from analysis.load import Study
from analysis.planned import cooldown
from analysis.read import DataError
from analysis.shapes import Ladder, ladder
from analysis.targets import Target

SEEDS = 8  # new trunks of one size at most
SPAN = 8.0  # a constant trunk cannot suit horizons further apart (experiments.plan warns)
LEVELS = 8  # horizons of one size at most
MOST_SIZES = 16  # trained sizes on sale
NEAR = 2.0  # a D/N beyond those of the rows by more than this is another regime
BETWEEN = 1.3  # sizes further apart than this have room for one between them
DRAWS = 20  # random choices that are averaged


@dataclass(frozen=True)
class Size:
    """A size on sale: parameters, FLOPs per token, horizons in tokens, width where it is known."""

    N: float
    per_token: float
    horizons: tuple[float, ...]
    new: bool
    d_model: int | None = None


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
    sizes = _sizes(study, shapes, flops, budget)
    if not sizes:
        raise DataError(
            f"{study.source}: no size has a horizon of {MIN_STEPS} steps or more within the text; "
            "lower the batch or give more text"
        )
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
        if near[kind] < 0.005:
            cells = np.array(kinds[kind].cells)
            apart = np.abs(np.log(D[cells][:, None] / rows.D[mine][None]))
            held = cells[(apart < 0.01).any(1)].tolist()
            found.append((kind, held, str(labels[mine][0])))
    return found


def _sizes(
    study: Study, shapes: Ladder | str, flops: FlopsPerToken, budget: float
) -> tuple[Size, ...]:
    """Trained sizes, and further ones between and beyond them that the budget can pay."""
    rows, test = study.train, study.test
    size = rows.size
    levels = np.unique(np.linspace(0, size.max(), MOST_SIZES).round())  # of a scatter, some
    trained = [rows.take(size == k) for k in levels]
    N = [float(np.median(r.N)) for r in trained]
    widths: dict[float, int] = {}
    if isinstance(shapes, Ladder):
        widths = {float(shapes.N(w)): w for w in shapes.widths}
    horizon = _horizons(study)
    found = [
        Size(n, float(np.median(r.C / r.D)), horizon(n, float(np.median(r.C / r.D))), False, w)
        for n, r in zip(N, trained, strict=True)
        for w in [widths.get(n)]
    ]
    found = [size for size in found if size.horizons]
    ratio = float(np.exp(np.median(np.diff(np.log(N))))) if len(N) > 1 else 2.0
    wished = [float(np.sqrt(a * b)) for a, b in pairwise(N) if b / a > BETWEEN]
    wished += [N[0] / ratio, N[-1] * ratio, N[-1] * ratio**2, N[-1] * ratio**3]
    taken = [*N, *test.N.tolist()]
    for n in wished:
        d_model = None
        if isinstance(shapes, Ladder):
            d_model = shapes.nearest(n)
            n, per_token = float(shapes.N(d_model)), shapes.per_token(d_model)
        else:
            n = float(f"{n:.3g}")
            per_token = float(np.exp(flops(np.array([np.log(n)]))[0][0]))
        if min(abs(np.log(n / t)) for t in taken) < 0.1:
            continue
        horizons = horizon(n, per_token)
        if horizons and min(horizons) * per_token <= budget:
            found.append(Size(n, per_token, horizons, True, d_model))
            taken.append(n)
    return tuple(sorted(found, key=lambda s: s.N))


def _horizons(study: Study):
    """Tokens that a size of (N, FLOPs per token) is offered: those of the grid, and one longer.

    Of D, D/N and C the one with the fewest levels is the grid's axis. In a sweep whole steps, no
    fewer than the fit uses, no more text than there is.
    """
    rows, frame = study.train, study.used[~study.holdout]
    axes = {"D": rows.D, "D/N": rows.D / rows.N, "C": rows.C}
    levels = {name: _levels(values) for name, values in axes.items()}
    ratio = axes["D/N"]
    axis = min(levels, key=lambda name: len(levels[name]))
    chosen = levels[axis]
    if len(chosen) > LEVELS:
        chosen = np.geomspace(*np.quantile(axes[axis], (0.05, 0.95)).tolist(), num=LEVELS)
    if len(chosen) > 1:
        chosen = np.append(chosen, chosen[-1] * np.exp(np.median(np.diff(np.log(chosen)))))
    batch, low, high = 0.0, 0.0, np.inf
    if study.is_sweep:
        batch = float(frame["batch_tokens"].mode().iloc[0]) if "batch_tokens" in frame else 0.0
        low = MIN_STEPS * batch
        epochs = frame["epochs"].to_numpy(float)
        allowed = ((study.config or {}).get("data") or {}).get("max_epochs", 1.0)
        high = float(np.nanmax(rows.D / epochs, initial=0.0)) * allowed or np.inf

    def tokens(n: float, per_token: float) -> tuple[float, ...]:
        D = chosen * {"D": 1.0, "D/N": n, "C": 1 / per_token}[axis]
        D = D[(low <= D) & (high >= D)]
        D = D[(ratio.min() / NEAR <= D / n) & (ratio.max() * NEAR >= D / n)]
        D = D[D[:1].sum() * SPAN * (1 + 1e-9) >= D] if study.is_sweep else D
        D = np.maximum(np.round(D / batch), 1) * batch if batch else D
        return tuple(np.unique(D).tolist())

    return tokens


def _levels(values: np.ndarray) -> np.ndarray:
    """Distinct values in ascending order, those within 1 % as one."""
    ordered = np.sort(values)
    groups = np.split(ordered, np.flatnonzero(np.diff(np.log(ordered)) > 0.01) + 1)
    return np.array([np.median(g) for g in groups])
