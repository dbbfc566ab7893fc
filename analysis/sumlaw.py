"""Laws that are sums of power-law terms: log L is a log-sum-exp of linear functions."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from analysis.cells import chosen_cells, nonnegative
from analysis.law import E_FLOOR, EXPONENT_LIMITS, Law

START_EXPONENTS = np.geomspace(0.02, 2.0, 20)
DEAD = 12.0  # a term this far (in log) below the loss at the centre of the data is dead


@dataclass(frozen=True)
class Term:
    """One additive term: coefficient times variable^-exponent for every pair in `powers`."""

    coefficient: str
    powers: tuple[tuple[str, str], ...] = ()  # (exponent, variable)


@dataclass(frozen=True)
class Features:
    """Data of one fit: T (terms, rows, p) and the products that the Hessian needs."""

    T: np.ndarray

    @cached_property
    def flat(self) -> np.ndarray:
        """t_k, shape (terms·rows, p)."""
        return self.T.reshape(-1, self.T.shape[2])

    @cached_property
    def pairs(self) -> np.ndarray:
        """t_k t_l' + t_l t_k' (once where k = l), shape (pairs·rows, p·p)."""
        K, _, P = self.T.shape
        found = []
        for k in range(K):
            for m in range(k, K):
                outer = self.T[k, :, :, None] * self.T[m, :, None, :]
                found.append(outer if m == k else outer + np.swapaxes(outer, 1, 2))
        return np.stack(found).reshape(-1, P * P)

    @cached_property
    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Squares and absolute values of `flat`."""
        return self.flat**2, np.abs(self.flat)


@dataclass(frozen=True)
class SumLaw(Law):
    """L = sum of terms c·V1^-p1·V2^-p2..., all coefficients positive."""

    terms: tuple[Term, ...] = ()

    @cached_property
    def logged(self) -> tuple[str, ...]:
        return tuple(t.coefficient for t in self.terms)

    @cached_property
    def exponents(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(e for t in self.terms for e, _ in t.powers))

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        return tuple((t.coefficient, e) for t in self.terms for e, _ in t.powers)

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        return self.logged + self.exponents

    @cached_property
    def variables(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(v for t in self.terms for _, v in t.powers))

    def prepare(self, x: np.ndarray) -> Features:
        """T: log of term k of row i is T[k, i] @ phi."""
        T = np.zeros((len(self.terms), len(x), len(self.parameters)))
        for k, term in enumerate(self.terms):
            T[k, :, k] = 1.0
            for exponent, variable in term.powers:
                T[k, :, self.index(exponent)] -= x[:, self.variables.index(variable)]
        return Features(T)

    def forward(self, features: Features, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The state is the share of every term in the loss, (R, terms, rows)."""
        K, n, _ = features.T.shape
        logs = (phi @ features.flat.T).reshape(len(phi), K, n)
        top = logs.max(1)
        share = np.exp(logs - top[:, None])
        total = share.sum(1)
        share /= total[:, None]
        return top + np.log(total), share

    def jacobian(self, features: Features, state: np.ndarray) -> np.ndarray:
        return np.einsum("rkn,knp->rnp", state, features.T)

    def second_order(
        self, features: Features, state: np.ndarray, psi: np.ndarray, inner: np.ndarray,
        w: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """With shares p_k: J = sum p_k t_k, second derivative sum p_k t_k t_k' - J J'.

        So all four are products of weights on p_k, p_k p_l with matrices that depend on the data
        only: one matrix product each for all problems.
        """
        share = state
        R, K, n = share.shape
        P = features.T.shape[2]
        first = psi[:, None] * share
        second = np.empty((R, K * (K + 1) // 2, n))
        curvature = (inner - psi)[:, None] * share
        at = 0
        for k in range(K):
            np.multiply(curvature[:, k, None], share[:, k:], out=second[:, at : at + K - k])
            second[:, at] += first[:, k]
            at += K - k
        g = first.reshape(R, K * n) @ features.flat
        H = (second.reshape(R, -1) @ features.pairs).reshape(R, P, P)
        weight = (w[:, None] * share).reshape(R, K * n)
        squares, absolute = features.sizes
        return g, H, weight @ squares, weight @ absolute

    def recentre(self, phi: np.ndarray, centre: np.ndarray) -> np.ndarray:
        phi = np.array(phi, float)
        for k, term in enumerate(self.terms):
            for exponent, variable in term.powers:
                shift = centre[self.variables.index(variable)]
                phi[..., k] -= phi[..., self.index(exponent)] * shift
        return phi

    def elasticities(
        self, theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        slopes = {"N": 0.0, "D": 0.0}
        at = {"N": log_n, "D": log_d}
        with np.errstate(divide="ignore"):
            logs = [
                np.log(theta[..., k])
                - sum(theta[..., self.index(e)] * at[v] for e, v in term.powers)
                for k, term in enumerate(self.terms)
            ]
        top = np.maximum.reduce(np.broadcast_arrays(*logs))
        for term, log in zip(self.terms, logs, strict=True):
            for exponent, variable in term.powers:
                part = theta[..., self.index(exponent)] * np.exp(log - top)
                slopes[variable] = slopes[variable] + part
        return np.asarray(slopes["N"]), np.asarray(slopes["D"])

    def _pointwise(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        T = self.prepare(x).T
        logs = np.einsum("kip,ip->ki", T, self.log_coordinates(theta))
        return np.logaddexp.reduce(logs, axis=0)

    def limits(self, z: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        middle, P = float(np.median(z)), len(self.parameters)
        low, high = np.full(P, EXPONENT_LIMITS[0]), np.full(P, EXPONENT_LIMITS[1])
        for k, term in enumerate(self.terms):
            low[k] = middle - (DEAD if term.powers else E_FLOOR)
            # Uncentred, log A also carries exponent times mean log N.
            room = sum(reach[self.variables.index(v)] for _, v in term.powers)
            high[k] = middle + 5.0 + EXPONENT_LIMITS[1] * room
        return low, high

    def uncentred(self, fixed: Mapping[str, float]) -> np.ndarray:
        held = {v for t in self.terms if t.coefficient in fixed for _, v in t.powers}
        return np.isin(self.variables, list(held))

    def starts(
        self, x: np.ndarray, z: np.ndarray, w: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> np.ndarray:
        """The linear part solved on a grid of exponents: local minima, best of each quadrant.

        The quadrants make a law with two basins show both.
        """
        K, P = len(self.terms), len(self.parameters)
        axes = [
            low[i : i + 1] if low[i] == high[i] else START_EXPONENTS[high[i] > START_EXPONENTS]
            for i in range(K, P)
        ]
        shape = tuple(len(a) for a in axes)
        fixed = np.where(low[:K] == high[:K], np.exp(low[:K]), np.nan)
        used = w > 0
        G, b = self._gram(x[used], np.exp(-z[used]), w[used], axes)
        coefficients, rss = nonnegative(G, b, float(w.sum()), fixed)
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, P - K)
        chosen = chosen_cells(rss.reshape(shape))
        phi = np.empty((len(chosen), P))
        # A coefficient of zero would start dead and stay dead: start it at 1 % of the loss.
        floor = np.exp(np.median(z)) / 100
        phi[:, :K] = np.log(np.maximum(coefficients[chosen], floor))
        phi[:, K:] = grid[chosen]
        return np.clip(phi, low, high)

    def _gram(
        self, x: np.ndarray, inverse_loss: np.ndarray, w: np.ndarray, axes: list[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Normal equations of the relative error at every cell of the exponent grid.

        Every column is a product of factors that depend on one exponent each, so the sums over
        rows for all cells are matrix products. Returns G (cells, terms, terms), b (cells, terms).
        """
        K = len(self.terms)
        shape = tuple(len(a) for a in axes)
        factors = []  # per term: exponent axis -> log factor (cells of the axis, rows)
        for term in self.terms:
            logs: dict[int, np.ndarray] = {}
            for exponent, variable in term.powers:
                axis = self.exponents.index(exponent)
                part = -axes[axis][:, None] * x[:, self.variables.index(variable)]
                logs[axis] = logs.get(axis, 0.0) + part
            factors.append(logs)

        def cells(logs: list[dict[int, np.ndarray]], weight: np.ndarray) -> np.ndarray:
            """sum over rows of weight times the product of the factors, on the whole grid."""
            by: dict[int, np.ndarray] = {}
            for one in logs:
                for axis, value in one.items():
                    by[axis] = by.get(axis, 0.0) + value
            parts = {axis: np.exp(by[axis]) for axis in sorted(by)}
            if not parts:
                total = np.asarray(weight.sum())
            elif len(parts) == 1:
                total = next(iter(parts.values())) @ weight
            else:
                first, second = parts.values()
                total = (first * weight) @ second.T
            view = [shape[axis] if axis in parts else 1 for axis in range(len(shape))]
            return np.broadcast_to(total.reshape(view), shape).ravel()

        G = np.empty((int(np.prod(shape)), K, K))
        b = np.empty((len(G), K))
        for k, m in combinations(range(K), 2):
            G[:, k, m] = G[:, m, k] = cells([factors[k], factors[m]], w * inverse_loss**2)
        for k in range(K):
            G[:, k, k] = cells([factors[k], factors[k]], w * inverse_loss**2)
            b[:, k] = cells([factors[k]], w * inverse_loss)
        return G, b
