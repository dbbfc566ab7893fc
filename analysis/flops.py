"""Training FLOPs per token along a ladder of sizes."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import PchipInterpolator

FLATTEST = 0.05  # least slope d log f / d log N beyond the ladder: a flat end would make N free


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
        inside = np.clip(log_n, self.log_n[0], self.log_n[-1])
        slope = np.maximum(self._slope(inside), FLATTEST)
        return self._spline(inside) + slope * (log_n - inside), slope

    @cached_property
    def _spline(self) -> PchipInterpolator:
        return PchipInterpolator(self.log_n, self.log_f)

    @cached_property
    def _slope(self):
        return self._spline.derivative()

    @classmethod
    def from_rows(cls, N: np.ndarray, D: np.ndarray, C: np.ndarray, label: str) -> "FlopsPerToken":
        """The ladder's own FLOPs per token: median of C/D at each distinct N."""
        sizes = np.unique(N)
        f = np.maximum.accumulate([np.median(C[n == N] / D[n == N]) for n in sizes])
        rising = np.concatenate([[True], np.diff(f) > 0])  # equal cost at two N: keep the first
        return cls(tuple(np.log(sizes[rising])), tuple(np.log(f[rising])), label)
