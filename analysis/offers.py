"""Sizes and horizons that further runs may have: those of the study, between them and beyond."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from analysis.checks import MIN_STEPS
from analysis.flops import FlopsPerToken
from analysis.identify import diagnose
from analysis.laws import GAMMA
from analysis.load import Study
from analysis.read import DataError
from analysis.rows import Rows, distinct
from analysis.shapes import Ladder

SPAN = 8.0  # a constant trunk cannot suit horizons further apart (experiments.plan warns)
LEVELS = 8  # horizons of one size at most
MOST_SIZES = 16  # trained sizes on sale
NEAR = 2.0  # a D/N beyond those of the rows by more than this is another regime
FEW = np.array([0.25, 0.5, 1.0, 2.0, 4.0])  # horizons around those of a grid with one or two
BETWEEN = 1.3  # sizes further apart than this have room for one between them
SAME = 0.005  # sizes closer than this (in log N) are one


@dataclass(frozen=True)
class Size:
    """A size on sale: parameters, FLOPs per token, horizons in tokens, width where it is known."""

    N: float
    per_token: float
    horizons: tuple[float, ...]
    new: bool
    d_model: int | None = None


def on_sale(
    study: Study, shapes: Ladder | str, flops: FlopsPerToken, budget: float
) -> tuple[Size, ...]:
    """Trained sizes, and further ones between and beyond them that the budget can pay.

    As buildable shapes where the sweep has a ladder; held-out sizes are not on sale. DataError
    where no horizon is left.
    """
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
    if not found:
        raise DataError(
            f"{study.source}: no size has a horizon of {MIN_STEPS} steps or more within the text; "
            "lower the batch or give more text"
        )
    return tuple(sorted(found, key=lambda s: s.N))


def _horizons(study: Study) -> Callable[[float, float], tuple[float, ...]]:
    """Tokens that a size of (N, FLOPs per token) is offered, ascending.

    Those of the grid on its axis, the one of D, D/N and C with the fewest levels, and one longer;
    where it has fewer than three, or D follows from N, a quarter to four times as many. In a sweep
    whole steps, no fewer than the fit uses, within the text and the span of a constant trunk.
    """
    rows, frame = study.train, study.used[~study.holdout]
    batch, low, high = 0.0, 0.0, np.inf
    if study.is_sweep:
        batch = float(frame["batch_tokens"].mode().iloc[0]) if "batch_tokens" in frame else 0.0
        low = MIN_STEPS * batch
        epochs = frame["epochs"].to_numpy(float)
        settings = (study.config or {}).get("config", study.config or {})
        allowed = (settings.get("data") or {}).get("max_epochs", 1.0)
        high = float(np.nanmax(rows.D / epochs, initial=0.0)) * allowed or np.inf
    # Where D follows from N the two cannot be told apart.
    blind = {"alpha", "beta"} <= diagnose(rows, GAMMA, {}).problems.keys()
    wished = _around(rows) if blind else _on_axis(rows)

    def tokens(n: float, per_token: float) -> tuple[float, ...]:
        D = wished(n, per_token)
        D = D[(low <= D) & (high >= D)]
        D = D[D[:1].sum() * SPAN * (1 + 1e-9) >= D] if study.is_sweep else D
        D = np.maximum(np.round(D / batch), 1) * batch if batch else D
        return tuple(np.unique(D).tolist())

    return tokens


def _around(rows: Rows) -> Callable[[float, float], np.ndarray]:
    slope, level = np.polyfit(np.log(rows.N), np.log(rows.D), 1) if np.ptp(rows.N) else (0, 0)

    def wished(n: float, per_token: float) -> np.ndarray:
        here = np.abs(np.log(rows.N / n)) < SAME
        own = rows.D[here] if here.any() else np.array([np.exp(level) * n**slope])
        return np.unique(np.concatenate([own, np.median(own) * FEW]))

    return wished


def _on_axis(rows: Rows) -> Callable[[float, float], np.ndarray]:
    ratio = rows.D / rows.N
    axes = {"D": rows.D, "D/N": ratio, "C": rows.C}
    levels = {name: distinct(values) for name, values in axes.items()}
    axis = min(levels, key=lambda name: len(levels[name]))
    chosen = levels[axis]
    if len(chosen) > LEVELS:
        chosen = np.geomspace(*np.quantile(axes[axis], (0.05, 0.95)).tolist(), num=LEVELS)
    near = NEAR
    if len(chosen) < 3:  # too few to learn an exponent from: a quarter to four times each
        near = FEW[-1]
        chosen = np.unique(np.outer(chosen, FEW))
    else:
        chosen = np.append(chosen, chosen[-1] * np.exp(np.median(np.diff(np.log(chosen)))))

    def wished(n: float, per_token: float) -> np.ndarray:
        D = chosen * {"D": 1.0, "D/N": n, "C": 1 / per_token}[axis]
        return D[(ratio.min() / near <= D / n) & (ratio.max() * near >= D / n)]

    return wished
