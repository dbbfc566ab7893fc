"""What the solver needs of a model of the loss: log L over rows, its derivatives, coordinates.

The solver works on log L in coordinates phi: logarithms of the parameters in `logged`, the others
(exponents) as they are, and every variable as its logarithm minus a centre. R problems (resamples,
starts, profile points) on n rows are evaluated at once: phi has shape (R, p).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Form(ABC):
    """A parametric form of log L, which Newton's method can fit (`analysis.newton`).

    parameters: names, in the order of every vector `theta`; logged: those whose logarithm the
    solver works on.
    """

    @cached_property
    @abstractmethod
    def parameters(self) -> tuple[str, ...]: ...

    @cached_property
    @abstractmethod
    def logged(self) -> tuple[str, ...]: ...

    def index(self, parameter: str) -> int:
        """Position of a parameter in `theta`."""
        return self.parameters.index(parameter)

    @abstractmethod
    def forward(self, features: Any, phi: np.ndarray) -> tuple[np.ndarray, Any]:
        """log L (R, rows) and a state for the derivatives."""

    @abstractmethod
    def jacobian(self, features: Any, state: Any) -> np.ndarray:
        """d log L / d phi, shape (R, rows, p)."""

    def linearised(self, features: Any, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log L (R, rows) and d log L / d phi (R, rows, p)."""
        z, state = self.forward(features, phi)
        return z, self.jacobian(features, state)

    @abstractmethod
    def second_order(
        self, features: Any, state: Any, psi: np.ndarray, inner: np.ndarray, w: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Sums over rows, from psi, inner, w (R, rows).

        sum psi·J (R, p); sum inner·J J' + psi·(second derivative of log L) (R, p, p); and two
        scales, sum w·J² and sum w·|J| (or bounds above them), each (R, p).
        """

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
