"""What the solver needs of a model of the loss: log L over rows, and its derivatives.

R problems (resamples, starts, profile points) on n rows are evaluated at once: their coordinates
phi have shape (R, p).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Form(ABC):
    """A parametric form of log L, which Newton's method can fit (`analysis.newton`)."""

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


def outer_sums(V: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """sum over rows of weight·v v', (R, rows, p) and (R, rows) to (R, p, p)."""
    return np.swapaxes(V * weight[..., None], 1, 2) @ V
