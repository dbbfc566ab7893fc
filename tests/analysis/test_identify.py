"""Designs that cannot tell parameters apart are named, with what to train instead."""

import numpy as np
import pytest
from synthetic import Plan, rows_of

from analysis.identify import diagnose
from analysis.laws import CHINCHILLA, GAMMA, PRODUCT, TIED, TWO_TERM
from analysis.rows import Rows


@pytest.mark.parametrize(
    ("plan", "unknown", "text"),
    [
        (Plan(horizons=(20,), ratios=True), {"E", "A", "B", "alpha", "beta", "a"}, "D/N near 20"),
        (Plan(sizes=(5e4, 1e5), cheap=2), {"E", "A", "alpha", "a"}, "2 sizes"),
        (Plan(sizes=(5e4,), cheap=1), {"E", "A", "alpha", "a"}, "1 size,"),
        (Plan(horizons=(1e6, 2e6)), {"E", "B", "beta", "a"}, "2 horizons"),
        (Plan(horizons=(1e6,)), {"E", "B", "beta", "a"}, "1 horizon,"),
        (Plan(sizes=(5e4, 1e5, 2e5), repeats=1), {"E", "A", "alpha", "a"}, "no repeats"),
        (Plan(), set(), ""),
        (Plan(horizons=(10, 20, 40), ratios=True), set(), ""),
    ],
)
def test_designs_that_cannot_tell_are_named(plan, unknown, text):
    design = diagnose(rows_of(plan), CHINCHILLA, {})
    assert set(design.problems) == unknown
    for problem in design.problems.values():
        assert problem.startswith("not identified by this design: ")
        assert text in problem
        assert "; add " in problem or "; train " in problem


def test_what_was_varied_is_counted():
    design = diagnose(rows_of(Plan(holdout=())), CHINCHILLA, {})
    assert (design.sizes, design.horizons, design.trunks, design.df_size) == (6, 5, 12, 9)
    assert design.decades_n == pytest.approx(np.log10(400 / 24))
    assert design.ratio == pytest.approx((0.5e6 / 400e3, 4e6 / 24e3))


def test_a_steeper_line_is_as_blind_as_a_constant_ratio():
    N = np.geomspace(1e5, 1e7, 8)
    D = 3e-3 * N**1.7
    rows = Rows(N, D, 6 * N * D, 1 + 1e3 / N + 1e3 / D, np.arange(8))
    design = diagnose(rows, CHINCHILLA, {})
    assert "proportional to N^1.7" in design.problems["alpha"]
    assert design.spread < 1e-9


@pytest.mark.parametrize("law", [GAMMA, PRODUCT, TIED, TWO_TERM], ids=lambda law: law.name)
def test_problems_are_those_of_the_laws_own_parameters(law):
    ray = diagnose(rows_of(Plan(horizons=(20,), ratios=True)), law, {})
    assert set(ray.problems) == {*law.parameters, "a"}
    few = diagnose(rows_of(Plan(sizes=(5e4, 1e5), cheap=2)), law, {})
    assert set(few.problems) <= {*law.parameters, "a"}
    assert not diagnose(rows_of(Plan()), law, {}).problems


def test_a_fixed_parameter_helps_the_design():
    rows = rows_of(Plan(sizes=(5e4, 1e5, 2e5), repeats=1, holdout=()))
    assert "alpha" in diagnose(rows, CHINCHILLA, {}).problems
    assert not diagnose(rows, CHINCHILLA, {"E": 1.3}).problems
    assert not diagnose(rows, TWO_TERM, {}).problems
    ray = diagnose(rows_of(Plan(horizons=(20,), ratios=True)), CHINCHILLA, {"E": 1.3})
    assert "E" not in ray.problems
