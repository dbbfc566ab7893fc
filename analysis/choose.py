"""Which runs to buy: the greedy choice that cuts a prediction's error, and two plain ones.

The greedy rule takes, one after the other, the purchase with the largest fall of the mean square
error per square root of its FLOPs (Fedorov 1972 for V-optimality; the root stands between the fall
itself, which buys the dearest run, and the fall per FLOP, which spends all on the cheapest).
"""

from collections.abc import Sequence

import numpy as np

from analysis.market import State

POWER = 0.5
MOST = 1000  # purchases of one choice
FREE = 1.0  # FLOPs below which a run costs nothing


def greedy(state: State, budget: float) -> State:
    """Buy while something fits the budget and helps."""
    while len(state.bought) < MOST:
        options = [o for o in state.options() if state.spent + o[3] <= budget * (1 + 1e-9)]
        if not options:
            break
        worth = state.gains(options) / np.maximum([o[3] for o in options], FREE) ** POWER
        best = int(np.argmax(worth))
        if worth[best] <= 0:  # every further run would mislead more than it tells
            break
        state.buy(*options[best][:3])
    return state


def in_order(state: State, budget: float, order: Sequence[tuple[int, int]]) -> State:
    """Buy single runs (kind, cell) in a given order, each where it fits; then a further seed.

    Every round trains one new trunk of each kind, joined by those of its cells that fit.
    """
    while any(state.copies):
        own: dict[int, int] = {}
        before = len(state.bought)
        for kind, cell in order:
            trunk = own.get(kind, -1)
            if trunk < 0 and not state.copies[kind]:
                continue
            if state.spent + state.cost(kind, trunk, (cell,)) > budget * (1 + 1e-9):
                continue
            state.buy(kind, trunk, (cell,))
            own[kind] = state.bought[-1].trunk
        if len(state.bought) in (before, MOST) or len(state.bought) > MOST:
            break
    return state


def cheapest_first(state: State, budget: float) -> State:
    """The cheapest runs first, every cell once before any twice."""
    market = state.market
    order = [(k, c) for k, kind in enumerate(market.kinds) for c in kind.cells]
    order.sort(key=lambda o: market.D[o[1]] * market.kinds[o[0]].per_token)
    return in_order(state, budget, order)


def at_random(state: State, budget: float, seed: int) -> State:
    """Runs in a random order, every cell once before any twice."""
    order = [(k, c) for k, kind in enumerate(state.market.kinds) for c in kind.cells]
    np.random.default_rng(seed).shuffle(order)
    return in_order(state, budget, order)
