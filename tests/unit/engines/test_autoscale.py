"""The rule for the number of engines: bounds, directions, no oscillation."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayswift.engines.pool.autoscale import Meter, Rule, Scale, Signals, look

RULE = Rule(least=1, most=16)
STARVED = Signals(trainer_waits=0.6, engines_idle=0.0, occupancy=1.2, joining=0)
BALANCED = Signals(trainer_waits=0.1, engines_idle=0.1, occupancy=0.8, joining=0)
IDLE = Signals(trainer_waits=0.0, engines_idle=0.6, occupancy=0.4, joining=0)


def after(scale: Scale, signals: Signals, seconds: float, rule: Rule = RULE, every_s: float = 1.0) -> Scale:
    """The same signals for so long."""
    now = scale.looked_at or 0.0
    for number in range(int(seconds / every_s) + 1):
        scale = look(rule, scale, signals, now + number * every_s)
    return scale


shares = st.one_of(st.none(), st.floats(0, 1))
some_signals = st.builds(Signals, shares, shares, st.one_of(st.none(), st.floats(0, 4)), st.integers(0, 3))


@given(
    least=st.integers(1, 4),
    more=st.integers(0, 20),
    looks=st.lists(st.tuples(st.floats(0, 100), some_signals), max_size=60),
)
def test_it_stays_within_its_bounds_and_moves_at_most_by_half_or_double(
    least: int, more: int, looks: list[tuple[float, Signals]]
) -> None:
    rule = Rule(least, least + more)
    scale, now = Scale(least), 0.0
    for passed_s, signals in looks:
        now += passed_s
        before, scale = scale, look(rule, scale, signals, now)
        assert rule.least <= scale.wanted <= rule.most
        assert before.wanted / 2 <= scale.wanted <= before.wanted * 2
        if scale.wanted != before.wanted:
            assert None not in (signals.trainer_waits, signals.engines_idle, signals.occupancy)
        if scale.wanted > before.wanted:
            assert signals.joining == 0


def test_a_waiting_trainer_gets_engines_in_proportion() -> None:
    assert after(Scale(4), STARVED, 14).wanted == 4
    assert after(Scale(4), STARVED, 16).wanted == 8
    a_little = replace(STARVED, trainer_waits=0.25)
    assert after(Scale(6), a_little, 16).wanted == 8


def test_engines_without_work_to_share_out_are_not_added() -> None:
    assert after(Scale(4), replace(STARVED, occupancy=0.3), 1000).wanted == 4


def test_engines_that_stand_still_leave_late_and_down_to_what_is_needed() -> None:
    assert after(Scale(8), IDLE, 119).wanted == 8
    assert after(Scale(8), IDLE, 121).wanted == 4
    assert after(Scale(8), IDLE, 10_000).wanted == 1


def test_engines_that_are_all_but_empty_leave_also_where_the_trainer_waits() -> None:
    on_policy = Signals(trainer_waits=0.5, engines_idle=0.5, occupancy=0.05, joining=0)
    assert after(Scale(8), on_policy, 121).wanted == 4


@pytest.mark.parametrize("missing", ["trainer_waits", "engines_idle", "occupancy"])
def test_what_is_not_measured_is_no_idleness(missing: str) -> None:
    assert after(Scale(8), replace(IDLE, **{missing: None}), 10_000).wanted == 8


def test_it_waits_for_those_that_join() -> None:
    scale = after(Scale(1), STARVED, 16)
    assert scale.wanted == 2
    scale = after(scale, replace(STARVED, joining=1), 1000)
    assert scale.wanted == 2
    assert after(scale, STARVED, 14).wanted == 2  # judged anew, now that they are there
    assert after(scale, STARVED, 20).wanted == 4


def test_engines_that_find_no_place_are_given_up_when_nobody_needs_them() -> None:
    assert after(Scale(4), replace(IDLE, joining=3), 10_000).wanted == 1


def test_balance_changes_nothing() -> None:
    assert after(Scale(5), BALANCED, 100_000, every_s=10).wanted == 5


@settings(max_examples=30)
@given(demand=st.floats(0.3, 12), start=st.integers(1, 16))
def test_a_steady_load_is_met_without_flapping(demand: float, start: int) -> None:
    """`demand` engines just keep the trainer busy: fewer starve it, more stand still."""
    scale, history = Scale(start), []
    for second in range(0, 10_000, 10):
        busy = min(1.0, demand / scale.wanted)
        waits = max(0.0, 1 - scale.wanted / demand)
        signals = Signals(trainer_waits=waits, engines_idle=1 - busy, occupancy=1.5 * busy, joining=0)
        scale = look(RULE, scale, signals, float(second))
        history.append(scale.wanted)
    assert len(set(history[-500:])) == 1
    assert scale.wanted == 1 or demand * 0.8 <= scale.wanted <= max(2.0, demand / 0.7 * 1.2 + 1)


def test_a_burst_is_followed_up_and_down() -> None:
    scale = after(Scale(1), BALANCED, 100)
    scale = after(scale, STARVED, 200)
    assert scale.wanted == 16
    scale = after(scale, IDLE, 2000)
    assert scale.wanted == 1


def test_a_meter_gives_means_over_time() -> None:
    meter = Meter(10.0)
    meter.set(1.0, 12.0)
    meter.set(0.0, 13.0)
    assert meter.read(14.0) == 0.25
    assert meter.read(14.0) is None
    meter.set(4.0, 15.0)
    assert meter.read(16.0) == 2.0
