"""The data-constrained law: repeated tokens and excess parameters are worth less and less.

L = E + A·N'^-α + B·D'^-β with D' = U_D·g(D/U_D; R_D) and N' = U_N·g(N/U_N; R_N) (Muennighoff et al.
2023, Scaling Data-Constrained Language Models, eq. 5 and 6; g in analysis/reuse). U_D = min(D, U)
with U unique tokens; U_N = min(N, N_opt(U_D)), N_opt(U) the size for which U tokens are
compute-optimal under the base law and C = 6ND: α·A·N_opt^-α = β·B·U^-β. So the law is its base
E + A·N^-α + B·D^-β wherever nothing is repeated and N <= N_opt(D).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from analysis.form import outer_sums
from analysis.gammalaw import ADDITIVE
from analysis.law import Law
from analysis.reuse import REUSE_LIMITS, log_worth, loss_of_reuse, reuse_slopes

NAMES = ("E", "A", "B", "alpha", "beta", "R_D", "R_N")
E, A, B, ALPHA, BETA, R_D, R_N = range(7)
V = slice(A, R_D)  # what log N_opt depends on: log A, log B, α, β
REUSE_STARTS = ((3.0, 15.0, 100.0), (1.0, 5.0, 30.0, 1000.0))  # of R_D and R_N: every pair
MAX_STARTS = 16


@dataclass(frozen=True)
class Features:
    """Centred log variables of the rows: x = log N, y = log D, u = log U_D, e = log(D/U_D)."""

    x: np.ndarray
    y: np.ndarray
    u: np.ndarray
    e: np.ndarray


@dataclass(frozen=True)
class State:
    """What `forward` leaves for the derivatives: phi (R, p), the others (R, rows).

    v: log(N/U_N), zero where the size is not in excess; in_e, in_a, in_b: shares of the loss.
    """

    phi: np.ndarray
    v: np.ndarray
    in_e: np.ndarray
    in_a: np.ndarray
    in_b: np.ndarray


@dataclass(frozen=True)
class DataConstrainedLaw(Law):
    """Chinchilla's form in effective tokens D' and effective parameters N'.

    unique: unique tokens where a question names none, as `optimal` does; without it nothing is
    repeated, and N*, D* under C = 6ND are those of the base law.
    """

    unique: float = np.inf

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        return NAMES

    @cached_property
    def variables(self) -> tuple[str, ...]:
        return ("N", "D", "U")

    @cached_property
    def logged(self) -> tuple[str, ...]:
        return ("E", "A", "B", "R_D", "R_N")

    @cached_property
    def exponents(self) -> tuple[str, ...]:
        return ("alpha", "beta")

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        return (("A", "alpha"), ("B", "beta"))

    @cached_property
    def coefficients(self) -> tuple[str, ...]:
        return ("E", "A", "B")

    @property
    def scale_free(self) -> bool:
        return np.isinf(self.unique)

    def prepare(self, x: np.ndarray) -> Features:
        """From log N, log D, log U: an unknown U (NaN) counts as D, no such column as `unique`."""
        u = np.fmin(x[:, 2] if x.shape[1] > 2 else np.log(self.unique), x[:, 1])
        return Features(x[:, 0], x[:, 1], u, x[:, 1] - u)

    def forward(self, features: Features, phi: np.ndarray) -> tuple[np.ndarray, State]:
        c = _columns(phi)
        v = _excess(c, features)
        terms = _terms(c, features, v)
        top = np.maximum(np.maximum(*terms[:2]), terms[2])
        shares = [np.exp(t - top) for t in terms]
        total = shares[0] + shares[1] + shares[2]
        return top + np.log(total), State(phi, v, *(share / total for share in shares))

    def jacobian(self, features: Features, state: State) -> np.ndarray:
        return self._slopes(features, state)[0]

    def _slopes(self, f: Features, state: State) -> tuple[Any, ...]:
        """J (R, rows, p), the slopes of log A-term, log B-term and v, and those of η."""
        c = _columns(state.phi)
        gone_n, gone_d = reuse_slopes(state.v, c[R_N]), reuse_slopes(f.e, c[R_D])
        over = (state.v > 0) / c[ALPHA]
        by_v = np.empty((*over.shape, 4))
        by_v[..., 0], by_v[..., 1] = -over, over
        by_v[..., 2] = over * (_best_size(c, f.u) - 1 / c[ALPHA])
        by_v[..., 3] = over * (1 / c[BETA] - f.u)
        by_a = np.zeros((*over.shape, 7))
        by_a[..., V] = (-c[ALPHA] * gone_n[1])[..., None] * by_v
        by_a[..., A] += 1.0
        by_a[..., ALPHA] -= f.x + gone_n[0]
        by_a[..., R_N] = -c[ALPHA] * gone_n[2]
        by_beta, by_r = -(f.y + gone_d[0]), -c[BETA] * gone_d[2]
        J = state.in_a[..., None] * by_a
        J[..., E] = state.in_e
        J[..., B] += state.in_b
        J[..., BETA] += state.in_b * by_beta
        J[..., R_D] = state.in_b * by_r
        return J, by_a, (by_beta, by_r), by_v, gone_n, gone_d

    def second_order(
        self, features: Features, state: State, psi: np.ndarray, inner: np.ndarray,
        w: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """Exact but at v = 0, where the second derivative jumps (the first does not).

        Terms exp(t) with shares p: J = sum p·t', second derivative sum p (t'' + t' t'') - J J'.
        """
        f, c = features, _columns(state.phi)
        J, by_a, (by_beta, by_r), by_v, gone_n, gone_d = self._slopes(f, state)
        in_a, in_b = psi * state.in_a, psi * state.in_b
        H = outer_sums(J, inner - psi) + outer_sums(by_a, in_a)
        H[:, E, E] += (psi * state.in_e).sum(-1)
        # log B - β(y + η(e, R_D)): its own square, and its second derivatives.
        H[:, B, B] += in_b.sum(-1)
        _both(H, B, BETA, _sum(in_b, by_beta))
        _both(H, B, R_D, _sum(in_b, by_r))
        H[:, BETA, BETA] += _sum(in_b, by_beta**2)
        _both(H, BETA, R_D, _sum(in_b, by_beta * by_r - gone_d[2]))
        H[:, R_D, R_D] += _sum(in_b, by_r**2 - c[BETA] * gone_d[5])
        # log A - α(x + η(v, R_N)): the same, and v depends on A, B, α, β.
        weight = -in_a * c[ALPHA]
        _both(H, ALPHA, V, -np.einsum("rn,rnp->rp", in_a * gone_n[1], by_v))
        _both(H, ALPHA, R_N, -_sum(in_a, gone_n[2]))
        H[:, V, V] += outer_sums(by_v, weight * gone_n[3])
        _both(H, R_N, V, np.einsum("rn,rnp->rp", weight * gone_n[4], by_v))
        H[:, R_N, R_N] += _sum(weight, gone_n[5])
        bend = -weight * gone_n[1] * (state.v > 0)  # times -v'' = (log N_opt)''
        a, b, total = c[ALPHA], c[BETA], bend.sum(-1) / c[ALPHA][:, 0] ** 2
        H[:, ALPHA, ALPHA] += _sum(bend, (2 * _best_size(c, f.u) - 3 / a) / a**2)
        H[:, BETA, BETA] += total * (a / b**2)[:, 0]
        _both(H, ALPHA, BETA, _sum(bend, (1 / b - f.u) / a**2))
        _both(H, ALPHA, A, -total)
        _both(H, ALPHA, B, total)
        g = np.einsum("rn,rnp->rp", psi, J)
        return g, H, np.einsum("rn,rnp->rp", w, J * J), np.einsum("rn,rnp->rp", w, np.abs(J))

    def recentre(self, phi: np.ndarray, centre: np.ndarray) -> np.ndarray:
        phi = np.array(phi, float)
        phi[..., A] -= phi[..., ALPHA] * centre[0]
        phi[..., B] -= phi[..., BETA] * centre[1]
        return phi

    def limits(self, z: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = np.full(7, np.log(REUSE_LIMITS[0])), np.full(7, np.log(REUSE_LIMITS[1]))
        low[:R_D], high[:R_D] = ADDITIVE.limits(z, reach[:2])
        return low, high

    def uncentred(self, fixed: Mapping[str, float]) -> np.ndarray:
        # U is compared with D, so both keep one unit.
        return np.array(["A" in fixed, True, True])

    def starts(
        self, x: np.ndarray, z: np.ndarray, w: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> np.ndarray:
        """The base law's starts in effective tokens at each R_D, with each R_N: the best of them.

        Many, because the objective is flat over (R_D, R_N) and has several minima there.
        """
        f = self.prepare(x)
        reuse = [
            np.unique(np.clip(np.log(values), low[k], high[k]))
            for k, values in zip((R_D, R_N), REUSE_STARTS, strict=True)
        ]
        found = []
        for r_d in reuse[0]:
            at = np.stack([f.x, f.y + loss_of_reuse(f.e, r_d)], axis=-1)
            head = ADDITIVE.starts(at, z, w, low[:R_D], high[:R_D])
            for r_n in reuse[1]:
                found.append(np.column_stack([head, np.tile([r_d, r_n], (len(head), 1))]))
        phi = np.unique(np.concatenate(found), axis=0)
        off = ((self.forward(f, phi)[0] - z) ** 2) @ w
        return phi[np.argsort(off, kind="stable")[:MAX_STARTS]]

    def elasticities(
        self, theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        phi = self.log_coordinates(theta)
        c = [phi[..., k] for k in range(len(NAMES))]
        supply = np.log(self.unique)
        u = np.minimum(log_d, supply)
        f = Features(log_n, log_d, u, log_d - u)
        v = _excess(c, f)
        _, in_a, in_b = _terms(c, f, v)
        log_gain = in_a + np.log(c[ALPHA]) + log_worth(v, c[R_N])
        log_cost = in_b + np.log(c[BETA]) + log_worth(f.e, c[R_D])
        # More fresh data also raises N_opt, and with it N'.
        excess = (log_d <= supply) * -np.expm1(log_worth(v, c[R_N]))
        with np.errstate(divide="ignore"):
            log_cost = np.logaddexp(log_cost, in_a + np.log(c[BETA]) + np.log(excess))
        apart = np.clip(log_gain - log_cost, -600.0, 600.0)
        return np.exp(np.minimum(apart, 0.0)), np.exp(np.minimum(-apart, 0.0))

    def _pointwise(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        phi, f = self.log_coordinates(theta), self.prepare(x)
        c = [phi[:, k] for k in range(len(NAMES))]
        return np.logaddexp.reduce(np.stack(_terms(c, f, _excess(c, f))))


def _columns(phi: np.ndarray) -> list[np.ndarray]:
    """Each parameter (R, 1), to broadcast over rows."""
    return [phi[:, k, None] for k in range(phi.shape[1])]


def _best_size(c: list[np.ndarray], u: np.ndarray) -> np.ndarray:
    """log N_opt(U): the size for which U tokens are compute-optimal."""
    log_ratio = np.log(c[ALPHA]) + c[A] - np.log(c[BETA]) - c[B]
    return (log_ratio + c[BETA] * u) / c[ALPHA]


def _excess(c: list[np.ndarray], f: Features) -> np.ndarray:
    return np.maximum(f.x - _best_size(c, f.u), 0.0)


def _terms(c: list[np.ndarray], f: Features, v: np.ndarray) -> list[np.ndarray]:
    """Logs of the three terms, each of the shape of v."""
    in_a = c[A] - c[ALPHA] * (f.x + loss_of_reuse(v, c[R_N]))
    in_b = c[B] - c[BETA] * (f.y + loss_of_reuse(f.e, c[R_D]))
    return [c[E] + np.zeros_like(v), in_a, in_b]


def _both(H: np.ndarray, i: int, j: int | slice, value: np.ndarray) -> None:
    H[:, i, j] += value
    H[:, j, i] += value


def _sum(weight: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.einsum("rn,rn->r", weight, values)
