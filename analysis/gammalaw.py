"""Laws with one exponent over the sum of both terms: the γ law, and Kaplan's joint form.

W = A·N^(-α/γ) + B·D^(-β/γ), L = E + W^γ. α and β are the effective exponents, so a = β/(α+β) is
unchanged; γ = 1 is the Chinchilla form (Beck et al. 2025, xLSTM scaling laws, "γ"). Kaplan et al.
2020 (eq. 1.5) is γ = β without E: [(N_c/N)^(α/β) + D_c/D]^β.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analysis.form import outer_sums
from analysis.law import E_FLOOR, EXPONENT_LIMITS, Law
from analysis.sumlaw import SumLaw, Term

GAMMA_STARTS = (1.0, 0.5)
JOINT_STARTS = (1.0, 0.4, 2.5)  # times the additive β
LOG_GAMMA = 1.6  # |log γ| beyond this no data set has shown, and W^γ loses its meaning
ADDITIVE = SumLaw(
    "start", "", "", terms=(Term("E"), Term("A", (("alpha", "N"),)), Term("B", (("beta", "D"),)))
)


@dataclass(frozen=True)
class State:
    """What `forward` leaves for the derivatives; all arrays (R, rows) but the first three."""

    alpha: np.ndarray  # (R, 1)
    beta: np.ndarray
    gamma: np.ndarray
    x: np.ndarray
    y: np.ndarray
    h: np.ndarray  # share of W^γ in the loss
    p: np.ndarray  # share of the N term in W
    log_w: np.ndarray


@dataclass(frozen=True)
class GammaLaw(Law):
    """L = E + (A·N^(-α/γ) + B·D^(-β/γ))^γ; `floor` False: no E; `joint`: γ = β (Kaplan)."""

    floor: bool = True
    joint: bool = False

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        names = ("E", "A", "B", "alpha", "beta", "gamma")
        return names[0 if self.floor else 1 : 5 if self.joint else 6]

    @cached_property
    def logged(self) -> tuple[str, ...]:
        return tuple(n for n in self.parameters if n not in ("alpha", "beta"))

    @cached_property
    def exponents(self) -> tuple[str, ...]:
        return ("alpha", "beta")

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        return (("A", "alpha"), ("B", "beta"))

    @cached_property
    def coefficients(self) -> tuple[str, ...]:
        return tuple(n for n in self.parameters if n in ("E", "A", "B"))

    def prepare(self, x: np.ndarray) -> np.ndarray:
        return x

    def _split(self, phi: np.ndarray) -> tuple[np.ndarray, ...]:
        """log E, log A, log B, alpha, beta, gamma, each (..., 1) to broadcast over rows."""
        first = 1 if self.floor else 0
        log_e = phi[..., :1] if self.floor else np.full_like(phi[..., :1], -np.inf)
        log_a, log_b, alpha, beta = (phi[..., first + i, None] for i in range(4))
        gamma = beta if self.joint else np.exp(phi[..., -1:])
        return log_e, log_a, log_b, alpha, beta, gamma

    def forward(self, features: np.ndarray, phi: np.ndarray) -> tuple[np.ndarray, State]:
        log_e, log_a, log_b, alpha, beta, gamma = self._split(phi)
        x, y = features[:, 0], features[:, 1]
        t, s = log_a - alpha / gamma * x, log_b - beta / gamma * y
        log_w = np.logaddexp(t, s)
        reducible = gamma * log_w
        z = np.logaddexp(log_e, reducible)
        return z, State(alpha, beta, gamma, x, y, np.exp(reducible - z), np.exp(t - log_w), log_w)

    def jacobian(self, features: np.ndarray, state: State) -> np.ndarray:
        return self._contract(self._gradient(state), state)

    def _gradient(self, s: State) -> np.ndarray:
        """d log L over (log E, log A, log B, alpha, beta, log gamma), shape (R, rows, 6)."""
        q = 1 - s.p
        hp, hq = s.h * s.p, s.h * q
        bend = s.gamma * s.log_w * s.h + hp * s.alpha * s.x + hq * s.beta * s.y
        return np.stack([1 - s.h, hp * s.gamma, hq * s.gamma, -hp * s.x, -hq * s.y, bend], axis=-1)

    def _contract(self, J: np.ndarray, s: State) -> np.ndarray:
        """From the six general coordinates to those of this law."""
        if self.joint:  # log gamma = log beta moves with beta
            J = J.copy()
            J[..., 4] += J[..., 5] / s.beta
            J = J[..., :5]
        return J if self.floor else J[..., 1:]

    def second_order(
        self, features: np.ndarray, state: State, psi: np.ndarray, inner: np.ndarray,
        w: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """log L = logsumexp(log E, γ·log W), log W = logsumexp(t, s): the chain rule twice."""
        s, one = state, np.ones_like(state.p)
        J = self._gradient(s)
        q = 1 - s.p
        zero = np.zeros_like(s.p)
        # Gradients of t - s, of log W, and of γ·log W - log E.
        t_s = np.stack(
            [zero, one, -one, -s.x / s.gamma * one, s.y / s.gamma * one,
             (s.alpha * s.x - s.beta * s.y) / s.gamma * one], axis=-1,
        )  # fmt: skip
        log_w = np.stack(
            [zero, s.p, q, -s.p * s.x / s.gamma, -q * s.y / s.gamma,
             (s.p * s.alpha * s.x + q * s.beta * s.y) / s.gamma], axis=-1,
        )  # fmt: skip
        apart = s.gamma[..., None] * log_w
        apart[..., 5] += s.gamma * s.log_w
        apart[..., 0] = -1.0
        outer = psi * s.h
        H = outer_sums(J, inner) + outer_sums(apart, outer * (1 - s.h))
        H += outer_sums(t_s, outer * s.gamma * s.p * q)
        v = outer * s.gamma
        cross = np.einsum("rn,rnp->rp", v, log_w)
        H[:, 5, :] += cross
        H[:, :, 5] += cross
        H[:, 5, 5] += (v * s.log_w).sum(-1)
        px, qy = (outer * s.p * s.x).sum(-1), (outer * q * s.y).sum(-1)
        H[:, 3, 5] += px
        H[:, 5, 3] += px
        H[:, 4, 5] += qy
        H[:, 5, 4] += qy
        H[:, 5, 5] -= s.alpha[:, 0] * px + s.beta[:, 0] * qy
        g = np.einsum("rn,rnp->rp", psi, J)
        if self.joint:
            H[:, 4, :] += H[:, 5, :] / s.beta
            H[:, :, 4] += H[:, :, 5] / s.beta
            H[:, 4, 4] -= g[:, 5] / s.beta[:, 0] ** 2
            g[:, 4] += g[:, 5] / s.beta[:, 0]
            H, g = H[:, :5, :5], g[:, :5]
        if not self.floor:
            H, g = H[:, 1:, 1:], g[:, 1:]
        J = self._contract(J, s)
        return g, H, np.einsum("rn,rnp->rp", w, J * J), np.einsum("rn,rnp->rp", w, np.abs(J))

    def recentre(self, phi: np.ndarray, centre: np.ndarray) -> np.ndarray:
        phi = np.array(phi, float)
        _, _, _, alpha, beta, gamma = self._split(phi)
        phi[..., self.index("A")] -= (alpha / gamma)[..., 0] * centre[0]
        phi[..., self.index("B")] -= (beta / gamma)[..., 0] * centre[1]
        return phi

    def elasticities(
        self, theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        _, log_a, log_b, alpha, beta, gamma = (
            v[..., 0] for v in self._split(self.log_coordinates(theta))
        )
        t, s = log_a - alpha / gamma * log_n, log_b - beta / gamma * log_d
        top = np.maximum(t, s)
        return alpha * np.exp(t - top), beta * np.exp(s - top)

    def _pointwise(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        log_e, log_a, log_b, alpha, beta, gamma = (
            v[..., 0] for v in self._split(self.log_coordinates(theta))
        )
        t, s = log_a - alpha / gamma * x[:, 0], log_b - beta / gamma * x[:, 1]
        return np.logaddexp(log_e, gamma * np.logaddexp(t, s))

    def limits(self, z: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        middle, P = float(np.median(z)), len(self.parameters)
        low, high = np.full(P, EXPONENT_LIMITS[0]), np.full(P, EXPONENT_LIMITS[1])
        # Inside W a coefficient stands to the power 1/γ, with γ = β as small as its own limit.
        steep = 1 / EXPONENT_LIMITS[0] if self.joint else np.exp(LOG_GAMMA)
        for name, along in (("A", reach[0]), ("B", reach[1])):
            bound = steep * (abs(middle) + 12.0 + EXPONENT_LIMITS[1] * along)
            low[self.index(name)], high[self.index(name)] = -bound, bound
        if self.floor:
            low[0], high[0] = middle - E_FLOOR, middle + 5.0
        if not self.joint:
            low[-1], high[-1] = -LOG_GAMMA, LOG_GAMMA
        return low, high

    def uncentred(self, fixed: Mapping[str, float]) -> np.ndarray:
        return np.array(["A" in fixed, "B" in fixed])

    def starts(
        self, x: np.ndarray, z: np.ndarray, w: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> np.ndarray:
        """The starts of the additive form, bent: the same effective exponents at several γ."""
        additive = SumLaw("start", "", "", ADDITIVE.terms if self.floor else ADDITIVE.terms[1:])
        p = len(additive.parameters)
        base = additive.starts(x, z, w, low[:p], high[:p])
        found = []
        for gamma in JOINT_STARTS if self.joint else GAMMA_STARTS:
            phi = base.copy()
            bend = np.full(len(phi), gamma)
            if self.joint:  # γ is β: the additive β first, then others
                bend = np.clip(phi[:, -1] * gamma, low[-1], high[-1])
                phi[:, -1] = bend
            for name in ("A", "B"):
                phi[:, self.index(name)] /= bend
            if not self.joint:
                phi = np.column_stack([phi, np.log(bend)])
            found.append(phi)
        return np.clip(np.concatenate(found), low, high)
