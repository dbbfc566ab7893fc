"""The choice of runs against whole grids, cheapest-first and random: simulated and replayed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import public, replay
from analysis.choose import at_random, cheapest_first, greedy
from analysis.flops import FlopsPerToken
from analysis.information import Basis, Noise
from analysis.laws import CHINCHILLA
from analysis.market import Kind, Market, State
from analysis.replay import Pool, lines, replayed
from analysis.simulated import TRUTH, simulated
from analysis.targets import Target

DATA = Path(__file__).parents[2] / "../shared/data"


@pytest.fixture(scope="module")
def exact() -> dict[tuple[str, str], dict]:
    """The simulated benchmark where the form is exact and taken as exact."""
    rows = simulated(refits=120, cases=((0.0, 0.0),))
    return {(r["grid"], r["choice"]): r for r in rows}


@pytest.mark.parametrize("grid", ["54 runs", "9 trunks"])
def test_a_tenth_of_the_flops_reaches_the_full_grids_standard_error(exact, grid: str) -> None:
    chosen, full = exact[grid, "greedy"], exact[grid, "full grid"]
    assert chosen["flops"] <= 0.1
    assert chosen["sd"] < 1.1 * full["sd"]
    for rival in ("cheapest first", "random"):
        assert chosen["sd"] < 0.7 * exact[grid, rival]["sd"]
        assert chosen["rms"] < 0.8 * exact[grid, rival]["rms"]


def test_refits_scatter_as_the_information_says(exact) -> None:
    for key in (("54 runs", "full grid"), ("54 runs", "greedy"), ("9 trunks", "greedy")):
        assert exact[key]["rms"] == pytest.approx(exact[key]["sd"], rel=0.2), key


@pytest.mark.slow
def test_a_form_that_is_wrong_punishes_the_choice_that_trusts_it() -> None:
    rows = simulated(refits=150, cases=((0.01, 0.0), (0.01, 0.01)))
    for grid in ("54 runs", "9 trunks"):
        trusting, careful = (
            r["rms"] for r in rows if r["grid"] == grid and r["choice"] == "greedy"
        )
        assert careful < 0.8 * trusting


def market(misfit: float, copies: int = 50) -> Market:
    """Three sizes with four horizons each, on trunks that share all but 20 %."""
    N = np.repeat([1e6, 4e6, 16e6], 4)
    D = N * np.tile([5.0, 10.0, 20.0, 40.0], 3)
    reach = (1e17,)
    best = CHINCHILLA.optimal(TRUTH, np.array(reach), FlopsPerToken())
    basis = Basis.of(CHINCHILLA, TRUTH, np.append(N, best.N), np.append(D, best.D))
    goal = basis.target(Target("loss", "optimal-loss", reach), FlopsPerToken())
    cells = [tuple(range(i, i + 4)) for i in (0, 4, 8)]
    kinds = tuple(Kind(6 * float(N[c[0]]), c, copies) for c in cells)
    return Market(basis, Noise(misfit=misfit), basis.rows(N, D), D, kinds, goal[None], 0.2)


MARKET = market(0.0)


def test_the_first_purchase_is_the_best_single_one() -> None:
    sale = market(0.01, copies=1)
    state = State.of(sale)
    options = state.options()
    worth = []
    for kind, trunk, cells, cost in options:
        tried = State.of(sale)
        tried.buy(kind, trunk, cells)
        assert tried.spent == pytest.approx(cost)
        worth.append((state.sd()[1] ** 2 - tried.sd()[1] ** 2) / cost**0.5)
    assert state.gains(options) == pytest.approx(
        [w * o[3] ** 0.5 for w, o in zip(worth, options, strict=True)]
    )
    bought = greedy(State.of(sale), 1e30).bought[0]
    best = options[int(np.argmax(worth))]
    assert (bought.kind, bought.cells) == (best[0], best[2])


@settings(max_examples=30, deadline=None)
@given(st.permutations([0, 1, 2, 3]), st.floats(0.0, 1.0))
def test_a_trunk_costs_the_same_in_whatever_order_its_horizons_are_bought(
    order: list[int], cooldown: float
) -> None:
    sale = replace(MARKET, cooldown=cooldown)
    state, trunk = State.of(sale), -1
    for cell in order:
        state.buy(0, trunk, (cell,))
        trunk = 0
    D = sale.D[:4]
    alone = (1 - cooldown) * D.max() + cooldown * D.sum()
    assert state.spent == pytest.approx(6e6 * alone)
    assert len(state.trunks) == 1


def test_rows_bought_together_tell_what_they_tell_one_by_one() -> None:
    sale = market(0.01)
    together, single = State.of(sale), State.of(sale)
    together.buy(1, -1, (4, 6, 7))
    trunk = -1
    for cell in (7, 4, 6):
        single.buy(1, trunk, (cell,))
        trunk = 0
    assert single.sd() == pytest.approx(together.sd(), rel=1e-9)
    known = State.of(sale, (sale.table[[4, 6, 7]], np.zeros(3)))
    assert known.sd() == pytest.approx(together.sd(), rel=1e-9)


@pytest.mark.parametrize("choose", [greedy, cheapest_first, lambda s, b: at_random(s, b, 1)])
def test_no_choice_spends_more_than_its_budget(choose) -> None:
    for budget in (1e12, 3e14, 1e16):
        state = choose(State.of(market(0.01)), budget)
        assert state.spent <= budget * (1 + 1e-9)
        assert state.spent == pytest.approx(sum(p.cost for p in state.bought))


def test_a_misfit_keeps_the_choice_from_repeating_tiny_runs() -> None:
    budget = 1e16
    exact, wrong = (greedy(State.of(market(m)), budget) for m in (0.0, 0.01))
    smallest = [sum(t.kind == 0 for t in s.trunks) for s in (exact, wrong)]
    assert smallest[1] < 0.5 * smallest[0]


def pool_or_skip(name: str) -> tuple[Pool, public.PublicSet]:
    folder = public.folder(DATA if DATA.is_dir() else None)
    if folder is None:
        pytest.skip("public data not found (../shared/data or SCALING_DATA)")
    found = public.read(name, folder)
    return Pool.of(found.rows, replay.GRIDS[name]), found


def test_the_replayed_choice_is_deterministic_and_inside_the_budget() -> None:
    pool, found = pool_or_skip("gemstones_cool_end")
    test = found.rows.take(found.rows.C.max() / found.rows.C < 3)
    budget = 0.1 * pool.cost
    first, again = pool.greedy(test, budget), pool.greedy(test, budget)
    assert np.array_equal(first, again)
    assert len(set(first.tolist())) == len(first)
    spent = 0.0
    for kind in pool.kinds:
        cells = [c for c in kind.cells if c in set(first.tolist())]
        D = np.sort(pool.rows.D[cells])
        spent += kind.per_token * float((D - 0.9 * np.append(0, D[:-1])).sum()) if cells else 0
    assert spent <= budget * (1 + 1e-9)


def test_replayed_rows_are_json_and_the_default_prediction_gains_by_the_choice() -> None:
    pool_or_skip("gemstones_cool_end")
    folder = public.folder(DATA if DATA.is_dir() else None)
    assert folder is not None
    rows = replayed(folder, draws=2, grids=("gemstones_cool_end",))
    json.dumps(rows, allow_nan=False)
    error = {(r["choice"], r["fit"]): r["error"] for r in rows}
    assert error["greedy", "default"] < error["cheapest first", "default"]
    assert error["greedy", "default"] < error["random", "default"]
    text = "\n".join(lines(rows))
    assert "gemstones_cool_end" in text
    assert "times the full grid" in text
