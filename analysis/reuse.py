"""What repetition is worth: k passes count as g(k; R) = 1 + R·(1 - exp(-(k - 1)/R)) of them.

After R extra passes one more is worth 1/e of a fresh one, and g never exceeds 1 + R (Muennighoff et
al. 2023, Scaling Data-Constrained Language Models, eq. 5). Ratios k >= 1 and R are handled as
logarithms; log g = log k + η, η <= 0.
"""

import numpy as np

REUSE_LIMITS = (0.03, 3e4)  # of R; beyond, a repeat is worth nothing, or as much as fresh data
WIDEST = 10.0  # an interval of R that spans more than this factor identifies nothing
FAR = 60.0  # log of a ratio k at which g has long reached its plateau


def loss_of_reuse(log_k: np.ndarray, log_r: np.ndarray) -> np.ndarray:
    """η = log(g/k): effective over actual amount, in logs."""
    return np.log(_parts(log_k, log_r)[4]) - log_k


def log_worth(log_k: np.ndarray, log_r: np.ndarray) -> np.ndarray:
    """log of d log g / d log k: what one more is worth, as a share of a fresh one; 0 at k = 1."""
    k, _, s, _, g = _parts(log_k, log_r)
    return np.log(k) - s - np.log(g)


def reuse_slopes(log_k: np.ndarray, log_r: np.ndarray) -> tuple[np.ndarray, ...]:
    """η; its derivatives by log k, log R; its second derivatives k k, k R, R R."""
    k, r, s, fall, g = _parts(log_k, log_r)
    q = fall + 1
    h, by_r = k * q / g, -r * (fall + s * q) / g
    return (
        np.log(g) - log_k, h - 1, by_r,
        h * (1 - k / r - h), h * (s - by_r), by_r - r * s**2 * q / g - by_r**2,
    )  # fmt: skip


def reuse_note(name: str, low: float | None, high: float | None) -> str:
    """Why R_D or R_N must not be quoted, from the ends of its interval; "" where it may be.

    An open end is None. Both ends within a factor of 10 are asked for: less precise, the interval
    holds "repeats are nearly worthless" beside "repeats are nearly fresh".
    """
    if low is not None and high is not None and high <= WIDEST * low:
        return ""
    ends = ["open" if end is None else f"{end:.3g}" for end in (low, high)]
    what = "more passes over the data" if name == "R_D" else "larger models on few unique tokens"
    return (
        f"{name} is not identified: its interval ({ends[0]} to {ends[1]}) spans more than a factor "
        f"of {WIDEST:g}; train {what}, and quote losses at a number of passes, not {name}"
    )


def _parts(log_k: np.ndarray, log_r: np.ndarray) -> tuple[np.ndarray, ...]:
    """k, R, s = (k - 1)/R, exp(-s) - 1 and g."""
    k, r = np.exp(np.minimum(log_k, FAR)), np.exp(log_r)
    s = (k - 1) / r
    fall = np.expm1(-s)
    return k, r, s, fall, 1 - r * fall
