"""Do the intervals cover? Simulated studies with a known truth, seeded, the truth never used.

Designs: trunks (sizes x seeds), each with a branch at every ratio D/N; log loss = law + trunk noise
+ row noise. Every study is fitted as a user's would be; an entry is the share of studies whose 90 %
interval holds the true value of one target.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.flops import FlopsPerToken
from analysis.gls import fit_gls
from analysis.law import Law
from analysis.laws import CHINCHILLA
from analysis.profile import profile_t
from analysis.rows import Rows
from analysis.solve import fit_law
from analysis.targets import Evaluator, Target

LEVEL = 0.9
BAND = (0.85, 0.95)
SMALLEST = 1e6
RATIOS = (5.0, 10.0, 20.0, 40.0, 80.0)
ROW_SHARE = 0.5  # row noise over trunk noise
TRUNK_NOISE = (0.001, 0.003)
# E, A, B, alpha, beta: fitted to published points; a flat law; a steep one.
TRUTHS: Mapping[str, tuple[float, ...]] = {
    "published": (1.8172, 477.8, 2143.4, 0.3473, 0.3672),
    "flat": (2.2, 60.0, 90.0, 0.25, 0.26),
    "steep": (1.3, 900.0, 1500.0, 0.6, 0.35),
}


@dataclass(frozen=True)
class Design:
    """Sizes over `decades` of N, seeds per size, branches per trunk."""

    name: str
    seeds: tuple[int, ...]
    decades: float
    ratios: tuple[float, ...] = RATIOS

    def rows(self) -> Rows:
        """The design as rows of loss 1."""
        N = np.geomspace(SMALLEST, SMALLEST * 10**self.decades, len(self.seeds))
        trunk_n = np.repeat(N, self.seeds)
        n = np.repeat(trunk_n, len(self.ratios))
        d = n * np.tile(self.ratios, len(trunk_n))
        trunk = np.repeat(np.arange(len(trunk_n)), len(self.ratios))
        return Rows(n, d, 6 * n * d, np.ones(len(n)), trunk)


DESIGNS = (
    Design("6 sizes, 1 seed", (1,) * 6, 1.5),
    Design("6 sizes, 3 seeds at the 3 cheapest", (3, 3, 3, 1, 1, 1), 1.5),
    Design("9 sizes, 1 seed", (1,) * 9, 2.5, (*RATIOS, 160.0)),
)


def simulate(
    law: Law, theta: np.ndarray, design: Rows, trunk_sd: float, rng: np.random.Generator
) -> Rows:
    """The design's rows with losses of the law and noise of trunks and rows."""
    z = np.log(law.loss(theta, *design.variables(law.variables)))
    z = z + trunk_sd * rng.normal(size=int(design.trunk.max()) + 1)[design.trunk]
    z = z + ROW_SHARE * trunk_sd * rng.normal(size=len(design))
    return replace(design, L=np.exp(z))


@dataclass(frozen=True)
class Entry:
    """Coverage and median width (log units for E and L) of one target in one cell."""

    truth: str
    trunk_sd: float
    design: str
    target: str
    studies: int
    coverage: float
    width: float


def targets(top: float) -> list[Target]:
    """alpha, beta, E, a, and the loss at the optimum of ten times the largest compute."""
    exponents = [Target(name, "parameter") for name in ("alpha", "beta", "E")]
    return [*exponents, Target("a", "a"), Target("loss at 10x", "optimal-loss", (10 * top,))]


def cell(
    truth: str, design: Design, trunk_sd: float, studies: int, seed: int
) -> tuple[list[Entry], list[float]]:
    """Entries of one law, design and noise, and CPU seconds of each study's intervals."""
    law, theta, flops = CHINCHILLA, np.array(TRUTHS[truth]), FlopsPerToken()
    rows = design.rows()
    wanted = targets(float(rows.C.max()))
    best = law.optimal(theta, np.array(wanted[-1].at), flops).L[0]
    a = float(law.allocation_exponent(theta))
    known = np.array([theta[3], theta[4], np.log(theta[0]), a, np.log(best)])
    rng = np.random.default_rng(seed)
    held, width, seconds = np.zeros(len(known)), [], []
    for _ in range(studies):
        study = simulate(law, theta, rows, trunk_sd, rng)
        start = time.process_time()
        X = study.variables(law.variables)
        fit = fit_law(law, X, study.L)
        gls = fit_gls(law, X, study.L, study.trunk, fit.rivals)
        ends = profile_t(gls, Evaluator(gls.problem, flops, wanted), LEVEL)
        seconds.append(time.process_time() - start)
        low, high = np.array([e.low for e in ends]), np.array([e.high for e in ends])
        held += (low <= known) & (known <= high)
        width.append(high - low)
    entries = [
        Entry(truth, trunk_sd, design.name, t.name, studies, float(h / studies), float(w))
        for t, h, w in zip(wanted, held, np.median(width, axis=0), strict=True)
    ]
    return entries, seconds


def summary(entries: Sequence[Entry]) -> dict[str, float]:
    """Smallest, mean and largest coverage, and the share of entries inside BAND."""
    found = np.array([e.coverage for e in entries])
    inside = (found >= BAND[0]) & (found <= BAND[1])
    return {
        "min": float(found.min()),
        "mean": float(found.mean()),
        "max": float(found.max()),
        "in_band": float(inside.mean()),
    }
