"""The coordinator over the real pool and simulated engines: rounds for two ranks, attempts, deadlines."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rayswift.data.feed.feed import DRIVERS_ATTEMPT, StaleAttempt
from rayswift.data.sequence.global_batches import Position
from rayswift.data.sequence.windows import TRAINED
from rayswift.engines.pool.autoscale import Rule
from rayswift.engines.pool.patience import Limits
from rayswift.engines.pool.pool import Pool
from rayswift.engines.samples import Completion, Group, PolicyVersion, Prompt, Scored
from rayswift.engines.weights import Published
from rayswift.log import UserError
from rayswift.rollout.admission import RolloutPlan, RoundPlan
from rayswift.rollout.advantages import AdvantageSettings
from rayswift.rollout.coordinator import Coordinator
from rayswift.rollout.groups import is_sampled, requests_for
from rayswift.rollout.ledger import ALL_EQUAL, CUT, REMAINDER, LedgerSnapshot
from rayswift.rollout.prompts import Drawn
from rayswift.rollout.rounds import Round, Waiting
from tests import virtual_time
from tests.support.fake_engine import FakeEngine, FakeSettings

SUMMED = AdvantageSettings((1.0,))
FAST = FakeSettings(start_s=0.0, load_s=0.001, pause_s=0.0, step_s=1e-5, median_length=5, length_sigma=0.5)
PLAN = RolloutPlan(
    rounds=RoundPlan(num_prompts=3, max_staleness=0, max_resamples=2),
    num_steps=1,
    steps_per_round=1,
    num_generations=2,
    num_generations_eval=1,
    min_group=2,
    max_completion_length=16,
    max_sequence_length=1024,
    drops_even=None,
    max_failed_fraction=0.5,
    seed=7,
    max_outstanding=320,
    max_still_s=600.0,
)


class ListedPrompts:
    """So many prompts, in one epoch; those in `cut` lost their beginning."""

    def __init__(self, num_prompts: int, num_epochs: int = 1, cut: Sequence[int] = ()):
        self._num_prompts, self._next, self._num_epochs, self._cut = num_prompts, 0, num_epochs, cut
        self.begins = 0

    def begin(self, position: Position) -> None:
        self._next, self.begins = position.step, self.begins + 1

    def draw(self, timeout_s: float) -> Drawn | None:
        if self._next >= self._num_prompts:
            return None
        ordinal, self._next = self._next, self._next + 1
        ids, cut = np.arange(ordinal, ordinal + 4, dtype=np.int32), ordinal in self._cut
        prompt = Prompt(ordinal, f"p:{ordinal}", 0, ids, (), {}, cut)
        position = Position(ordinal + 1, 0, 0, ordinal + 1, {TRAINED: ordinal + 1})
        return Drawn(
            prompt, position, self._num_epochs * self._next / self._num_prompts, self._next == self._num_prompts
        )

    def evaluation(self) -> list[Prompt]:
        return [Prompt(n, f"e:{n}", 0, np.arange(4, dtype=np.int32), (), {}) for n in range(4)]

    def close(self) -> None:
        pass


class Lengths:
    """The reward is the length; prompts in `flat` have no difference, completions of those in `broken` no reward."""

    names = ("length",)

    def __init__(self, flat: Sequence[int] = (), broken: Sequence[int] = ()):
        self._flat, self._broken = flat, broken

    async def score(
        self, prompt: Prompt, completions: Sequence[Completion], rewarded: bool = True
    ) -> Sequence[Scored | str]:
        await asyncio.sleep(0)
        if prompt.ordinal in self._broken:
            return ["length: it raised"] * len(completions)
        if not rewarded:
            return [Scored(each, (np.nan,), 0.0) for each in completions]
        found = []
        for number, each in enumerate(completions):
            reward = 1.0 if prompt.ordinal in self._flat else len(each.token_ids) + number / 10
            found.append(Scored(each, (reward,), reward))
        return found

    async def close(self) -> None:
        pass


class Kept:
    """Weights and completions."""

    async def keep(self, published: Published) -> Published:
        return published

    def __init__(self) -> None:
        self.prompts: list[tuple[int, str, int]] = []

    def begin(self, number: int) -> None:
        self.prompts = [each for each in self.prompts if each[0] < number]

    def add(self, number: int, groups: Sequence[Group], outcome: str) -> None:
        self.prompts += [(number, outcome, group.prompt.ordinal) for group in groups]

    def add_evaluation(self, number: int, evaluations: Mapping[str, Sequence[Group]]) -> None:
        self.evaluated = {name: [group.prompt.ordinal for group in groups] for name, groups in evaluations.items()}

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def weights(attempt: int, step: int) -> Published:
    return Published(PolicyVersion(attempt, step), (), 0)


def coordinated(
    story: Callable[[Coordinator], Awaitable[Any]],
    num_prompts: int = 100,
    plan: RolloutPlan = PLAN,
    rewards: Lengths | None = None,
    num_engines: int = 2,
    engine: FakeSettings = FAST,
    run: Callable[[Any], Any] = asyncio.run,
    num_epochs: int = 1,
    kept: Kept | None = None,
    cut: Sequence[int] = (),
) -> Any:
    async def tell() -> Any:
        pool = Pool(lambda name: FakeEngine(engine), Limits(), resume_partial=plan.rounds.max_staleness > 0)
        prompts: Any = ListedPrompts(num_prompts, num_epochs, cut)
        coordinator = Coordinator(
            plan, prompts, pool, rewards or Lengths(), Kept(), kept or Kept(), Rule(num_engines, num_engines)
        )
        try:
            async with asyncio.timeout(30 if run is asyncio.run else None):
                return await story(coordinator)
        finally:
            await coordinator.close()

    return run(tell())


async def there(ask: Callable[[], Awaitable[Any]]) -> tuple[Any, list[str]]:
    """What a rank gets in the end, and the texts of its waits."""
    texts = []
    while isinstance(answer := await ask(), Waiting):
        texts.append(answer.text)
    return answer, texts


async def trained(coordinator: Coordinator, attempt: int, start: LedgerSnapshot, most: int = 1000) -> list[Round]:
    """What one rank trains until the end, or for so many rounds."""
    await coordinator.begin(attempt, start)
    found: list[Round] = []
    for number in range(start.rounds, start.rounds + most):
        await coordinator.published(attempt, weights(attempt, number))
        found.append((await there(lambda number=number: coordinator.next(attempt, number, 0, 1, 20)))[0])  # type: ignore[misc]
        if found[-1].last:
            break
    return found


def contents(rounds: Sequence[Round]) -> list[Any]:
    return [(each.number, each.table.ordinals.tolist(), each.tokens.token_ids.tolist()) for each in rounds]


def after(received: Round) -> LedgerSnapshot:
    """As it comes out of the checkpoint."""
    return LedgerSnapshot.from_json(json.loads(json.dumps(received.ledger)))


def test_prompts_that_were_cut_are_counted_by_themselves() -> None:
    kept = Kept()
    rounds = coordinated(
        lambda coordinator: trained(coordinator, 5, LedgerSnapshot()), num_prompts=6, cut=(1, 4, 5), kept=kept
    )
    assert rounds[-1].position.counts == {TRAINED: 3, CUT: 3}
    assert sorted(kept.prompts) == [
        (0, TRAINED, 0), (0, TRAINED, 2), (0, CUT, 1), (1, TRAINED, 3), (1, CUT, 4), (1, CUT, 5),
    ]  # fmt: skip


def test_rounds_hold_the_prompts_in_order_until_these_end() -> None:
    rounds = coordinated(lambda coordinator: trained(coordinator, 5, LedgerSnapshot()), num_prompts=8)
    assert [each.table.ordinals.tolist() for each in rounds] == [[0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5]]
    assert rounds[-1].last
    assert rounds[-1].position.counts == {TRAINED: 6, REMAINDER: 2}
    assert rounds[-1].epochs == 1.0
    assert [set(each.table.staleness.tolist()) for each in rounds] == [{0.0}, {0.0}]
    assert all(np.isfinite(each.tokens.logprobs).all() for each in rounds)


def test_what_is_read_ahead_when_the_steps_end_is_not_in_the_accounting() -> None:
    plan = replace(PLAN, rounds=replace(PLAN.rounds, num_rounds=2))
    rounds = coordinated(lambda coordinator: trained(coordinator, 5, LedgerSnapshot()), plan=plan)
    assert [each.last for each in rounds] == [False, True]
    assert rounds[-1].position.counts == {TRAINED: 6}


def test_ranks_get_shares_of_one_round() -> None:
    async def story(coordinator: Coordinator) -> list[Round]:
        await coordinator.begin(1, LedgerSnapshot())
        await coordinator.begin(1, LedgerSnapshot())
        await coordinator.published(1, weights(1, 0))
        return list(await asyncio.gather(*(coordinator.next(1, 0, rank, 2, 20) for rank in (1, 0))))

    shares = coordinated(story)
    assert sorted(np.concatenate([each.tokens.rows for each in shares]).tolist()) == list(range(6))
    # What is the same for all is made once, however many ranks there are.
    assert shares[0].table is shares[1].table
    assert shares[0].ledger is shares[1].ledger


@pytest.mark.parametrize("staleness", [0, 1, 4])
def test_filtered_and_failed_prompts_are_replaced_and_named(staleness: int) -> None:
    rounds = replace(PLAN.rounds, max_staleness=staleness)
    plan = replace(PLAN, rounds=rounds, drops_even=SUMMED)
    rewards = Lengths(flat=(1, 4), broken=(2,))
    received = coordinated(lambda coordinator: trained(coordinator, 1, LedgerSnapshot()), 12, plan, rewards)
    ordinals = [ordinal for each in received for ordinal in each.table.ordinals[::2].tolist()]
    assert sorted(ordinals) == [0, 3, *range(5, 12)]
    if not staleness:
        assert ordinals == sorted(ordinals)
    assert received[-1].position.counts == {TRAINED: 9, ALL_EQUAL: 2, "failed: length": 1}


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_a_group_is_filtered_by_its_advantages(aggregation: Any) -> None:
    """Every third group has equal sums of rewards that count differently once each is scaled by itself."""

    class Two(Lengths):
        names = ("first", "second")

        async def score(
            self, prompt: Prompt, completions: Sequence[Completion], rewarded: bool = True
        ) -> Sequence[Scored | str]:
            parts = ((2.0, 0.0), (0.0, 1.0 if prompt.ordinal % 3 == 1 else 3.0))
            return [Scored(each, own, own[0] + 2 * own[1]) for each, own in zip(completions, parts, strict=True)]

    settings = AdvantageSettings((1.0, 2.0), aggregation=aggregation)
    plan = replace(PLAN, drops_even=settings)
    rounds = coordinated(lambda each: trained(each, 1, LedgerSnapshot()), 9, plan, Two())
    learnt = [ordinal for each in rounds for ordinal in each.table.ordinals[::2].tolist()]
    assert learnt == ([0, 2, 3, 5, 6, 8] if aggregation == "sum_then_normalize" else list(range(9)))


@pytest.mark.parametrize("oversampling", [0.4, 1.0, 3.0])
def test_oversampling_changes_when_prompts_are_sampled_and_nothing_else(oversampling: float) -> None:
    """On-policy the rounds are the same, prompt by prompt, and so is the ledger; only fewer waits stand between."""
    rewards = Lengths(flat=(1, 2, 4, 7, 8, 11, 12), broken=(10,))

    def rounds(share: float) -> list[Round]:
        plan = replace(PLAN, rounds=replace(PLAN.rounds, max_resamples=4, oversampling=share), drops_even=SUMMED)
        return coordinated(lambda coordinator: trained(coordinator, 1, LedgerSnapshot()), 19, plan, rewards)

    plain, ahead = rounds(0.0), rounds(oversampling)
    assert [each.table.ordinals.tolist() for each in ahead] == [each.table.ordinals.tolist() for each in plain]
    assert [each.ledger for each in ahead] == [each.ledger for each in plain]
    names = ("drawn", "filtered", "failed")
    assert [[each.metrics[name] for name in names] for each in ahead] == [
        [each.metrics[name] for name in names] for each in plain
    ]
    assert sum(each.metrics["surplus"] for each in plain) == 0 < sum(each.metrics["surplus"] for each in ahead)


def test_a_later_attempt_goes_on_at_its_ledger_and_older_ones_are_refused() -> None:
    async def story(coordinator: Coordinator) -> tuple[list[Round], list[Round]]:
        first = await trained(coordinator, 1, LedgerSnapshot(), most=3)
        second = await trained(coordinator, 2, after(first[0]), most=2)
        with pytest.raises(StaleAttempt):
            await coordinator.next(1, 3, 0, 1, 5)
        with pytest.raises(StaleAttempt):
            await coordinator.published(1, weights(1, 9))
        with pytest.raises(StaleAttempt):
            await coordinator.begin(1, LedgerSnapshot())
        return first, second

    first, second = coordinated(story)
    # The same prompts and the same tokens: at staleness 0 both follow from seed and weights alone.
    assert [each[:2] for each in contents(second)] == [each[:2] for each in contents(first[1:])]


def test_prompts_are_read_before_there_are_workers() -> None:
    async def story(coordinator: Coordinator) -> tuple[list[Round], int]:
        await coordinator.begin(DRIVERS_ATTEMPT, LedgerSnapshot())
        number = await coordinator.new_attempt()
        found = await trained(coordinator, number, LedgerSnapshot(), most=1)
        return found, coordinator._prompts.begins  # type: ignore[attr-defined]

    found, begins = coordinated(story)
    assert begins == 1
    assert found[0].table.ordinals[::2].tolist() == [0, 1, 2]


def test_a_wait_ends_where_nothing_comes_forward_and_says_for_what_it_waited() -> None:
    async def story(coordinator: Coordinator) -> list[float]:
        clock = asyncio.get_running_loop().time
        await coordinator.begin(1, LedgerSnapshot())
        waited = []
        for expected in ("no weights are published yet", "3 prompts with engines"):
            began = clock()
            message = f"round 0 is not ready, without any progress for 3.. s: {expected}; engines: no engine"
            with pytest.raises(TimeoutError, match=message):
                await there(lambda: coordinator.next(1, 0, 0, 1, 10))
            waited.append(clock() - began)
            await coordinator.published(1, weights(1, 0))
        return waited

    waited = coordinated(story, plan=replace(PLAN, max_still_s=300.0), num_engines=0, run=virtual_time.run)
    assert [300 <= each <= 320 for each in waited] == [True, True]


def test_a_round_may_take_as_long_as_its_tokens_come() -> None:
    """32k tokens at 30 ms each take 16 minutes, and nothing else happens before the first completion."""
    slow = replace(FAST, step_s=0.03, median_length=1e9)
    plan = replace(PLAN, max_completion_length=32_768, max_sequence_length=65_536)

    async def story(coordinator: Coordinator) -> tuple[Any, Any, float, float]:
        clock = asyncio.get_running_loop().time
        await coordinator.begin(1, LedgerSnapshot())
        await coordinator.published(1, weights(1, 0))
        began = clock()
        received = await there(lambda: coordinator.next(1, 0, 0, 1, 10))
        round_s, began = clock() - began, clock()
        evaluated = await there(lambda: coordinator.evaluate(1, 0, 10))
        return received, evaluated, round_s, clock() - began

    received, evaluated, round_s, evaluation_s = coordinated(story, plan=plan, engine=slow, run=virtual_time.run)
    assert received[0].table.lengths.tolist() == [32_768] * 6
    assert evaluated[0]["completion_length"] == 32_768
    assert round_s == pytest.approx(983, abs=20)
    assert evaluation_s == pytest.approx(983, abs=20)
    assert "3 prompts with engines; 2 engines serve, 6 requests are with them" in received[1][5]


def test_who_waits_for_an_older_worker_group_waits_no_longer() -> None:
    async def story(coordinator: Coordinator) -> None:
        await coordinator.begin(1, LedgerSnapshot())
        waiting = [asyncio.create_task(coordinator.next(1, 0, rank, 8, 1e6)) for rank in range(8)]
        await asyncio.sleep(0.1)
        await coordinator.begin(2, LedgerSnapshot())
        for each in asyncio.as_completed(waiting, timeout=5):
            with pytest.raises(StaleAttempt):
                while isinstance(await each, Waiting):
                    each = coordinator.next(1, 0, 0, 8, 1e6)

    coordinated(story, num_engines=0)


def test_nothing_to_train_ends_the_run_with_the_reasons() -> None:
    async def broken(coordinator: Coordinator) -> None:
        with pytest.raises(UserError, match=r"none of the 9 prompts drawn for round 0 can be trained: 9 failed"):
            await trained(coordinator, 1, LedgerSnapshot())

    coordinated(broken, rewards=Lengths(broken=range(100)))

    async def few(coordinator: Coordinator) -> None:
        with pytest.raises(UserError, match="2 prompts are left, fewer than the 3 of a round"):
            await trained(coordinator, 1, LedgerSnapshot())

    coordinated(few, num_prompts=2)


EQUAL = replace(PLAN, drops_even=SUMMED, rounds=replace(PLAN.rounds, max_resamples=1))


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_run_whose_prompts_are_all_solved_ends_well_and_says_so(staleness: int) -> None:
    kept = Kept()
    plan = replace(EQUAL, rounds=replace(EQUAL.rounds, max_staleness=staleness))
    solved = Lengths(flat=range(6, 100))
    received = coordinated(lambda each: trained(each, 1, LedgerSnapshot()), 30, plan, solved, kept=kept)
    *rounds, end = received
    assert [each.table.ordinals[::2].tolist() for each in rounds] == [[0, 1, 2], [3, 4, 5]]
    assert not any(each.ended for each in rounds)
    assert (len(end.table), end.last) == (0, True)
    assert "prompts drawn for round 2 can be trained: " in end.ended
    assert "filtered: all rewards equal (reward 1 in " in end.ended
    assert end.position.counts[TRAINED] == 6
    if not staleness:
        assert end.position.counts[ALL_EQUAL] == 24
        # All of them can be read, with what became of them.
        assert kept.prompts == [
            *((ordinal // 3, TRAINED, ordinal) for ordinal in range(6)),
            *((2, ALL_EQUAL, ordinal) for ordinal in range(6, 30)),
        ]
        assert after(end).rounds == 2


def test_a_whole_pass_without_anything_to_learn_is_enough() -> None:
    received = coordinated(
        lambda each: trained(each, 1, LedgerSnapshot()), 100, EQUAL, Lengths(flat=range(3, 100)), num_epochs=10
    )
    assert [len(each.table) for each in received] == [6, 0]
    assert 13 <= sum(received[-1].position.counts.values()) <= 13 + 6


def test_a_stretch_of_solved_prompts_is_passed_over() -> None:
    received = coordinated(lambda each: trained(each, 1, LedgerSnapshot()), 33, EQUAL, Lengths(flat=range(3, 29)))
    assert [each.table.ordinals[::2].tolist() for each in received] == [[0, 1, 2], [29, 30, 31]]
    assert received[1].metrics["filtered"] == 26
    assert received[-1].position.counts == {TRAINED: 6, ALL_EQUAL: 26, REMAINDER: 1}


def test_the_last_prompt_fails_after_solved_ones_and_the_run_ends_well() -> None:
    rounds = coordinated(
        lambda coordinator: trained(coordinator, 5, LedgerSnapshot()),
        num_prompts=13,
        plan=replace(PLAN, drops_even=SUMMED),
        rewards=Lengths(flat=range(3, 12), broken=[12]),
    )
    assert len(rounds) == 2
    assert "none of the 10 prompts drawn for round 1 can be trained" in rounds[-1].ended
    assert rounds[-1].position.counts == {TRAINED: 3, ALL_EQUAL: 9, "failed: length": 1}


def test_a_run_that_never_had_anything_to_learn_is_an_error() -> None:
    async def story(coordinator: Coordinator) -> None:
        message = r"none of the 9 prompts .* 9 filtered: all rewards equal \(reward 1 in 9\)\n  rewards that tell"
        with pytest.raises(UserError, match=message):
            await trained(coordinator, 1, LedgerSnapshot())

    coordinated(story, 9, EQUAL, Lengths(flat=range(9)))


def test_evaluations_are_made_once_for_all_ranks() -> None:
    async def story(coordinator: Coordinator) -> list[dict[str, float]]:
        await coordinator.begin(1, LedgerSnapshot())
        await coordinator.published(1, weights(1, 0))
        return list(await asyncio.gather(*(coordinator.evaluate(1, 0, 20) for _ in range(2))))

    first, second = coordinated(story)
    assert first == second
    assert first["reward"] == first["rewards/length/mean"] == pytest.approx(first["completion_length"])


def test_a_completion_ends_at_the_window() -> None:
    prompt = Prompt(3, "p:3", 0, np.arange(10, dtype=np.int32), (), {})
    (request,) = requests_for(prompt, "train", 1, 16, 24, 0)
    assert request.max_tokens == 14
    (request,) = requests_for(prompt, "train", 1, 16, 100, 0)
    assert request.max_tokens == 16


def with_answers(prompts: list[Prompt]) -> list[Prompt]:
    """Each prompt's row has an answer of two tokens, behind one token more than the prompt."""
    return [
        replace(each, answer=(np.append(each.input_ids, 99).astype(np.int32), np.full(2, each.ordinal, np.int32)))
        for each in prompts
    ]


class AnsweredPrompts(ListedPrompts):
    """Prompts of rows with answers."""

    def draw(self, timeout_s: float) -> Drawn | None:
        drawn = super().draw(timeout_s)
        return drawn and replace(drawn, prompt=with_answers([drawn.prompt])[0])


def test_rounds_of_rows_own_answers_need_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made as they are asked for, one after the other, and no reward is asked."""
    monkeypatch.setitem(globals(), "ListedPrompts", AnsweredPrompts)
    plan = replace(PLAN, sampled=0.0, has_engines=False, num_generations=1, min_group=1)

    async def story(coordinator: Coordinator) -> list[Round]:
        await coordinator.begin(5, LedgerSnapshot())
        return [(await there(lambda n=n: coordinator.next(5, n, 0, 1, 20)))[0] for n in range(2)]  # type: ignore[misc]

    rounds = coordinated(story, num_prompts=8, plan=plan, num_engines=0)
    assert [each.table.ordinals.tolist() for each in rounds] == [[0, 1, 2], [3, 4, 5]]
    assert [each.tokens.token_ids.tolist() for each in rounds] == [[0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5]]
    assert [each.last for each in rounds] == [False, True]
    for each in rounds:
        assert each.table.prompt_lengths.tolist() == [5, 5, 5]
        assert np.isnan(each.tokens.logprobs).all() and np.isnan(each.table.rewards).all()


def test_which_rounds_are_sampled_depends_on_their_number_alone() -> None:
    chosen = [is_sampled(7, number, 0.3) for number in range(2000)]
    assert abs(np.mean(chosen) - 0.3) < 0.05  # five standard deviations of a share of 2,000
    assert chosen == [is_sampled(7, number, 0.3) for number in range(2000)]
    assert chosen != [is_sampled(8, number, 0.3) for number in range(2000)]
    assert all(is_sampled(7, number, 1.0) and not is_sampled(7, number, 0.0) for number in range(2000))
