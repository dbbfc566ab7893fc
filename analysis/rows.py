"""Observations of one study as arrays: parameters N, tokens D, compute C, loss L."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SAME = 0.01  # sizes, and horizons, closer than 1 % count as one (rounding to whole steps)


@dataclass(frozen=True)
class Rows:
    """Observations as arrays of one length: N parameters, D tokens, C FLOPs, L loss.

    `U`: unique tokens, None where they are not known for every row.
    """

    N: np.ndarray
    D: np.ndarray
    C: np.ndarray
    L: np.ndarray
    trunk: np.ndarray  # int code; rows of one trunk share their noise
    U: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.N)

    def take(self, mask: np.ndarray) -> "Rows":
        """The rows where `mask` is true."""
        U = None if self.U is None else self.U[mask]
        return Rows(self.N[mask], self.D[mask], self.C[mask], self.L[mask], self.trunk[mask], U)

    def variables(self, letters: Sequence[str]) -> tuple[np.ndarray, ...]:
        """The arrays of those letters; unique tokens that are not known count as no repetition."""
        D = self.D
        return tuple(
            D if letter == "U" and self.U is None else getattr(self, letter) for letter in letters
        )

    @property
    def size(self) -> np.ndarray:
        """Index of the row's size: values of N within 1 % count as one size."""
        return groups(np.log(self.N), SAME)

    @property
    def horizon(self) -> np.ndarray:
        """Index of the row's token budget: values of D within 1 % count as one horizon."""
        return groups(np.log(self.D), SAME)


def groups(log_values: np.ndarray, width: float) -> np.ndarray:
    """Index of each value's group: a group spans at most `width` from its least value."""
    order = np.argsort(log_values)
    ascending, starts, i = log_values[order], [], 0
    while i < len(ascending):
        starts.append(i)
        i = int(np.searchsorted(ascending, ascending[i] + width, side="right"))
    out = np.empty(len(order), int)
    out[order] = np.searchsorted(starts, np.arange(len(order)), side="right") - 1
    return out


def distinct(values: np.ndarray) -> np.ndarray:
    """Distinct values in ascending order; neighbours within 1 % are one, their median."""
    ordered = np.sort(values)
    parts = np.split(ordered, np.flatnonzero(np.diff(np.log(ordered)) > SAME) + 1)
    return np.array([np.median(part) for part in parts])
