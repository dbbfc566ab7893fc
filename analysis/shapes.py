"""Model shapes of a sweep: every parameter count that its ladder of widths can be built to have.

At fixed depth, vocabulary, context and head rule, the parameter count and the FLOPs per token are
quadratics of d_model: three widths fix them exactly, further ones prove them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd

SAME = ("preset", "n_layers", "vocab_size", "seq_len")
NEEDED = (*SAME, "d_model", "n_heads", "d_head", "d_ff", "n_total", "tokens", "flops_exact")
Quadratic = tuple[Fraction, Fraction, Fraction]  # of 1, d, d²


@dataclass(frozen=True)
class Ladder:
    """Widths of one family: `keys` are shared, d_model is a multiple of `step`.

    `head`: ("d_head", k) or ("n_heads", k), which of the two is the same along the ladder; `wide`
    is d_ff / d_model.
    """

    keys: Mapping[str, object]
    head: tuple[str, int]
    wide: Fraction
    step: int
    widths: tuple[int, ...]
    parameters: Quadratic
    flops: Quadratic

    def N(self, d_model: int) -> int:
        """Parameters (n_total) at a width."""
        return int(_value(self.parameters, d_model))

    def per_token(self, d_model: int) -> float:
        """Training FLOPs per token (flops_exact) at a width."""
        return float(_value(self.flops, d_model))

    def nearest(self, N: float) -> int:
        """The buildable width whose parameter count is nearest to N, by ratio."""
        c, b, a = (float(v) for v in self.parameters)
        root = (math.sqrt(max(b * b - 4 * a * (c - N), 0.0)) - b) / (2 * a) if a else (N - c) / b
        below = max(int(root // self.step), 1)
        pair = (below * self.step, (below + 1) * self.step)
        return min(pair, key=lambda d: abs(math.log(self.N(d) / N)))

    def shape(self, d_model: int) -> dict[str, object]:
        """All keys of the model at a width, as the rows name them."""
        name, value = self.head
        heads = d_model // value if name == "d_head" else value
        found = {"d_model": d_model, "n_heads": heads, "d_head": d_model // heads}
        return {**self.keys, **found, "d_ff": int(self.wide * d_model)}


def ladder(frame: pd.DataFrame) -> Ladder | str:
    """The family with the most widths among the rows, or why none can be continued."""
    missing = [c for c in NEEDED if c not in frame or frame[c].isna().all()]
    if missing:
        return f"the rows do not say how models are built (no {', '.join(missing)})"
    rows = frame.dropna(subset=list(NEEDED)).drop_duplicates([*SAME, "d_model", "n_heads", "d_ff"])
    groups = sorted(rows.groupby(list(SAME), sort=False), key=lambda g: -g[1]["d_model"].nunique())
    return _family(groups[0][1].sort_values("d_model"))


def _family(rows: pd.DataFrame) -> Ladder | str:
    if rows["d_model"].duplicated().any():
        return "one width is built in several shapes"
    if len(rows) < 3:
        return f"{len(rows)} widths of one family; three fix how the counts grow with the width"
    d = [int(v) for v in rows["d_model"]]
    wide = {Fraction(int(f), w) for f, w in zip(rows["d_ff"], d, strict=True)}
    heads = {name: set(rows[name].astype(int)) for name in ("d_head", "n_heads")}
    fixed = [name for name, values in heads.items() if len(values) == 1]
    if len(wide) > 1 or not fixed:
        what = "d_ff / d_model" if len(wide) > 1 else "neither d_head nor n_heads"
        return f"{what} is {'not ' if len(wide) > 1 else ''}the same at every width"
    parameters = _through(d, [Fraction(int(n)) for n in rows["n_total"]])
    ratios = (rows["flops_exact"] / rows["tokens"]).to_numpy(float)
    flops = _through(d, [Fraction(float(f)).limit_denominator(1000) for f in ratios])
    exact = all(_value(parameters, w) == int(n) for w, n in zip(d, rows["n_total"], strict=True))
    predicted = np.array([float(_value(flops, w)) for w in d])
    if not exact or not np.allclose(predicted, ratios, rtol=1e-9):
        return "parameters or FLOPs per token are no quadratic of d_model (a model key differs?)"
    value = heads[fixed[0]].pop()
    ratio = wide.pop()
    # A width is whole heads of an even size (rotary positions turn pairs), and d_ff is whole.
    step = value if fixed[0] == "d_head" else 2 * value
    step = math.lcm(step, ratio.denominator)
    keys = {str(k): v for k, v in rows[list(SAME)].to_dict("records")[0].items()}
    return Ladder(keys, (fixed[0], value), ratio, step, tuple(d), parameters, flops)


def _through(d: list[int], values: list[Fraction]) -> Quadratic:
    """The quadratic through the first, middle and last point (Newton's divided differences)."""
    i, j, k = 0, len(d) // 2, len(d) - 1
    first = (values[j] - values[i]) / (d[j] - d[i])
    second = ((values[k] - values[j]) / (d[k] - d[j]) - first) / (d[k] - d[i])
    slope = first - second * (d[i] + d[j])
    return values[i] - first * d[i] + second * d[i] * d[j], slope, second


def _value(quadratic: Quadratic, d: int) -> Fraction:
    c, b, a = quadratic
    return c + b * d + a * d * d
