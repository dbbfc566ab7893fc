"""Farseer: floor, scale and rate of the data term are all functions of the size (Li et al. 2025).

L = exp(F(N)) + exp(G(N))·D^(-exp(H(N))), F = s·N^q + S, G = B·N^b + Q, H = A·N^a + K (Predictable
Scale II: Farseer, arXiv 2506.10972; K is the paper's E). The names carry what the letter shapes,
since A, B and E mean other things elsewhere: floor_s, floor_q, floor_S, scale_B, scale_b, scale_Q,
rate_A, rate_a, rate_K. Chinchilla's form is nearly B = A = 0: then exp(F) plays E + A·N^-α.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from analysis.flops import FlopsPerToken
from analysis.gammalaw import ADDITIVE
from analysis.law import Law
from analysis.shiftedpower import ShiftedPower

NAMES = (
    "floor_s", "floor_q", "floor_S", "scale_B", "scale_b", "scale_Q", "rate_A", "rate_a", "rate_K",
)  # fmt: skip
BLOCKS = (slice(0, 3), slice(3, 6), slice(6, 9))  # of F, G, H
SLOPES = (3.0, 20.0, 2.0)  # steepest slope of F, G, H over log N
RATES = (0.01, 3.0)  # of exp(H) at the centre of the data
POWER = 0.8  # largest |q|, |b|, |a|
STEEPEST = 20.0  # exp(H) is cut off here, far outside the data
BENDS = (0.0, 0.2, -0.2)  # slopes of H that the starts try
MAX_STARTS = 12
RATIOS = (1e-2, 1e6)  # tokens per parameter between which the optimum is looked for
SCAN = 129  # points of that search


@dataclass(frozen=True)
class State:
    """What `forward` leaves for the derivatives: phi (R, p); share of the data term and exp(H)."""

    phi: np.ndarray
    share: np.ndarray
    rate: np.ndarray


@dataclass(frozen=True)
class FarseerLaw(Law):
    """Nine parameters in three shifted powers of N: F, G and H."""

    shapes: tuple[ShiftedPower, ...] = (ShiftedPower(),) * 3

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        return NAMES

    @cached_property
    def logged(self) -> tuple[str, ...]:
        return ()

    @cached_property
    def exponents(self) -> tuple[str, ...]:
        return NAMES[1::3]

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        return ()

    @property
    def scale_free(self) -> bool:
        return False

    def under(self, fixed: Mapping[str, float]) -> "FarseerLaw":
        """The law in which a fixed offset is a coordinate."""
        return replace(self, shapes=tuple(ShiftedPower(NAMES[b.stop - 1] in fixed) for b in BLOCKS))

    def prepare(self, x: np.ndarray) -> np.ndarray:
        return x

    def forward(self, features: np.ndarray, phi: np.ndarray) -> tuple[np.ndarray, State]:
        x, y = features[:, 0], features[:, 1]
        F, G, H = (f(phi[:, b], x) for f, b in zip(self.shapes, BLOCKS, strict=True))
        rate = np.exp(np.minimum(H, np.log(STEEPEST)))
        T = G - y * rate
        z = np.logaddexp(F, T)
        return z, State(phi, np.exp(T - z), rate)

    def jacobian(self, features: np.ndarray, state: State) -> np.ndarray:
        blocks = zip(self._blocks(features, state), _factors(features, state), strict=True)
        return np.concatenate([u * f[..., None] for (u, _, _), f in blocks], axis=-1)

    def _blocks(self, features: np.ndarray, state: State) -> list[tuple[np.ndarray, ...]]:
        """Derivatives of F, of G and of H over their own parameters."""
        x, shapes = features[:, 0], zip(self.shapes, BLOCKS, strict=True)
        return [f.slopes(state.phi[:, b], x) for f, b in shapes]

    def second_order(
        self, features: np.ndarray, state: State, psi: np.ndarray, inner: np.ndarray,
        w: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """log L = logaddexp(F, T), T = G - y·exp(H), with share p of T: the chain rule twice.

        Every sum over rows is one of gradient x gradient x weight, of two of F, G, H.
        """
        blocks, factors = self._blocks(features, state), _factors(features, state)
        p, by_h = state.share, -features[:, 1] * state.rate  # by_h: T by H, and T by H twice
        apart, spread = (-1.0, 1.0, by_h), psi * p * (1 - p)  # apart: of T - F by F, G, H
        g, scale, size = np.empty((3, len(psi), 9))
        H = np.empty((len(psi), 9, 9))
        for i, (here, (u, mixed, bent), f) in enumerate(zip(BLOCKS, blocks, factors, strict=True)):
            pull = psi * f
            g[:, here] = _along(pull, u)
            scale[:, here], size[:, here] = _along(w * f**2, u**2), _along(w * np.abs(f), np.abs(u))
            for j in range(i + 1):
                weight = inner * f * factors[j] + spread * apart[i] * apart[j]
                if i == j == 2:
                    weight += pull
                H[:, here, BLOCKS[j]] = np.swapaxes(u * weight[..., None], 1, 2) @ blocks[j][0]
                H[:, BLOCKS[j], here] = np.swapaxes(H[:, here, BLOCKS[j]], 1, 2)
            k = here.start
            crossed = np.einsum("rn,rn->r", pull, mixed)
            H[:, k, k + 1] += crossed
            H[:, k + 1, k] += crossed
            H[:, k + 1, k + 1] += np.einsum("rn,rn->r", pull, bent)
        return g, H, scale, size

    def recentre(self, phi: np.ndarray, centre: np.ndarray) -> np.ndarray:
        return self._each(lambda f, b: f.recentred(np.asarray(phi, float)[..., b], centre[0]))

    def _each(self, function: Callable[[ShiftedPower, slice], np.ndarray]) -> np.ndarray:
        parts = [function(f, b) for f, b in zip(self.shapes, BLOCKS, strict=True)]
        return np.concatenate(parts, axis=-1)

    def limits(self, z: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        middle = float(np.median(z))
        low, high = np.full(9, -POWER), np.full(9, POWER)
        # Over raw D, log of the data term's scale also carries its rate times mean log D.
        highest = middle + 5.0 + RATES[1] * reach[1]
        levels = ((middle - 12.0, middle + 5.0), (middle - 12.0, highest), tuple(np.log(RATES)))
        for f, b, slope, level in zip(self.shapes, BLOCKS, SLOPES, levels, strict=True):
            low[b.start], high[b.start] = (-1e3, 1e3) if f.plain else (-slope, slope)
            low[b.stop - 1], high[b.stop - 1] = (-1e3, 1e3) if f.plain else level
        return low, high

    def uncentred(self, fixed: Mapping[str, float]) -> np.ndarray:
        # Centring D would turn Q into a function of N that the law does not have.
        return np.array([False, True])

    def starts(
        self, x: np.ndarray, z: np.ndarray, w: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> np.ndarray:
        """The Chinchilla form's starts, with a rate that is constant, rises or falls with N."""
        middle = float(x[:, 1].mean())
        base = ADDITIVE.starts(x - [0.0, middle], z, w, *ADDITIVE.limits(z, np.zeros(2)))
        E, A, B, alpha, beta = base.T
        total = np.logaddexp(E, A)
        share, same = np.exp(A - total), np.ones(len(base))
        found = []
        for bend in BENDS:
            drift = bend * beta * middle  # of G: leaves the data term at mean D free of N
            at_centre = (
                -alpha * share, alpha * (share - 1), total,
                drift, -0.1 * same, B + beta * middle,
                bend * same, 0.1 * same, np.log(beta),
            )  # fmt: skip
            found.append(np.stack(at_centre, axis=-1))
        begin = np.concatenate(found)
        phi = self._each(lambda f, b: f.placed(begin[:, b], low[b], high[b]))
        off = ((self.forward(x, phi)[0] - z) ** 2) @ w
        return phi[np.argsort(off, kind="stable")[:MAX_STARTS]]

    # User's side: theta holds amplitudes, powers and offsets.

    def log_coordinates(self, theta: np.ndarray) -> np.ndarray:
        return self._each(lambda f, b: f.coordinates(np.asarray(theta, float)[..., b]))

    def values(self, phi: np.ndarray) -> np.ndarray:
        return self._each(lambda f, b: f.values(np.asarray(phi, float)[..., b]))

    def fixed_limits(self, fixed: Mapping[str, float]) -> dict[str, float]:
        for name, value in fixed.items():
            k = self.index(name)
            rule, kind = "", k % 3
            if kind == 0:
                others = NAMES[k + 1 : k + 3]
                rule = f"what an amplitude means depends on its power; fix {' or '.join(others)}"
            elif kind == 1 and not 0 < abs(value) <= POWER:
                rule = f"a power of this law is between -{POWER:g} and {POWER:g}, and not zero"
            elif not np.isfinite(value):
                rule = "it must be a finite number"
            if rule:
                raise ValueError(f"{name}={value} cannot be fixed: {rule}")
        return {name: float(value) for name, value in fixed.items()}

    def loss(self, theta: np.ndarray, *X: np.ndarray) -> np.ndarray:
        # In plain coordinates, since slopes and levels at N = 1 cost digits.
        plain = replace(self, shapes=(ShiftedPower(True),) * 3)
        return super(FarseerLaw, plain).loss(theta, *X)

    def _parts(self, theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
        """F, T, rate, and the slopes of F and T over log N; theta (..., p)."""
        s, q, S, B, b, Q, A, a, K = (theta[..., k] for k in range(9))
        f, g, h = s * np.exp(q * x), B * np.exp(b * x), A * np.exp(a * x)
        rate = np.exp(np.minimum(h + K, np.log(STEEPEST)))
        return f + S, g + Q - y * rate, rate, q * f, b * g - y * rate * a * h

    def elasticities(
        self, theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        F, T, rate, floor_slope, term_slope = self._parts(theta, log_n, log_d)
        z = np.logaddexp(F, T)
        share = np.exp(T - z)
        gain = -np.exp(F - z) * floor_slope - share * term_slope
        # Where a larger model is worse at equal D, it counts as worth next to nothing.
        return np.maximum(gain, 1e-300), np.maximum(share * rate, 1e-300)

    def _pointwise(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # no optimum: NaN in, NaN out
            return np.logaddexp(*self._parts(theta, x[:, 0], x[:, 1])[:2])

    def allocation_exponent(self, theta: np.ndarray) -> np.ndarray:
        """NaN: N* is no power of C here."""
        return np.full(np.shape(theta)[:-1], np.nan)

    def bracket(
        self, theta: np.ndarray, log_c: np.ndarray, flops: FlopsPerToken
    ) -> tuple[np.ndarray, np.ndarray]:
        """The neighbourhood of the lowest local minimum at 0.01 to 1e6 tokens per parameter.

        Far outside the data F, G and H run away, and L has minima that mean nothing.
        """
        ratio = np.linspace(np.log(RATIOS[0]), np.log(RATIOS[1]), SCAN)
        u = 0.5 * (log_c[..., None] - np.log(6.0) - ratio)  # falls along the scan
        F, T = self._parts(theta[..., None, :], u, log_c[..., None] - flops(u)[0])[:2]
        z = np.logaddexp(F, T)
        inner = z[..., 1:-1]
        dip = (inner < z[..., :-2]) & (inner <= z[..., 2:])
        best = np.where(dip, inner, np.inf).argmin(-1)[..., None]
        high, low = (np.take_along_axis(u, best + k, axis=-1)[..., 0] for k in (0, 2))
        found = dip.any(-1)
        return np.where(found, low, np.nan), np.where(found, high, np.nan)


def _factors(features: np.ndarray, state: State) -> tuple[np.ndarray, ...]:
    """d log L by F, by G and by H, each (R, rows)."""
    p = state.share
    return 1 - p, p, -p * features[:, 1] * state.rate


def _along(weight: np.ndarray, u: np.ndarray) -> np.ndarray:
    """sum over rows of weight·u, (R, rows) and (R, rows, k) to (R, k)."""
    return (weight[:, None, :] @ u)[:, 0]
