"""Admission and ledger under every order of events: each prompt counts once, whatever fails."""

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayswift.data.sequence.global_batches import Position
from rayswift.data.sequence.windows import TRAINED
from rayswift.log import UserError
from rayswift.rollout.admission import Admission, RoundPlan
from rayswift.rollout.ledger import ALL_EQUAL, FAILED, REMAINDER, Ledger, LedgerSnapshot

FAILURE = f"{FAILED}engines"


def position_behind(ordinal: int, rows_each: int = 3) -> Position:
    """Each prompt stands for some raw rows, of which all but one were left out."""
    rows = (ordinal + 1) * rows_each
    counts = {TRAINED: ordinal + 1, "filtered: too long": rows - ordinal - 1}
    return Position(ordinal + 1, 0, 0, ordinal + 1, counts)


@dataclass
class Simulated:
    """A run with a trainer, a coordinator and prompts, in which a random generator says what happens next."""

    plan: RoundPlan
    num_prompts: int
    filtered: frozenset[int]
    rng: random.Random
    read_ahead: int = 50
    trained: list[tuple[int, ...]] = field(default_factory=list)
    snapshots: list[LedgerSnapshot] = field(default_factory=lambda: [LedgerSnapshot()])

    def life(self, events: int | None) -> bool:
        """From the newest checkpoint on, for so many events; whether the run came to its end."""
        saved = self.rng.randrange(len(self.snapshots)) if self.trained else 0
        del self.snapshots[saved + 1 :], self.trained[saved:]
        ledger = Ledger(self.snapshots[saved], 1.0)
        number = self.snapshots[saved].rounds
        admission = Admission(self.plan, number)
        admission.publish(number)
        next_ordinal = self.snapshots[saved].position.step
        ready: list[int] = []
        under_way: list[int] = []
        while events is None or events > 0:
            events = None if events is None else events - 1
            while next_ordinal < self.num_prompts and len(ready) < self.read_ahead:
                ledger.seen(next_ordinal, position_behind(next_ordinal), (next_ordinal + 1) / self.num_prompts)
                if not ledger.is_done(next_ordinal):
                    ready.append(next_ordinal)
                next_ordinal += 1
            ended = next_ordinal >= self.num_prompts
            while (target := admission.next_round(len(ready), ended)) is not None:
                assert target - self.plan.max_staleness <= number
                under_way.append(ready[0])
                admission.draw(ready.pop(0), target)
            if under_way and self.rng.random() < 0.8:
                done = under_way.pop(self.rng.randrange(len(under_way)))
                admission.finish(done, ALL_EQUAL if done in self.filtered else TRAINED)
            if not admission.is_complete(number, len(ready), ended):
                if admission.lacks_prompts(number, len(ready), ended):
                    return True
                continue
            ready[:0] = admission.surplus(number)
            last = admission.is_last(number, len(ready), ended)
            assert last is not None
            outcomes = admission.close(number)
            self.trained.append(tuple(ordinal for ordinal, why in outcomes.items() if why == TRAINED))
            ledger.close(outcomes)
            if last:
                ledger.close(dict.fromkeys(ready, REMAINDER), trains=False)
            self.snapshots.append(ledger.snapshot)
            number += 1
            admission.publish(number)
            if last:
                return True
        return False


runs = {
    "num_per_round": st.integers(1, 4),
    "staleness": st.integers(0, 4),
    "oversampling": st.sampled_from([0.0, 0.5, 2.0]),
    "resamples": st.integers(1, 3),
    "num_prompts": st.integers(1, 40),
    "filtered": st.frozensets(st.integers(0, 39)),
    "kills": st.lists(st.integers(0, 30), max_size=4),
    "seed": st.integers(0, 2**32),
}


def simulate(
    num_per_round: int,
    staleness: int,
    oversampling: float,
    resamples: int,
    num_prompts: int,
    filtered: frozenset[int],
    kills: list[int],
    seed: int,
) -> Simulated:
    plan = RoundPlan(num_per_round, staleness, resamples, oversampling=oversampling)
    run = Simulated(plan, num_prompts, filtered, random.Random(seed))
    for events in kills:
        if run.life(events):
            return run
    assert run.life(None)
    return run


@settings(max_examples=300, deadline=None)
@given(**runs)
def test_no_prompt_is_lost_or_trained_twice(**given_run: object) -> None:
    run = simulate(**given_run)  # type: ignore[arg-type]
    trained = Counter(ordinal for each in run.trained for ordinal in each)
    assert not trained or trained.most_common(1)[0][1] == 1
    assert not run.filtered & trained.keys()
    end = run.snapshots[-1]
    if end.rounds:
        assert end.position.step == run.num_prompts and end.done == ()
        assert sum(end.outcomes.values()) == run.num_prompts
        assert end.outcomes.get(TRAINED, 0) == trained.total()
        assert sum(end.rows.values()) == 3 * run.num_prompts
        assert end.epochs == 1.0
    for each in run.trained:
        assert list(each) == sorted(each) and len(each) <= run.plan.num_prompts


@settings(max_examples=100, deadline=None)
@given(**{**runs, "staleness": st.just(0)})
def test_on_policy_what_is_trained_depends_on_nothing_that_happens(**given_run: object) -> None:
    killed = simulate(**given_run)  # type: ignore[arg-type]
    undisturbed = simulate(**{**given_run, "kills": [], "seed": 0, "oversampling": 0.0})  # type: ignore[arg-type]
    assert killed.trained == undisturbed.trained
    assert killed.snapshots[-1] == undisturbed.snapshots[-1]


def test_a_round_waits_for_no_more_than_its_staleness() -> None:
    admission = Admission(RoundPlan(2, max_staleness=1, max_resamples=1), first_round=5)
    assert admission.next_round(10, False) is None  # nothing is published yet
    admission.publish(5)
    drawn = []
    for ordinal in range(10):
        if (number := admission.next_round(10, False)) is not None:
            admission.draw(ordinal, number)
            drawn.append(number)
    assert drawn == [5, 5, 6, 6]
    assert admission.min_step(6) == 5
    admission.publish(6)
    assert admission.next_round(10, False) == 7


def test_a_round_is_trained_with_what_there_is_when_resampling_is_used_up() -> None:
    admission = Admission(RoundPlan(2, max_staleness=0, max_resamples=2), first_round=0)
    admission.publish(0)
    ordinal = 0
    while (number := admission.next_round(10, False)) is not None:
        admission.draw(ordinal, number)
        admission.finish(ordinal, TRAINED if ordinal == 3 else ALL_EQUAL)
        ordinal += 1
    assert ordinal == 6
    assert admission.is_complete(0, 10, False)
    assert [k for k, v in admission.close(0).items() if v == TRAINED] == [3]


def test_whether_a_round_is_the_last_is_known_before_it_is_trained() -> None:
    admission = Admission(RoundPlan(2, max_staleness=0, max_resamples=1), first_round=0)
    assert admission.is_last(0, 1, False) is None
    assert admission.is_last(0, 1, True) is True
    assert admission.is_last(0, 2, False) is False
    by_steps = Admission(RoundPlan(2, 0, 1, num_rounds=3), first_round=0)
    assert [by_steps.is_last(number, 2, False) for number in range(3)] == [False, False, True]


def test_too_many_failures_stop_the_run() -> None:
    ledger = Ledger(LedgerSnapshot(), 0.5)
    for ordinal in range(100):
        ledger.seen(ordinal, position_behind(ordinal), 0.0)
    ledger.close({ordinal: FAILURE if ordinal < 50 else TRAINED for ordinal in range(99)})
    with pytest.raises(UserError, match=r"max_failed_fraction = 0.1 allows"):
        strict = Ledger(ledger.snapshot, 0.1)
        strict.seen(99, position_behind(99), 0.0)
        strict.close({99: TRAINED})


def test_a_snapshot_survives_its_json() -> None:
    ledger = Ledger(LedgerSnapshot(), 0.5)
    for ordinal in (0, 1, 2):
        ledger.seen(ordinal, position_behind(ordinal), 0.5)
    snapshot = ledger.close({0: TRAINED, 2: ALL_EQUAL})
    assert snapshot.position.step == 1 and snapshot.done == (2,)
    assert LedgerSnapshot.from_json(snapshot.to_json()) == snapshot
