"""States of engines, and which engines join or leave."""

from dataclasses import replace
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from rayswift.engines.pool.membership import Joins, ReplicaStatus, State, change
from rayswift.engines.samples import PolicyVersion

VERSIONS = [None, PolicyVersion(1, 3), PolicyVersion(1, 4), PolicyVersion(2, 4)]
ALL = [
    ReplicaStatus(
        placed, started, version if started else None, current, loading if started else None, silent, draining, died
    )
    for placed, started, version, current, loading, silent, draining, died in product(
        [True],
        [False, True],
        VERSIONS,
        VERSIONS,
        [None, PolicyVersion(1, 4)],
        [False, True],
        [False, True],
        [None, "gone"],
    )
]


def test_none_is_healthy_without_the_current_weights() -> None:
    healthy = [status for status in ALL if status.state is State.HEALTHY]
    assert healthy
    assert all(status.version is not None and status.version == status.current for status in healthy)
    assert {status.state for status in ALL} == set(State)


def test_requests_go_only_to_weights_that_are_new_enough_and_of_this_attempt() -> None:
    taking = [status for status in ALL if status.takes(4)]
    assert taking
    for status in taking:
        assert status.version is not None and status.current is not None
        assert status.version.step >= 4 and status.version.attempt == status.current.attempt
        assert not status.silent and not status.draining and status.alive


def test_a_life() -> None:
    first, second = PolicyVersion(1, 0), PolicyVersion(1, 1)
    status = ReplicaStatus()
    assert str(status) == "waiting for a place in the cluster"
    status = replace(status, placed=True, started=True)
    assert (status.state, str(status)) == (State.SYNCING, "syncing (has no weights, current no weights)")
    status = replace(status, current=first)
    assert status.state is State.SYNCING and not status.takes(0)
    status = status.has_loaded(first)
    assert status.state is State.HEALTHY and status.takes(0)
    status = replace(status, current=second)
    assert status.state is State.SYNCING
    assert status.takes(0) and not status.takes(1)  # in flight, at the staleness that was asked for
    assert replace(status, silent=True).state is State.SUSPECT
    status = status.has_loaded(second).has_died("out of memory").has_died("killed")
    assert (status.state, str(status)) == (State.DEAD, "dead: out of memory")


statuses = st.lists(st.sampled_from(ALL), max_size=8)


@given(statuses=statuses, wanted=st.integers(0, 10))
def test_a_change_gives_the_wanted_number(statuses: list[ReplicaStatus], wanted: int) -> None:
    named = [(str(number), status) for number, status in enumerate(statuses)]
    planned = change(named, wanted)
    after = [replace(m, draining=(m.draining or n in planned.drain) and n not in planned.keep) for n, m in named]
    staying = [status for status in after if status.alive and not status.draining]
    assert len(staying) + planned.start == wanted
    assert not (planned.drain and (planned.start or planned.keep))


@given(statuses=statuses, wanted=st.integers(0, 10))
def test_the_last_to_come_leave_first_and_none_that_serves_before_one_that_does_not(
    statuses: list[ReplicaStatus], wanted: int
) -> None:
    named = [(str(number), status) for number, status in enumerate(statuses)]
    drained = change(named, wanted).drain
    for kept, leaving in product(named, drained):
        status = statuses[int(leaving)]
        if kept[1].alive and not kept[1].draining and kept[0] not in drained:
            serves, leaves_serving = kept[1].version is not None, status.version is not None
            assert serves >= leaves_serving
            assert serves > leaves_serving or int(kept[0]) < int(leaving)


def test_loading_is_a_state() -> None:
    loading = ReplicaStatus(placed=True, started=True, current=PolicyVersion(1, 1), loading=PolicyVersion(1, 1))
    assert (loading.state, str(loading)) == (State.LOADING, "loading version 1 of attempt 1")
    assert loading.is_coming and not loading.takes(0)
    before = replace(loading, version=PolicyVersion(1, 0))
    assert before.takes(0) and not before.takes(1)  # it goes on with those it has, as long as it answers
    assert not replace(before, silent=True).takes(0)
    assert replace(before, silent=True).state is State.LOADING  # silence is no bad sign meanwhile


# ---- engines that cannot start, and nodes where they cannot ----

STARTING = ReplicaStatus(placed=True)
SERVES = ReplicaStatus(placed=True, started=True, version=PolicyVersion(1, 0), current=PolicyVersion(1, 0))


def failing(joins: Joins, whys: list[tuple[int, str]]) -> None:
    for generation, why in whys:
        joins.failed(generation, why)


def test_the_same_reason_in_two_generations_is_hopeless() -> None:
    joins = Joins(5, 3)
    failing(joins, [(0, "process 12 on node 4fe1: no model x"), (0, "process 13 on node 90aa: no model x")])
    assert joins.generation == 1
    assert not joins.hopeless([])
    joins.failed(1, "process 77 on node 4fe1: no model x\n  and more lines")
    assert str(joins) == "3 in a row were lost before they served, the last: process 77 on node 4fe1: no model x"
    assert joins.hopeless([])
    assert joins.hopeless([(1, STARTING)])
    joins.joined()
    assert not joins.hopeless([]) and joins.num_failed == 0


def test_a_bad_node_is_not_hopeless_while_others_may_serve() -> None:
    joins = Joins(5, 3)
    failing(joins, [(0, "bad device")] * 4 + [(1, "bad device")] * 2)
    assert not joins.hopeless([(0, STARTING)])
    assert not joins.hopeless([(1, SERVES)])
    assert not joins.hopeless([(1, ReplicaStatus(placed=True, started=True))])  # as long as none are published
    assert not joins.hopeless([(0, replace(SERVES, version=None))])  # between two tries to load
    assert joins.hopeless([(1, replace(SERVES, version=None))])
    assert joins.hopeless([(0, ReplicaStatus())])  # one without a place has nothing to show
    assert joins.hopeless([(0, replace(STARTING, died="too"))])


def test_a_node_that_dies_with_all_its_engines_is_not_hopeless() -> None:
    joins = Joins(5, 3)
    failing(joins, [(0, "its node died")] * 8)
    assert not joins.hopeless([])


def test_failures_for_different_reasons_are_borne_longer() -> None:
    joins = Joins(5, 3)
    for generation, why in enumerate("abcd"):
        joins.failed(generation, why)
        assert not joins.hopeless([])
    joins.failed(4, "e")
    assert joins.hopeless([])
