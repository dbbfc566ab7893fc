"""Scaling laws as frozen objects: loss, Jacobian, start for the fit, compute-optimal allocation.

Letters: N parameters, D training tokens, C training FLOPs, L loss in nats per token.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.interpolate import PchipInterpolator


@dataclass(frozen=True)
class Term:
    """One additive term: coefficient, or coefficient · variable^-exponent with variable N or D."""

    coefficient: str
    exponent: str | None = None
    variable: str | None = None


@dataclass(frozen=True)
class FlopsPerToken:
    """Training FLOPs per token as a function of N: monotone log-log interpolant, log-linear beyond.

    `log_n`, `log_f`: knots in ascending order (one per size); no knots mean 6N (Kaplan et al.
    2020), which `label` says.
    """

    log_n: tuple[float, ...] = ()
    log_f: tuple[float, ...] = ()
    label: str = "6ND"

    def __call__(self, log_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log FLOPs per token and its slope d log f / d log N at log N."""
        if not self.log_n:
            return np.log(6.0) + log_n, np.ones_like(log_n)
        if len(self.log_n) == 1:
            return self.log_f[0] + log_n - self.log_n[0], np.ones_like(log_n)
        spline = PchipInterpolator(self.log_n, self.log_f)
        inside = np.clip(log_n, self.log_n[0], self.log_n[-1])
        slope = np.maximum(spline(inside, 1), 0.05)  # a flat end would make N free of charge
        return spline(inside) + slope * (log_n - inside), slope

    @classmethod
    def from_rows(cls, N: np.ndarray, D: np.ndarray, C: np.ndarray, label: str) -> "FlopsPerToken":
        """The ladder's own FLOPs per token: median of C/D at each distinct N."""
        sizes = np.unique(N)
        f = np.maximum.accumulate([np.median(C[n == N] / D[n == N]) for n in sizes])
        rising = np.concatenate([[True], np.diff(f) > 0])  # equal cost at two N: keep the first
        return cls(tuple(np.log(sizes[rising])), tuple(np.log(f[rising])), label)


@dataclass(frozen=True)
class Optimum:
    """Compute-optimal N, D and the loss there; arrays of shape (..., budgets)."""

    N: np.ndarray
    D: np.ndarray
    L: np.ndarray


@dataclass(frozen=True)
class SumLaw:
    """L(N, D) = sum of terms c or c·N^-p or c·D^-p, all coefficients positive.

    `theta` (..., p) holds the values in the order of `parameters`: coefficients, then exponents.
    In the coordinates (log coefficients, exponents) the logarithm of every term is linear, so
    log L is a log-sum-exp of linear functions: that is what the solver works on.
    """

    name: str
    formula: str
    terms: tuple[Term, ...]
    source: str

    @property
    def coefficients(self) -> tuple[str, ...]:
        return tuple(t.coefficient for t in self.terms)

    @property
    def exponents(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(t.exponent for t in self.terms if t.exponent))

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.coefficients + self.exponents

    def design(self, log_n: np.ndarray, log_d: np.ndarray) -> np.ndarray:
        """T (rows, terms, p): log of term k of row i is T[i, k] @ (log coefficients, exponents)."""
        T = np.zeros((len(log_n), len(self.terms), len(self.parameters)))
        for k, term in enumerate(self.terms):
            T[:, k, k] = 1.0
            if term.exponent:
                column = self.parameters.index(term.exponent)
                T[:, k, column] = -(log_n if term.variable == "N" else log_d)
        return T

    def log_coordinates(self, theta: np.ndarray) -> np.ndarray:
        """(log coefficients, exponents) of the values `theta`."""
        phi = np.array(theta, float)
        k = len(self.terms)
        phi[..., :k] = np.log(phi[..., :k])
        return phi

    def values(self, phi: np.ndarray) -> np.ndarray:
        """Inverse of `log_coordinates`."""
        theta = np.array(phi, float)
        k = len(self.terms)
        theta[..., :k] = np.exp(theta[..., :k])
        return theta

    def recentre(self, phi: np.ndarray, log_n: float, log_d: float) -> np.ndarray:
        """Coordinates for the law in N·exp(-log_n), D·exp(-log_d) instead of N, D."""
        phi = np.array(phi, float)
        for k, term in enumerate(self.terms):
            if term.exponent:
                shift = log_n if term.variable == "N" else log_d
                phi[..., k] -= phi[..., self.parameters.index(term.exponent)] * shift
        return phi

    def loss(self, theta: np.ndarray, N: np.ndarray, D: np.ndarray) -> np.ndarray:
        """Loss in nats/token, shape (..., rows), of values `theta` (..., p) at N, D (rows)."""
        N, D = np.asarray(N, float), np.asarray(D, float)
        total = 0.0
        for part in self.term_values(theta, N, D):
            total = total + part
        return np.asarray(total)

    def term_values(self, theta: np.ndarray, N: np.ndarray, D: np.ndarray) -> list[np.ndarray]:
        """Each term's share of the loss, in the order of `terms`."""
        theta = np.asarray(theta, float)[..., None, :]
        parts = []
        for k, term in enumerate(self.terms):
            part = theta[..., k] * np.ones_like(N)
            if term.exponent:
                power = theta[..., self.parameters.index(term.exponent)]
                part = part * (N if term.variable == "N" else D) ** -power
            parts.append(part)
        return parts

    def log_jacobian(self, theta: np.ndarray, N: np.ndarray, D: np.ndarray) -> np.ndarray:
        """d log L / d (log coefficients, exponents), shape (rows, p), of one vector `theta`."""
        T = self.design(np.log(N), np.log(D))
        share = np.stack(self.term_values(theta, N, D), axis=-1)
        share = share / share.sum(-1, keepdims=True)
        return np.einsum("nk,nkp->np", share, T)

    def linear_part(
        self, T: np.ndarray, exponents: np.ndarray, L: np.ndarray, fixed: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Best non-negative coefficients for given exponents: for them the law is linear.

        T from `design`, exponents (cells, exponents), L (rows), fixed (terms) with nan where free.
        Least squares of the relative error, solved over all sets of positive coefficients at once.
        Returns coefficients (cells, terms) and the residual sum of squares (cells).
        """
        K = len(self.terms)
        powers = np.einsum("nke,ce->cnk", T[:, :, K:], exponents)
        X = np.exp(powers) / L[:, None]
        held = ~np.isnan(fixed)
        y = 1.0 - X[:, :, held] @ fixed[held]
        free = np.flatnonzero(~held)
        best = np.zeros((len(X), K))
        best[:, held] = fixed[held]
        rss = np.einsum("cn,cn->c", y, y) if held.any() else np.full(len(X), np.inf)
        for size in range(1, len(free) + 1):
            for subset in combinations(free, size):
                Xs = X[:, :, subset]
                norm = np.linalg.norm(Xs, axis=1)
                Xs = Xs / norm[:, None]
                G = np.swapaxes(Xs, 1, 2) @ Xs + 1e-12 * np.eye(size)
                c = np.linalg.solve(G, np.einsum("cnk,cn->ck", Xs, y)[..., None])[..., 0]
                r = y - np.einsum("cnk,ck->cn", Xs, c)
                value = np.einsum("cn,cn->c", r, r)
                take = (c >= 0).all(1) & (value < rss)
                rss = np.where(take, value, rss)
                filled = np.zeros((len(X), K))
                filled[:, held] = fixed[held]
                filled[:, subset] = c / norm
                best[take] = filled[take]
        return best, rss

    def allocation_exponent(self, theta: np.ndarray) -> np.ndarray:
        """a = beta/(alpha+beta): N* grows as C^a where C = 6ND (Hoffmann et al. 2022)."""
        theta = np.asarray(theta, float)
        n, d = self._pair()
        alpha = theta[..., self.parameters.index(str(n.exponent))]
        beta = theta[..., self.parameters.index(str(d.exponent))]
        return beta / (alpha + beta)

    def optimal(self, theta: np.ndarray, C: np.ndarray, flops: FlopsPerToken) -> Optimum:
        """N*, D*, L* of compute C (FLOPs): minimum of L on the line D = C / flops(N).

        theta (..., p), C (budgets). With C = 6ND this is the closed form of Hoffmann et al. 2022;
        in general the point where the two terms' slopes balance, found by bisection in log N.
        """
        theta = np.asarray(theta, float)
        phi = self.log_coordinates(theta)[..., None, :]
        n, d = self._pair()
        kn, kd = self.terms.index(n), self.terms.index(d)
        alpha = theta[..., None, self.parameters.index(str(n.exponent))]
        beta = theta[..., None, self.parameters.index(str(d.exponent))]
        log_c = np.log(np.asarray(C, float)) + np.zeros((*theta.shape[:-1], 1))

        low, high = np.zeros_like(log_c), log_c.copy()  # N between 1 and C
        for _ in range(60):
            u = 0.5 * (low + high)
            f, slope = flops(u)
            gain = np.log(alpha) + phi[..., kn] - alpha * u
            cost = np.log(beta * slope) + phi[..., kd] - beta * (log_c - f)
            larger = gain > cost
            low, high = np.where(larger, u, low), np.where(larger, high, u)
        u = 0.5 * (low + high)
        N, D = np.exp(u), np.exp(log_c - flops(u)[0])
        L = np.zeros_like(N)
        for k, term in enumerate(self.terms):
            part = theta[..., None, k]
            if term.exponent:
                power = theta[..., None, self.parameters.index(term.exponent)]
                part = part * (N if term.variable == "N" else D) ** -power
            L = L + part
        return Optimum(N, D, L)

    def _pair(self) -> tuple[Term, Term]:
        """The term in N and the term in D."""
        by = {t.variable: t for t in self.terms if t.exponent}
        return by["N"], by["D"]


CHINCHILLA = SumLaw(
    name="chinchilla",
    formula="L(N, D) = E + A·N^-α + B·D^-β",
    terms=(Term("E"), Term("A", "alpha", "N"), Term("B", "beta", "D")),
    source="Hoffmann et al. 2022, Training Compute-Optimal Large Language Models, approach 3",
)
TWO_TERM = SumLaw(
    name="two-term",
    formula="L(N, D) = A·N^-α + B·D^-β",
    terms=(Term("A", "alpha", "N"), Term("B", "beta", "D")),
    source="the Chinchilla form without its constant E",
)
LAWS: tuple[SumLaw, ...] = (CHINCHILLA, TWO_TERM)


def law_named(name: str) -> SumLaw:
    """The law of that name; ValueError that lists the choices."""
    for law in LAWS:
        if law.name == name:
            return law
    raise ValueError(f"unknown law {name!r}; choose from {', '.join(x.name for x in LAWS)}")
