"""What the design of a study varies, and which parameters it therefore cannot identify."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.law import Law
from analysis.rows import Rows

COMMON = ("E", "gamma", "P", "a")  # what neither sizes nor horizons alone can tell
COLLINEAR = 0.1  # sd of log D at given log N below which the two cannot be told apart


@dataclass(frozen=True)
class Design:
    """What was varied, and `problems`: parameter -> why this design cannot identify it."""

    sizes: int
    horizons: int
    trunks: int
    decades_n: float
    ratio: tuple[float, float]
    spread: float
    problems: Mapping[str, str]

    @property
    def df_size(self) -> int:
        """Trunks left to estimate trunk noise: E, A, alpha take three of them."""
        return self.trunks - 3


def diagnose(rows: Rows, law: Law, fixed: Mapping[str, float]) -> Design:
    """What the design varies and which of the law's parameters it therefore cannot identify.

    Rules: D a function of N leaves one curve for two power laws; an exponent needs three distinct
    values of its variable (two fit every exponent); E, A, alpha need more than three trunks.
    """
    x, y = np.log(rows.N), np.log(rows.D)
    sizes, horizons = int(rows.size.max()) + 1, int(rows.horizon.max()) + 1
    trunks = len(np.unique(rows.trunk))
    ratio = rows.D / rows.N
    # sd of log D that log N does not explain (a line: D ∝ N^k is as blind as D = kN).
    slope = np.polyfit(x - x.mean(), y, 1)[0] if sizes > 1 else 0.0
    spread = float(np.std(y - slope * (x - x.mean())))
    problems: dict[str, str] = {}
    everything = (*law.parameters, "a")

    def blame(names: Sequence[str], why: str) -> None:
        for name in names:
            problems.setdefault(name, f"not identified by this design: {why}")

    if sizes > 1 and horizons > 1 and spread < COLLINEAR:
        constant = ratio.max() / ratio.min() < 1.25
        how = (
            f"every run has D/N near {np.median(ratio):.3g}"
            if constant
            else f"D is proportional to N^{slope:.2g} in every run"
        )
        blame(
            everything,
            f"{how}, so the N term and the D term cannot be told apart; train each size at 4 or "
            "more horizons, D/N spread over a factor of 8 or more",
        )
    if sizes < 3:
        blame(
            ("A", "alpha", *COMMON),
            f"{sizes} {'size' if sizes == 1 else 'sizes'}, and any exponent fits fewer than 3; "
            "add sizes (5 or more over a decade of N)",
        )
    if horizons < 3:
        blame(
            ("B", "beta", *COMMON),
            f"{horizons} {'horizon' if horizons == 1 else 'horizons'}, and any exponent fits "
            "fewer than 3; add horizons (branches of the same trunks)",
        )
    size_parameters = len({"E", "A", "alpha"} & set(law.parameters) - set(fixed))
    if trunks <= size_parameters and sizes >= 3:
        blame(
            ("A", "alpha", *COMMON),
            f"{trunks} trunks, {size_parameters} size parameters, no repeats; add one size or 2 "
            "seeds",
        )
    if not law.scale_free:
        problems["a"] = (
            f"not one number for the law {law.name}: its N* is no power of C; see the allocation"
        )
    if rows.U is None or bool((rows.D <= rows.U * (1 + 1e-9)).all()):
        blame(
            ("R_D", "R_N"),
            "no run repeats its data; add runs with D above the unique tokens U",
        )
    problems = {k: v for k, v in problems.items() if k in everything and k not in fixed}
    return Design(
        sizes=sizes,
        horizons=horizons,
        trunks=trunks,
        decades_n=float(np.ptp(x) / np.log(10)),
        ratio=(float(ratio.min()), float(ratio.max())),
        spread=spread,
        problems=problems,
    )
