"""Runs on sale: what they cost, what they tell, and what is known after buying some.

Runs are rows on trunks. A horizon leaves its trunk c·D before its end, so a trunk with horizons
D1 < D2 < ... costs, in units of the FLOPs per token, the sum of D_i - (1-c)·D_(i-1): c = 1, every
run on its own; c = 0, horizons are checkpoints of one run, and those that it passed cost nothing.
What is bought is trained together, so a shorter horizon joins a planned trunk for c·D.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from analysis.gls import Trunks
from analysis.information import Basis, Noise

Option = tuple[int, int, tuple[int, ...], float]  # kind, trunk (-1: a new one), cells, cost


@dataclass(frozen=True)
class Kind:
    """Trunks that can be bought: FLOPs per token, their cells by ascending D, how many trunks.

    A cell is the index of a row in the market's table.
    """

    per_token: float
    cells: tuple[int, ...]
    copies: int


@dataclass(frozen=True)
class Purchase:
    """`cells` added to trunk `trunk` (a new one where `new`), and what is known after it.

    noise_sd, total_sd: of the target without and with the misfit, in its unit.
    """

    kind: int
    trunk: int
    new: bool
    cells: tuple[int, ...]
    cost: float
    noise_sd: float
    total_sd: float


@dataclass
class _Trunk:
    kind: int
    trained: tuple[int, ...]
    held: list[int]  # trained, then planned
    total: np.ndarray  # sum of its rows' columns


@dataclass(frozen=True)
class Market:
    """All that can be bought: `table` (cells, columns) of a basis, `D` of its cells, kinds.

    targets (t, columns): the choice lowers the mean of their variances. cooldown: c.
    """

    basis: Basis
    noise: Noise
    table: np.ndarray
    D: np.ndarray
    kinds: tuple[Kind, ...]
    targets: np.ndarray
    cooldown: float

    def cost(self, kind: int, planned: Sequence[int], trained: Sequence[int] = ()) -> float:
        """FLOPs of the cells `planned` on a trunk that has the cells `trained`."""
        D = [float(self.D[i]) for i in (*trained, *planned)]
        passed, total = max(D[: len(trained)], default=0.0), 0.0
        for d in D[len(trained) :]:
            if d > passed or self.cooldown > 0:
                shorter = max((other for other in D if other < d), default=0.0)
                total += d - (1 - self.cooldown) * shorter
        return total * self.kinds[kind].per_token


@dataclass
class State:
    """What is known so far, and the error that generalised least squares would make from it.

    information: X'V^-1 X over the law's columns X, V the noise's covariance; misled: F'V^-1 X, F
    the misfit's columns. The fit knows of no misfit, so u = information^-1 g turns the misfit of
    the rows into an error of the target g: its mean square is g'u + misfit²·|misled u - f|², f the
    misfit's columns at the target. Rows that the law trusts too much make it larger.
    """

    market: Market
    information: np.ndarray
    misled: np.ndarray
    trunks: list[_Trunk]
    copies: list[int]
    spent: float = 0.0
    bought: list[Purchase] = field(default_factory=list)

    @classmethod
    def of(
        cls, market: Market, known: tuple[np.ndarray, np.ndarray] | None = None,
        open_trunks: Sequence[tuple[int, Sequence[int]]] = (),
    ) -> "State":  # fmt: skip
        """From the rows that exist: their columns and trunk labels.

        open_trunks: (kind, cells held) of those among them that further horizons can join.
        """
        p, noise = market.basis.p, market.noise
        information = np.diag(market.basis.precision())
        misled = np.zeros((market.table.shape[1] - p, p))
        if known is not None:
            M = Trunks.of(known[1]).moments(known[0], noise.rho2) / noise.row**2
            information, misled = information + M[:p, :p], M[p:, :p]
        trunks = [
            _Trunk(kind, tuple(held), list(held), market.table[list(held)].sum(0))
            for kind, held in open_trunks
        ]
        return cls(market, information, misled, trunks, [k.copies for k in market.kinds])

    def sd(self) -> tuple[float, float]:
        """Root mean square error of the targets by noise alone, and with the misfit."""
        noise, misfit = self._errors(self.information[None], self.misled[None])
        return float(noise[0] ** 0.5), float((noise[0] + misfit[0]) ** 0.5)

    def _errors(self, information: np.ndarray, misled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean squares by noise and by misfit for many states (s, p, p), (s, k, p)."""
        p = self.market.basis.p
        g, f = self.market.targets[:, :p].T, self.market.targets[:, p:].T
        u = np.linalg.solve(information, np.broadcast_to(g, (len(information), *g.shape)))
        noise = np.einsum("pt,spt->s", g, u)
        misfit = self.market.noise.misfit**2 * ((misled @ u - f) ** 2).sum((1, 2))
        return noise / g.shape[1], misfit / g.shape[1]

    def rows_bought(self) -> tuple[np.ndarray, np.ndarray]:
        """Cells bought so far, in order, and the trunk of each."""
        cells = [(c, b.trunk) for b in self.bought for c in b.cells]
        return np.array([c for c, _ in cells], int), np.array([t for _, t in cells], int)

    def _rows(self, trunk: int, cells: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """New rows given what the trunk (-1: a new one) has: their columns and covariance.

        A trunk's m earlier rows tell of its effect; trunk²/(1+m·rho²) is what stays unknown.
        """
        A, noise = self.market.table[list(cells)], self.market.noise
        left = noise.rho2
        if trunk >= 0 and self.trunks[trunk].held:
            one = self.trunks[trunk]
            left = noise.rho2 / (1 + len(one.held) * noise.rho2)
            A = A - left * one.total
        return A, noise.row**2 * (np.eye(len(cells)) + left)

    def cost(self, kind: int, trunk: int, cells: Sequence[int]) -> float:
        """FLOPs that the cells add to the plan for a trunk (-1: a new one)."""
        if trunk < 0:
            return self.market.cost(kind, cells)
        one = self.trunks[trunk]
        planned = one.held[len(one.trained) :]
        before = self.market.cost(kind, planned, one.trained)
        return max(self.market.cost(kind, (*planned, *cells), one.trained) - before, 0.0)

    def buy(self, kind: int, trunk: int, cells: Sequence[int]) -> None:
        """Add the cells to the trunk (-1: a new one) and learn from them."""
        cost = self.cost(kind, trunk, cells)
        A, R = self._rows(trunk, cells)
        p = self.market.basis.p
        VX = np.linalg.solve(R, A[:, :p])
        self.information = self.information + A[:, :p].T @ VX
        self.misled = self.misled + A[:, p:].T @ VX
        new = trunk < 0
        if new:
            self.copies[kind] -= 1
            self.trunks.append(_Trunk(kind, (), [], np.zeros(A.shape[1])))
            trunk = len(self.trunks) - 1
        self.trunks[trunk].held.extend(cells)
        self.trunks[trunk].total += self.market.table[list(cells)].sum(0)
        self.spent += cost
        self.bought.append(Purchase(kind, trunk, new, tuple(cells), cost, *self.sd()))

    def options(self) -> list[Option]:
        """What can be bought now.

        Of the cells that a trunk lacks, the shortest k together for every k, and each alone.
        """
        found = []
        places = [(k, -1, ()) for k, copies in enumerate(self.copies) if copies > 0]
        places += [(t.kind, i, tuple(t.held)) for i, t in enumerate(self.trunks)]
        for kind, trunk, held in places:
            left = [c for c in self.market.kinds[kind].cells if c not in held]
            chosen = [tuple(left[: k + 1]) for k in range(len(left))]
            chosen += [(c,) for c in left[1:]] if self.market.cooldown > 0 else []
            found += [(kind, trunk, c, self.cost(kind, trunk, c)) for c in chosen]
        return found

    def gains(self, options: Sequence[Option]) -> np.ndarray:
        """Fall of the targets' mean square error by each option, all of one length at once."""
        p, gain = self.market.basis.p, np.zeros(len(options))
        now = self.sd()[1] ** 2
        lengths = np.array([len(cells) for _, _, cells, _ in options])
        for m in np.unique(lengths):
            here = np.flatnonzero(lengths == m)
            made = [self._rows(*options[int(i)][1:3]) for i in here]
            A, R = np.stack([a for a, _ in made]), np.stack([r for _, r in made])
            VX = np.linalg.solve(R, A[:, :, :p])
            M = np.swapaxes(A, 1, 2) @ VX
            noise, misfit = self._errors(self.information + M[:, :p], self.misled + M[:, p:])
            gain[here] = now - noise - misfit
        return gain
