"""The certificate of a fit: evidence that a point is the minimum, and limits it stands at."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.newton import Point, Problem, derivatives, held_back

SINGULAR = 1e12  # Hessian condition above which some combination of parameters is free
CONVERGED = 1e-8  # scaled gradient below which an optimum counts as certified
DEAD_SHARE = 1e-4  # a term below this share of the loss in every row says nothing


@dataclass(frozen=True)
class Certificate:
    """Evidence that the point is the minimum; every entry is recomputed at the reported point.

    gradient: max over free parameters of |sum w·psi·J| / (delta·sum w·sum_k p_k|t_k|), in [0, 1];
    decrement: predicted decrease of the objective by one more Newton step, relative to it;
    optima: distinct local optima that the starts ended in; agree: starts that ended in the best;
    condition: of the Jacobi-scaled Hessian over the free parameters.
    """

    gradient: float
    decrement: float
    optima: int
    agree: int
    starts: int
    condition: float


def certify(
    problem: Problem, w: np.ndarray, point: Point, F: np.ndarray, members: np.ndarray, optima: int,
    delta: float,
) -> Certificate:  # fmt: skip
    """The certificate of one point; F: objectives that `members` of the starts ended in."""
    g, H, _, size = derivatives(problem, w[None], point, delta)
    free = ~held_back(problem, point.phi, g)[0]
    gradient = float((np.abs(g[0]) / size[0])[free].max()) if free.any() else 0.0
    decrement, condition = 0.0, 1.0
    minimum = float(np.min(F))
    if free.any():
        H0, g0 = H[0][np.ix_(free, free)], g[0][free]
        d = np.sqrt(np.maximum(np.abs(np.diag(H0)), 1e-300))
        values = np.linalg.eigvalsh(H0 / np.outer(d, d))
        condition = float(values[-1] / values[0]) if values[0] > 0 else float("inf")
        step = np.linalg.lstsq(H0, g0, rcond=None)[0]
        floor = len(w) * delta**2 * 1e-12  # an exact law has objective zero
        decrement = float(abs(0.5 * g0 @ step) / max(minimum, floor))
    same = minimum * (1 + 1e-6) + len(w) * delta**2 * 1e-12
    agree, starts = int(members[same >= F].sum()), int(members.sum())
    return Certificate(gradient, decrement, optima, agree, starts, condition)


def limits_reached(problem: Problem, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which free parameters stand at their low and high limits; a dead term counts as low."""
    law = problem.law
    coefficient = np.isin(law.parameters, law.coefficients)
    # A log coefficient within a factor exp(0.5) of its limit is at it.
    width = np.where(coefficient, 0.5, 1e-6)
    low = problem.free & (phi <= problem.low + width)
    high = problem.free & (phi >= problem.high - width)
    # A term's share of the loss is the derivative of log L by its log coefficient.
    for i in range(0, len(phi), 250):
        share = np.abs(law.linearised(problem.features, phi[i : i + 250])[1]).max(1)
        low[i : i + 250] |= problem.free & coefficient & (share < DEAD_SHARE)
    return low, high


def limit_texts(problem: Problem, phi: np.ndarray) -> dict[str, str]:
    """What is wrong with every parameter that stands at a limit."""
    low, high = (v[0] for v in limits_reached(problem, phi[None]))
    texts = {}
    for i, name in enumerate(problem.law.parameters):
        coefficient = name in problem.law.coefficients
        if coefficient and low[i]:
            texts[name] = "E vanishes" if name == "E" else f"the {name} term is dead"
        elif low[i] or high[i]:
            limit = float((problem.low if low[i] else problem.high)[i])
            if name in problem.law.logged:
                limit = float(np.exp(limit))
            shown = name in (*problem.law.logged, *problem.law.exponents) and not coefficient
            side = "lower" if low[i] else "upper"
            texts[name] = f"{name} is at its {side} limit" + (f" {limit:.3g}" if shown else "")
    return texts


def status(certificate: Certificate, at_limit: Mapping[str, str]) -> str:
    """The certificate as a sentence."""
    if certificate.condition > SINGULAR:
        text = "Flat optimum: the Hessian is singular, other parameter values fit as well."
    elif certificate.gradient >= CONVERGED:
        text = (
            f"Not converged: scaled gradient {certificate.gradient:.1e} is above {CONVERGED:.0e}."
        )
    else:
        text = (
            f"Certified optimum: {certificate.agree} of {certificate.starts} starts end in it"
            + (
                f", {certificate.optima - 1} worse optima exist."
                if certificate.optima > 2
                else ", one worse optimum exists."
                if certificate.optima == 2
                else ", none found another."
            )
        )
    if at_limit:
        text += f" At a limit: {'; '.join(at_limit.values())}."
    return text
