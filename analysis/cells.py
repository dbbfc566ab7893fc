"""Starting points: the linear part of a law solved at every cell of a grid of exponents."""

from itertools import combinations, product

import numpy as np
from scipy import ndimage

MAX_STARTS = 6


def nonnegative(
    G: np.ndarray, b: np.ndarray, total: float, fixed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Non-negative least squares from normal equations at many cells at once.

    G (cells, K, K), b (cells, K), `total` the sum of squares of the target, fixed (K) with nan
    where free. Returns coefficients (cells, K) and residual sums of squares (cells). The full set
    of columns first; smaller sets only in cells where it has a negative coefficient.
    """
    held = ~np.isnan(fixed)
    free = np.flatnonzero(~held)
    c = np.where(held, fixed, 0.0) * np.ones((len(G), 1))
    h = fixed[held]
    b = b - np.einsum("ckm,m->ck", G[:, :, held], h)
    # |y - X h|² = y'y - 2 h'b - h'G h, with b already reduced by G h.
    base = total - 2 * b[:, held] @ h - np.einsum("k,ckm,m->c", h, G[:, held][:, :, held], h)
    best = np.full(len(G), np.inf) if len(free) else base.copy()
    todo = np.arange(len(G))
    for size in range(len(free), 0, -1):
        for subset in combinations(free, size):
            s = np.array(subset)
            Gs = G[np.ix_(todo, s, s)]
            scale = 1 / np.sqrt(np.einsum("ckk->ck", Gs))
            Gs = Gs * scale[:, :, None] * scale[:, None, :] + 1e-12 * np.eye(size)
            cs = np.linalg.solve(Gs, (b[np.ix_(todo, s)] * scale)[..., None])[..., 0] * scale
            rss = base[todo] - np.einsum("ck,ck->c", cs, b[np.ix_(todo, s)])
            take = (cs >= 0).all(1) & (rss < best[todo])
            cells = todo[take]
            best[cells] = rss[take]
            c[np.ix_(cells, free)] = 0.0
            c[np.ix_(cells, s)] = cs[take]
        if size == len(free):
            todo = np.flatnonzero(~np.isfinite(best))
        if not len(todo):
            break
    return c, best


def chosen_cells(rss: np.ndarray) -> list[int]:
    """Flat indices of the best local minima of a grid and of the best cell of each quadrant."""
    cross = ndimage.generate_binary_structure(rss.ndim, 1)
    local = rss <= ndimage.minimum_filter(rss, footprint=cross, mode="constant", cval=np.inf)
    flat = np.flatnonzero(local)
    chosen = list(flat[np.argsort(rss.ravel()[flat], kind="stable")][:MAX_STARTS])
    halves = [
        (slice(0, -(-s // 2)), slice(s // 2, None)) if s > 1 else (slice(None),) for s in rss.shape
    ]
    place = np.arange(rss.size).reshape(rss.shape)
    for quadrant in product(*halves):
        chosen.append(place[quadrant].ravel()[int(np.argmin(rss[quadrant]))])
    return list(dict.fromkeys(int(i) for i in chosen))
