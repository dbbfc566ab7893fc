"""What every scaling law can do: loss, Jacobian, starting points, compute-optimal allocation.

Letters: N parameters, D training tokens, C training FLOPs, U unique tokens, L loss in nats/token.
The solver works in coordinates phi: logarithms of the parameters in `logged`, the others
(exponents) as they are, and every variable as its logarithm minus a centre.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from analysis.flops import FlopsPerToken
from analysis.form import Form

EXPONENT_LIMITS = (0.01, 3.0)
E_FLOOR = 6.0  # log E may fall this far below the median log L: there E is 0.25 % of the loss


@dataclass(frozen=True)
class Optimum:
    """Compute-optimal N, D and the loss there; arrays of shape (..., budgets)."""

    N: np.ndarray
    D: np.ndarray
    L: np.ndarray


@dataclass(frozen=True)
class Law(Form):
    """A parametric form of the loss of N and D; a subclass gives what is abstract.

    parameters: names, in the order of every vector `theta`; variables: what the loss depends on,
    in the order of its arguments; logged: parameters whose logarithm the solver works on.
    """

    name: str
    formula: str
    source: str

    @cached_property
    @abstractmethod
    def parameters(self) -> tuple[str, ...]: ...

    @cached_property
    def variables(self) -> tuple[str, ...]:
        return ("N", "D")

    @cached_property
    @abstractmethod
    def logged(self) -> tuple[str, ...]: ...

    def index(self, parameter: str) -> int:
        """Position of a parameter in `theta`; ValueError where the law has none of that name."""
        if parameter not in self.parameters:
            raise ValueError(
                f"law {self.name} has no parameter {parameter!r}; it has "
                f"{', '.join(self.parameters)}"
            )
        return self.parameters.index(parameter)

    @cached_property
    @abstractmethod
    def exponents(self) -> tuple[str, ...]:
        """The parameters that are powers of a variable."""

    @cached_property
    @abstractmethod
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(coefficient, exponent) of every term."""

    @cached_property
    def coefficients(self) -> tuple[str, ...]:
        """The parameters that scale a term."""
        return self.logged

    @property
    def scale_free(self) -> bool:
        """Whether N* is a power of C = 6ND, so that its exponent a is one number."""
        return True

    def under(self, fixed: Mapping[str, float]) -> "Law":
        """The law whose solver coordinates hold the fixed parameters; most laws do as they are."""
        return self

    # Solver side. `features` is whatever `prepare` made of the centred logs of the variables.

    @abstractmethod
    def prepare(self, x: np.ndarray) -> Any:
        """Constants of the data, from centred log variables x (rows, variables)."""

    @abstractmethod
    def recentre(self, phi: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """Coordinates for variables divided by exp(centre), from those for raw variables."""

    def log_coordinates(self, theta: np.ndarray) -> np.ndarray:
        """phi for raw variables of the values `theta` (..., p)."""
        phi = np.array(theta, float)
        k = [self.index(name) for name in self.logged]
        with np.errstate(divide="ignore"):
            phi[..., k] = np.log(phi[..., k])
        return phi

    def values(self, phi: np.ndarray) -> np.ndarray:
        """Inverse of `log_coordinates`."""
        theta = np.array(phi, float)
        k = [self.index(name) for name in self.logged]
        with np.errstate(over="ignore", under="ignore"):  # coefficients of a runaway exponent
            theta[..., k] = np.exp(theta[..., k])
        return theta

    @abstractmethod
    def limits(self, z: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest phi that make sense for log losses z.

        reach: |mean - centre| of each log variable; zero where the variable is centred.
        """

    @abstractmethod
    def uncentred(self, fixed: Mapping[str, float]) -> np.ndarray:
        """Variables that must keep their raw unit, because a fixed coefficient belongs to them."""

    @abstractmethod
    def starts(
        self, x: np.ndarray, z: np.ndarray, w: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> np.ndarray:
        """Starting points (starts, p) inside the limits, for centred logs x and log losses z."""

    # User's side.

    def named(self, theta: np.ndarray) -> dict[str, float]:
        """One vector of values by name."""
        return dict(zip(self.parameters, map(float, theta), strict=True))

    def loss(self, theta: np.ndarray, *X: np.ndarray) -> np.ndarray:
        """Loss in nats/token, shape (..., rows), of values `theta` (..., p) at `variables` X."""
        theta = np.asarray(theta, float)
        x = np.log(np.stack(np.broadcast_arrays(*(np.asarray(v, float) for v in X)), axis=-1))
        features = self.prepare(x.reshape(-1, x.shape[-1]))
        phi = self.log_coordinates(theta.reshape(-1, theta.shape[-1]))
        with np.errstate(invalid="ignore"):
            z = self.forward(features, phi)[0]
        return np.exp(z).reshape(*theta.shape[:-1], -1)

    @abstractmethod
    def elasticities(
        self, theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """-d log L / d log N and -d log L / d log D up to one common factor, theta (..., 1, p)."""

    def allocation_exponent(self, theta: np.ndarray) -> np.ndarray:
        """a = beta/(alpha+beta): N* grows as C^a where C = 6ND (Hoffmann et al. 2022)."""
        theta = np.asarray(theta, float)
        alpha = theta[..., self.index("alpha")]
        beta = theta[..., self.index("beta" if "beta" in self.parameters else "alpha")]
        return beta / (alpha + beta)

    def optimal(self, theta: np.ndarray, C: np.ndarray, flops: FlopsPerToken) -> Optimum:
        """N*, D*, L* of compute C (FLOPs): minimum of L on the line D = C / flops(N).

        theta (..., p), C (budgets). At the minimum the elasticities balance: with C = 6ND this is
        the closed form of Hoffmann et al. 2022 (eq. 4). Their log ratio is nearly linear in log N,
        so bracketed secant steps (the Illinois method) find it in a handful of evaluations.
        """
        theta = np.asarray(theta, float)[..., None, :]
        log_c = np.log(np.asarray(C, float)) + np.zeros((*theta.shape[:-2], 1))

        low, high = self.bracket(theta, log_c, flops)
        with np.errstate(divide="ignore", invalid="ignore"):
            u = _root(lambda u: self.imbalance(theta, u, log_c, flops), low, high)
        log_d = log_c - flops(u)[0]
        flat = np.broadcast_to(theta, (*u.shape, theta.shape[-1])).reshape(-1, theta.shape[-1])
        x = np.stack([u.ravel(), log_d.ravel()], axis=-1)
        z = self._pointwise(flat, x).reshape(u.shape)
        return Optimum(np.exp(u), np.exp(log_d), np.exp(z))

    def imbalance(
        self, theta: np.ndarray, log_n: np.ndarray, log_c: np.ndarray, flops: FlopsPerToken
    ) -> np.ndarray:
        """Log of what more N gains over what it costs in D at equal C: zero at N*."""
        f, slope = flops(log_n)
        gain, cost = self.elasticities(theta, log_n, log_c - f)
        return np.log(gain) - np.log(slope * cost)

    def bracket(
        self, theta: np.ndarray, log_c: np.ndarray, flops: FlopsPerToken
    ) -> tuple[np.ndarray, np.ndarray]:
        """log N between which `optimal` looks, NaN where there is nothing; theta (..., 1, p)."""
        return np.zeros_like(log_c), log_c.copy()  # N between 1 and C

    @abstractmethod
    def _pointwise(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """log L of theta[i] at x[i] (log variables)."""

    def fixed_limits(self, fixed: Mapping[str, float]) -> dict[str, float]:
        """Solver coordinates of fixed parameters; ValueError for an unknown or impossible value."""
        for name, value in fixed.items():
            self.index(name)  # refuses what the law does not have
            if not np.isfinite(value) or value <= 0:
                raise ValueError(
                    f"{name}={value} cannot be fixed: every parameter is positive"
                    + ("; for a law without E use --law two-term" if name == "E" else "")
                )
        return {k: float(np.log(v)) if k in self.logged else float(v) for k, v in fixed.items()}


def _root(function, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Root of a falling function between low and high, all elements at once (Illinois method)."""
    f_low, f_high = function(low), function(high)
    f_low = np.where(np.isfinite(f_low), f_low, 50.0)
    f_high = np.where(np.isfinite(f_high), f_high, -50.0)
    u, side = 0.5 * (low + high), np.zeros(low.shape)
    for _ in range(60):
        spread = f_low - f_high
        u = np.where(spread > 0, low + (high - low) * f_low / spread, u)
        u = np.clip(u, low, high)
        f = function(u)
        if not ((np.abs(f) > 1e-12) & (high - low > 1e-13)).any():  # without a root: at an end
            break
        left = f > 0
        # An end that stays twice in a row has its value halved, so that both ends close in.
        f_high = np.where(left, np.where(side > 0, 0.5 * f_high, f_high), f)
        f_low = np.where(left, f, np.where(side < 0, 0.5 * f_low, f_low))
        low, high = np.where(left, u, low), np.where(left, high, u)
        side = np.where(left, 1.0, -1.0)
    return u
