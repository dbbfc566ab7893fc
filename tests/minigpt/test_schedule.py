"""Rate factors and horizons: ends, bounds, and a trunk that knows no horizon."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.config import ScheduleConfig
from minigpt.schedule import Horizon, branch_factor, horizon, trunk_factor

BATCH = 100


@st.composite
def schedules(draw, kinds=("wsd", "cosine")):
    """Any schedule, with the settings of its own kind only."""
    kind = draw(st.sampled_from(kinds))
    warmup_tokens = draw(st.integers(0, 20_000))
    if kind == "cosine":
        return ScheduleConfig(
            kind=kind, warmup_tokens=warmup_tokens, final_fraction=draw(st.floats(0, 0.9))
        )
    power = draw(st.booleans())
    return ScheduleConfig(
        kind=kind,
        warmup_tokens=warmup_tokens,
        trunk="power" if power else "constant",
        power=draw(st.floats(0.05, 1.0)),
        power_tokens=draw(st.integers(1, 100_000)) if power else None,
        cooldown=draw(st.sampled_from(["1-sqrt", "linear"])),
        cooldown_fraction=draw(st.floats(0.01, 0.99)),
    )


def test_warmup_rises_in_equal_steps_to_the_peak():
    schedule = ScheduleConfig(warmup_tokens=4 * BATCH)
    factors = [trunk_factor(schedule, step, BATCH) for step in range(7)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1])


def test_without_warmup_the_first_step_is_at_the_peak():
    assert trunk_factor(ScheduleConfig(), 0, BATCH) == 1.0


def test_constant_trunk_stays_at_the_peak():
    schedule = ScheduleConfig(warmup_tokens=4 * BATCH)
    assert {trunk_factor(schedule, step, BATCH) for step in range(4, 10_000, 7)} == {1.0}


def test_power_trunk_falls_as_stated():
    schedule = ScheduleConfig(trunk="power", power=0.5, power_tokens=10 * BATCH)
    assert [trunk_factor(schedule, step, BATCH) for step in range(10)] == [1.0] * 10
    assert trunk_factor(schedule, 39, BATCH) == pytest.approx(0.5)  # 40 batches: (10/40)^½
    assert trunk_factor(schedule, 89, BATCH) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("cooldown", "shape"), [("1-sqrt", lambda x: 1 - math.sqrt(x)), ("linear", lambda x: 1 - x)]
)
def test_cooldown_leaves_at_the_trunks_rate_and_ends_near_zero(cooldown, shape):
    schedule = ScheduleConfig(cooldown=cooldown)
    at = Horizon(start=800, stop=1000)
    factors = [branch_factor(schedule, step, at, BATCH) for step in range(at.start, at.stop)]
    assert factors == pytest.approx([shape(i / 200) for i in range(200)])
    assert factors[0] == trunk_factor(schedule, 800, BATCH)
    # The step after the last would have rate zero: the whole cooldown is used, none is wasted.
    assert branch_factor(schedule, at.stop, at, BATCH) == 0.0


def test_cooldown_multiplies_a_power_trunk():
    schedule = ScheduleConfig(trunk="power", power_tokens=100 * BATCH, cooldown="linear")
    at = Horizon(start=800, stop=1000)
    expected = math.sqrt(100 / 901) * 0.5
    assert branch_factor(schedule, 900, at, BATCH) == pytest.approx(expected)


def test_cosine_from_the_peak_through_the_middle_to_its_end():
    schedule = ScheduleConfig(kind="cosine", final_fraction=0.1)
    at = horizon(schedule, 1000 * BATCH, BATCH)
    assert at == Horizon(start=0, stop=1000)
    assert branch_factor(schedule, 0, at, BATCH) == 1.0
    assert branch_factor(schedule, 500, at, BATCH) == pytest.approx(0.55)
    assert branch_factor(schedule, 250, at, BATCH) == pytest.approx(
        0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2
    )
    assert branch_factor(schedule, 999, at, BATCH) == pytest.approx(0.1, abs=1e-5)


def test_cosine_warms_up_too():
    schedule = ScheduleConfig(kind="cosine", warmup_tokens=9 * BATCH)
    assert branch_factor(schedule, 0, Horizon(start=0, stop=1000), BATCH) == pytest.approx(0.1)


@settings(max_examples=200)
@given(schedules(), st.integers(1, 3_000), st.integers(1, 5_000))
def test_factors_lie_in_zero_to_one(schedule, stop, batch_tokens):
    at = horizon(schedule, stop * batch_tokens, batch_tokens)
    for step in {0, at.start // 2, max(0, at.start - 1)}:
        assert 0 < trunk_factor(schedule, step, batch_tokens) <= 1
    for step in {at.start, (at.start + at.stop) // 2, at.stop - 1}:
        assert 0 < branch_factor(schedule, step, at, batch_tokens) <= 1


@settings(max_examples=100)
@given(schedules(), st.integers(2, 3_000))
def test_branch_never_rises_after_warmup(schedule, stop):
    at = horizon(schedule, stop * BATCH, BATCH)
    first = max(at.start, schedule.warmup_tokens // BATCH)
    factors = [branch_factor(schedule, step, at, BATCH) for step in range(first, at.stop)]
    assert all(b <= a for a, b in itertools.pairwise(factors))


@settings(max_examples=100)
@given(schedules(("wsd",)), schedules(("wsd",)), st.integers(0, 10**6))
def test_trunk_rate_depends_on_nothing_of_its_branches(schedule, other, step):
    branches = {key: getattr(other, key) for key in ("cooldown", "cooldown_fraction")}
    changed = schedule.model_copy(update=branches)
    assert trunk_factor(changed, step, BATCH) == trunk_factor(schedule, step, BATCH)


@settings(max_examples=100)
@given(schedules(("wsd",)), st.integers(2, 3_000), st.integers(2, 3_000))
def test_two_branches_leave_the_trunk_at_its_own_rate(schedule, stop1, stop2):
    for stop in (stop1, stop2):
        at = horizon(schedule, stop * BATCH, BATCH)
        assert branch_factor(schedule, at.start, at, BATCH) == trunk_factor(
            schedule, at.start, BATCH
        )


@settings(max_examples=200)
@given(schedules(), st.integers(1, 10**9), st.integers(1, 10**6))
def test_horizons_round_to_the_nearest_step_and_always_branch(schedule, tokens, batch_tokens):
    at = horizon(schedule, tokens, batch_tokens)
    assert 0 <= at.start < at.stop
    assert at.stop == 1 or abs(at.stop * batch_tokens - tokens) * 2 <= batch_tokens
    if schedule.kind == "cosine":
        assert at.start == 0
    else:
        cooldown = at.stop - at.start
        assert cooldown == 1 or abs(cooldown - schedule.cooldown_fraction * at.stop) <= 0.5 + 1e-9


def test_horizon_by_hand():
    schedule = ScheduleConfig(cooldown_fraction=0.2)
    assert horizon(schedule, 1000 * BATCH + 49, BATCH) == Horizon(start=800, stop=1000)
    assert horizon(schedule, 1000 * BATCH + 50, BATCH) == Horizon(start=801, stop=1001)
    assert horizon(schedule, 1, BATCH) == Horizon(start=0, stop=1)
