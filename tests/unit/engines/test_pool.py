"""The pool over simulated engines, in virtual time: each request is answered once, whichever engines die."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rayswift.engines.engine import Collected
from rayswift.engines.pool.patience import Limits
from rayswift.engines.pool.pool import EnginesFailed, Pool, SampleFailed
from rayswift.engines.samples import Completion, PolicyVersion, SampleRequest
from rayswift.log import UserError
from tests.support.fake_engine import FakeEngine, tokens_of
from tests.support.pools import LIMITS, SPEED, V0, V1, Engines, in_pool, requests, same


class Noting(FakeEngine):
    """Notes its calls."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.taken: list[SampleRequest] = []
        self.loads: list[PolicyVersion] = []
        self.batches = 0

    async def submit(self, requests: Sequence[SampleRequest]) -> None:
        self.batches += 1
        self.taken += requests
        await super().submit(requests)

    async def load(self, version: PolicyVersion, weights: Any) -> float:
        self.loads.append(version)
        return await super().load(version, weights)


@cache
def plain(num_prompts: int, num_samples: int) -> list[Completion]:
    """What an engine that never fails makes of requests, the first weights in it."""
    wanted = requests(num_prompts, num_samples)
    return in_pool(lambda pool, _: asyncio.gather(*pool.sample(wanted, 0)), size=1)  # type: ignore[no-any-return]


def test_it_answers_with_what_was_asked() -> None:
    wanted = requests(40, 4)
    completions = plain(40, 4)
    assert [completion.key for completion in completions] == [request.key for request in wanted]
    assert {completion.finish for completion in completions} == {"stop", "length"}
    assert all(c.spans[0].begin == 0 and c.spans[0].version == V0 for c in completions)
    assert len({completion.token_ids.tobytes() for completion in completions}) == len(wanted)


Event = tuple[float, str, int]
schedules = st.lists(
    st.tuples(st.floats(0.1, 12), st.sampled_from(["kill", "hang", "slow", "drain", "grow"]), st.integers(0, 5)),
    max_size=10,
)


@settings(max_examples=25)
@given(events=schedules, resume_partial=st.booleans(), size=st.integers(1, 4))
def test_no_kill_schedule_loses_a_request_or_changes_a_completion(
    events: list[Event], resume_partial: bool, size: int
) -> None:
    wanted = requests(25, 3)
    limits = replace(LIMITS, max_tries=20, max_starts=20)

    async def story(pool: Pool, engines: Engines) -> tuple[list[Completion], Any]:
        futures = pool.sample(wanted, 0)
        await asyncio.sleep(3)
        for wait_s, what, number in events:
            await asyncio.sleep(wait_s)
            victim = engines.made[number % len(engines.made)]
            if what == "kill":
                victim.kill()
            elif what == "hang":
                victim.hang()
            elif what == "slow":
                victim.slow_down(3)
            elif what == "drain":
                pool.scale_to(1)
            else:
                pool.scale_to(size + 1)
        return await asyncio.gather(*futures), pool.statistics()

    engines = Engines(replace(SPEED, start_s=3))
    completions, statistics = in_pool(story, engines, size, resume_partial, limits)
    assert all(same(one, other) for one, other in zip(completions, plain(25, 3), strict=True))
    assert statistics.requests == len(wanted)
    assert statistics.tokens == sum(len(completion.token_ids) for completion in completions)
    assert (statistics.failed, statistics.queued, statistics.running) == (0, 0, 0)
    assert not statistics.resumed_tokens or resume_partial
    assert not statistics.regenerated_tokens or not resume_partial


@settings(max_examples=20)
@given(events=schedules, staleness=st.integers(0, 3), gaps=st.lists(st.floats(0.2, 8), min_size=3, max_size=6))
@example(  # a wait that had less than the clock's last place left was begun again and again
    events=[
        (2.0, "slow", 2), (2.93265801592207, "slow", 4), (1.1, "drain", 4), (0.1, "grow", 1),
        (10.684904477750091, "kill", 2), (2.3617119995163693, "grow", 5), (10.322448300169572, "hang", 4),
        (8.708537109840709, "kill", 1), (9.674718911646012, "grow", 2), (9.375602605802754, "drain", 5),
    ],
    staleness=2,
    gaps=[7.122643261058608, 4.593498556850346, 4.224330980742221, 2.909164329852398, 1.9, 0.2661272727455953],
)  # fmt: skip
def test_every_token_is_of_the_version_it_says_and_none_is_too_old(
    events: list[Event], staleness: int, gaps: list[float]
) -> None:
    async def story(pool: Pool, engines: Engines) -> list[tuple[int, SampleRequest, Completion]]:
        async def disturb() -> None:
            for wait_s, what, number in events:
                await asyncio.sleep(wait_s)
                victim = engines.made[number % len(engines.made)]
                if what in ("kill", "hang"):
                    getattr(victim, what)()
                else:
                    pool.scale_to(1 + number % 3)

        await asyncio.sleep(4)
        disturbing = asyncio.create_task(disturb())
        rounds = []
        for step, gap_s in enumerate(gaps):
            wanted = [
                replace(each, key=f"{step}.{each.key}", seed=each.seed + 77 * step)
                for each in requests(12, 2, room=500)
            ]
            min_step = max(0, step - staleness)
            rounds.append((min_step, wanted, pool.sample(wanted, min_step)))
            await asyncio.sleep(gap_s)
            oldest = step + 1 - staleness
            for _, _, futures in rounds[: max(0, oldest)]:  # the rule of admission
                await asyncio.wait(futures)
            await pool.set_weights(PolicyVersion(1, step + 1), "weights")
        answers = [await asyncio.gather(*futures) for _, _, futures in rounds]
        await disturbing
        return [
            (min_step, request, completion)
            for (min_step, wanted, _), completions in zip(rounds, answers, strict=True)
            for request, completion in zip(wanted, completions, strict=True)
        ]

    engines = Engines(replace(SPEED, start_s=3, median_length=200))
    limits = replace(LIMITS, max_tries=20, max_starts=20)
    for min_step, request, completion in in_pool(story, engines, limits=limits):
        assert completion.key == request.key
        assert [span.begin for span in completion.spans] == sorted({span.begin for span in completion.spans})
        assert min(span.version.step for span in completion.spans) >= min_step
        expected = tokens_of(request, completion.spans, 0, len(completion.token_ids))
        assert completion.token_ids.tobytes() == expected.tobytes()


def test_what_moves_is_counted() -> None:
    async def story(pool: Pool, engines: Engines) -> Any:
        futures = pool.sample(requests(8, room=100), 0)
        await asyncio.sleep(22.45)
        engines.made[0].kill()
        await asyncio.gather(*futures)
        return pool.statistics()

    slow = replace(SPEED, median_length=5000)
    kept, anew = (in_pool(story, Engines(slow), resume_partial=resume_partial) for resume_partial in (True, False))
    assert (kept.moved, kept.lost, kept.tokens) == (4, 1, 800)
    assert kept.resumed_tokens == anew.regenerated_tokens > 100
    assert kept.regenerated_tokens == anew.resumed_tokens == 0


@pytest.mark.parametrize(("resume_partial", "room", "expected"), [(False, 2000, 0), (True, 400, 0), (True, 2000, 3)])
def test_unfinished_tokens_stay_in_their_engine_until_a_loss_would_weigh(
    resume_partial: bool, room: int, expected: int
) -> None:
    """Not at all where they would be thrown away; else once there are 512 more of a request."""
    handed: list[int] = []

    class Watched(FakeEngine):
        async def collect(self, timeout_s: float, part_tokens: int | None) -> Collected:
            collected = await super().collect(timeout_s, part_tokens)
            handed.extend(len(part.token_ids) for part in collected.parts)
            return collected

    async def story(pool: Pool, engines: Engines) -> Any:
        futures = pool.sample(requests(8, room=room), 0)
        await asyncio.sleep(28)
        assert pool._replicas["engine-0"].num_unfinished > 4 * 300  # counted all the same
        await asyncio.gather(*futures)

    slow = Engines(replace(SPEED, median_length=50_000), kind=Watched)
    in_pool(story, slow, resume_partial=resume_partial, limits=replace(LIMITS, part_tokens=Limits().part_tokens))
    assert len(handed) == 8 * expected
    assert all(512 <= number < 600 for number in handed)


def test_what_has_all_its_tokens_when_its_engine_dies_is_done() -> None:
    class LastWords(FakeEngine):
        async def collect(self, timeout_s: float, part_tokens: int | None) -> Collected:
            collected = await super().collect(timeout_s, part_tokens)
            finished = [replace(completion, finish=None) for completion in collected.finished]
            if finished:
                self.kill()
            return replace(collected, finished=(), parts=(*collected.parts, *finished))

    async def story(pool: Pool, engines: Engines) -> Completion:
        return await pool.sample(requests(1, room=10), 0)[0]

    completion = in_pool(story, Engines(kind=LastWords), size=1)
    assert (len(completion.token_ids), completion.finish) == (10, "length")


# ---- routing ----


def test_the_load_is_even_and_prompts_stay_together() -> None:
    async def story(pool: Pool, engines: Engines) -> list[list[int]]:
        futures = pool.sample(requests(16, 4), 0)
        await asyncio.sleep(20.6)
        assert not any(future.done() for future in futures)
        return [[int(each.prompt_ids[0]) for each in engine.taken] for engine in engines.made]

    speed = replace(SPEED, max_num_seqs=100, step_s=1)
    taken = in_pool(story, Engines(speed, Noting), size=4, limits=replace(LIMITS, max_outstanding=100))
    assert [len(prompts) for prompts in taken] == [16] * 4
    together = sum(prompts.count(prompt) == 4 for prompts in taken for prompt in set(prompts))
    assert together >= 12


def test_a_slow_engine_gets_less() -> None:
    async def story(pool: Pool, engines: Engines) -> list[int]:
        await asyncio.sleep(25)
        engines.made[0].slow_down(8)
        await asyncio.gather(*pool.sample(requests(100, 4), 0))
        return [engine.tokens for engine in engines.made]

    slow, fast = in_pool(story)
    assert fast > 3 * slow


def test_requests_travel_in_batches() -> None:
    async def story(pool: Pool, engines: Engines) -> list[int]:
        futures = [future for request in requests(100, 8) for future in pool.sample([request], 0)]
        await asyncio.gather(*futures)
        return [engine.batches for engine in engines.made]

    engines = Engines(replace(SPEED, max_num_seqs=1000), Noting)
    assert in_pool(story, engines, limits=replace(LIMITS, max_outstanding=1000)) == [1, 1]


# ---- weights ----


def test_requests_wait_for_weights_that_are_new_enough() -> None:
    async def story(pool: Pool, engines: Engines) -> tuple[list[float], list[Completion]]:
        clock = asyncio.get_running_loop().time
        done: list[float] = []
        futures = pool.sample(requests(1), 1)
        futures[0].add_done_callback(lambda _: done.append(clock()))
        await asyncio.gather(*pool.sample(requests(2), 0))
        assert not done
        published = clock()
        await pool.set_weights(V1, "newer")
        return [at - published for at in done], await asyncio.gather(*futures)

    late, (completion,) = in_pool(story)
    assert not late  # it is sampled after the weights are there
    assert [span.version for span in completion.spans] == [V1]


def test_weights_are_loaded_in_flight_by_all_at_once() -> None:
    async def story(pool: Pool, engines: Engines) -> tuple[float, dict[str, float], list[Completion]]:
        clock = asyncio.get_running_loop().time
        futures = pool.sample(requests(16, room=100), 0)
        await asyncio.sleep(21)
        began = clock()
        loading = asyncio.ensure_future(pool.set_weights(V1, "newer"))
        await asyncio.sleep(0.2)
        stands = pool.statistics()
        assert (stands.serving, stands.joining) == (3, 0)  # or each publication would look like new engines
        pauses_s = await loading
        took_s = clock() - began
        return took_s, pauses_s, await asyncio.gather(*futures)

    took_s, pauses_s, completions = in_pool(story, Engines(replace(SPEED, median_length=5000)), size=3)
    assert took_s == pytest.approx(0.5)
    assert pauses_s == {f"engine-{n}": 0.1 for n in range(3)}
    assert all([span.version for span in completion.spans] == [V0, V1] for completion in completions)


def test_an_engine_that_joins_late_loads_the_current_weights_first() -> None:
    async def story(pool: Pool, engines: Engines) -> Any:
        await asyncio.sleep(30)
        pool.scale_to(2)
        await asyncio.sleep(19)
        futures = pool.sample(requests(64), 0)
        await pool.set_weights(V1, "newer")
        await asyncio.gather(*futures)
        return [engine.loads for engine in engines.made], [bool(engine.taken) for engine in engines.made]

    loads, used = in_pool(story, Engines(kind=Noting), size=1)
    assert loads == [[V0, V1], [V1]]
    assert used == [True, True]


def test_weights_that_cannot_be_had_are_asked_for_again_until_newer_ones_come() -> None:
    class Orphan(FakeEngine):
        async def load(self, version: PolicyVersion, weights: Any) -> float:
            if weights == "lost":
                raise RuntimeError("the owner of the weights died")
            return await super().load(version, weights)

    async def story(pool: Pool, engines: Engines) -> tuple[Any, Any]:
        await asyncio.sleep(25)
        lost = asyncio.ensure_future(pool.set_weights(V1, "lost"))
        await asyncio.sleep(15)
        assert not lost.done()
        await pool.set_weights(PolicyVersion(2, 1), "of the next worker group")
        recovered = pool.statistics()
        await pool.set_weights(PolicyVersion(2, 2), "lost")
        return recovered, pool.statistics()

    recovered, given_up = in_pool(story, Engines(kind=Orphan))
    assert (recovered.serving, recovered.lost) == (2, 0)
    assert given_up.lost == 2  # within load_s


def test_weights_of_a_new_worker_group_end_the_requests_of_the_old_one() -> None:
    async def story(pool: Pool, engines: Engines) -> list[Completion]:
        futures = pool.sample(requests(50), 0)
        await asyncio.sleep(22)
        await pool.set_weights(PolicyVersion(2, 0), "restored")
        assert all(future.done() for future in futures)
        assert any(future.cancelled() for future in futures)
        with pytest.raises(ValueError, match="after those of"):
            await pool.set_weights(V1, "late")
        return await asyncio.gather(*pool.sample(requests(50), 0))

    completions = in_pool(story)
    assert {span.version for completion in completions for span in completion.spans} == {PolicyVersion(2, 0)}


def test_an_engine_that_samples_with_older_weights_is_lost() -> None:
    class Forgetful(FakeEngine):
        async def load(self, version: PolicyVersion, weights: Any) -> float:
            return await super().load(V0, weights)

    async def story(pool: Pool, engines: Engines) -> None:
        await pool.set_weights(V1, "newer")
        await pool.sample(requests(1), 1)[0]

    with pytest.raises(SampleFailed, match="where step 1 or later was asked"):
        in_pool(story, Engines(kind=Forgetful))


# ---- what is wrong with an engine ----


def test_a_silent_engine_gets_nothing_new_and_is_taken_back_when_it_answers() -> None:
    async def story(pool: Pool, engines: Engines) -> tuple[str, Any]:
        await asyncio.sleep(25)
        engines.made[0].hang()
        await asyncio.sleep(8)
        suspect = pool.describe()
        futures = pool.sample(requests(12), 0)
        await asyncio.sleep(1)
        assert not engines.made[0].taken
        engines.made[0].go_on()
        await asyncio.gather(*futures)
        return suspect, pool.statistics()

    suspect, statistics = in_pool(story, Engines(kind=Noting))
    assert "engine-0: suspect" in suspect
    assert (statistics.serving, statistics.lost) == (2, 0)


def test_a_silent_engine_is_given_up_and_its_requests_move() -> None:
    async def story(pool: Pool, engines: Engines) -> Any:
        await asyncio.sleep(25)
        futures = pool.sample(requests(8), 0)
        await asyncio.sleep(0.1)
        engines.made[0].hang()
        await asyncio.gather(*futures)
        return asyncio.get_running_loop().time(), pool.statistics()

    seconds, statistics = in_pool(story)
    assert statistics.lost == 1
    assert seconds < 25 + 30 + 10


def test_an_engine_that_makes_no_tokens_is_given_up() -> None:
    class Idle(FakeEngine):
        async def submit(self, requests: Sequence[SampleRequest]) -> None:
            pass

    with pytest.raises(SampleFailed, match=r"no token of 1 requests for 60 s.*no token"):
        in_pool(lambda pool, _: pool.sample(requests(1), 0)[0], Engines(kind=Idle), limits=replace(LIMITS, max_tries=2))


def test_a_request_under_which_engines_die_fails_alone() -> None:
    class Poisoned(FakeEngine):
        async def submit(self, requests: Sequence[SampleRequest]) -> None:
            await super().submit(requests)
            if any(request.key.startswith("3:") for request in requests):
                self.kill()

    async def story(pool: Pool, engines: Engines) -> list[Any]:
        return await asyncio.gather(*pool.sample(requests(8), 0), return_exceptions=True)

    limits = replace(LIMITS, max_outstanding=1, max_tries=3)
    answers = in_pool(story, Engines(kind=Poisoned), limits=limits)
    failed = [n for n, answer in enumerate(answers) if isinstance(answer, SampleFailed)]
    assert failed == [3]
    assert str(answers[3]).count("its process died") == 3


def test_a_request_that_is_refused_fails_alone() -> None:
    async def story(pool: Pool, engines: Engines) -> tuple[list[Any], Any]:
        wanted = requests(20)
        wanted[7] = replace(wanted[7], max_tokens=0)
        answers = await asyncio.gather(*pool.sample(wanted, 0), return_exceptions=True)
        return answers, pool.statistics()

    answers, statistics = in_pool(story)
    assert [n for n, answer in enumerate(answers) if isinstance(answer, SampleFailed)] == [7]
    assert "7:0#7: no room for a token" in str(answers[7])
    assert (statistics.failed, statistics.lost) == (1, 0)


def test_engines_that_cannot_start_end_the_pool_with_their_own_words() -> None:
    with pytest.raises(
        EnginesFailed, match=r"3 engines in a row could not start; engine-\d: RuntimeError: no such model"
    ):
        in_pool(lambda pool, _: pool.sample(requests(1), 0)[0], Engines(start_error="no such model"), size=1)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_engines_that_can_start_nowhere_end_the_pool_soon(size: int) -> None:
    async def story(pool: Pool, engines: Engines) -> Any:
        with pytest.raises(EnginesFailed, match=r"could not start; engine-\d+: RuntimeError: no such model"):
            await pool.sample(requests(1), 0)[0]
        return asyncio.get_running_loop().time()

    limits = replace(LIMITS, max_starts=5)
    assert in_pool(story, Engines(start_error="no such model"), size=size, limits=limits) < 3 * (SPEED.start_s + 1)


def test_a_node_where_no_engine_starts_is_survived_while_others_are_on_their_way() -> None:
    async def story(pool: Pool, engines: Engines) -> Any:
        await asyncio.gather(*pool.sample(requests(8), 0))
        return pool.statistics().lost

    class OnNodes(Engines):
        """Every engine but the second, which takes its time, is where none can start."""

        def __call__(self, name: str) -> FakeEngine:
            good = len(self.made) == 1
            self._speed = replace(SPEED, start_s=50 if good else 5)
            self._options = {} if good else {"start_error": "no such device"}
            return super().__call__(name)

    assert in_pool(story, OnNodes()) > 3


def test_starts_that_fail_beside_a_busy_engine_come_ever_later() -> None:
    async def story(pool: Pool, engines: Engines) -> int:
        await asyncio.sleep(30)
        engines._options = {"start_error": "no such device"}
        pool.scale_to(2)
        until = asyncio.get_running_loop().time() + 600
        while asyncio.get_running_loop().time() < until:
            await asyncio.gather(*pool.sample(requests(4), 0))
        return len(engines.made)

    assert 4 < in_pool(story, Engines(replace(SPEED, start_s=2)), size=1) < 20


def test_an_engine_that_dies_while_it_starts_is_quoted() -> None:
    class Doomed(FakeEngine):
        async def start(self) -> None:
            self.kill()
            await super().start()

    with pytest.raises(EnginesFailed, match=r"its process died; its last lines:\n  the simulated engine was here"):
        in_pool(lambda pool, _: pool.sample(requests(1), 0)[0], Engines(kind=Doomed), size=1)


def test_a_bad_start_beside_an_engine_that_serves_is_survived() -> None:
    async def story(pool: Pool, engines: Engines) -> Any:
        await asyncio.sleep(30)
        engines._options = {"start_error": "no such device"}
        pool.scale_to(2)
        await asyncio.sleep(400)
        await asyncio.gather(*pool.sample(requests(4), 0))
        tried = len(engines.made)
        engines._options = {}
        await asyncio.sleep(100)
        return tried, pool.statistics()

    tried, statistics = in_pool(story, size=1)
    assert 4 < tried < 20  # it backs off
    assert statistics.serving == 2


def test_no_engine_with_a_place_is_an_error_in_the_end() -> None:
    message = "no engine could take requests for 900 s .*: engine-0: waiting for a place in the cluster"
    with pytest.raises(EnginesFailed, match=message):
        in_pool(lambda pool, _: pool.sample(requests(1), 0)[0], Engines(placed=False))


def test_one_engine_serves_while_another_waits_for_its_place() -> None:
    async def story(pool: Pool, engines: Engines) -> Any:
        engines._options = {"placed": False}
        pool.scale_to(3)
        await asyncio.sleep(1000)
        await asyncio.gather(*pool.sample(requests(30), 0))
        before = pool.statistics()
        for engine in engines.made:
            engine.place()
        await asyncio.sleep(25)
        return before, pool.statistics()

    before, after = in_pool(story, size=1)
    assert (before.serving, before.joining) == (1, 2)
    assert (after.serving, after.joining) == (3, 0)


# ---- the canary's question ----


def test_every_engine_that_has_started_is_asked_once_it_holds_the_weights() -> None:
    class Slow(FakeEngine):
        async def load(self, version: PolicyVersion, weights: Any) -> float:
            await asyncio.sleep(10 if self is engines.made[1] else 0)
            return await super().load(version, weights)

    async def story(pool: Pool, _: Engines) -> Any:
        await asyncio.sleep(40)
        loading = asyncio.create_task(pool.set_weights(V1, "newer"))
        pool.scale_to(3)
        probed = await pool.score(np.arange(9, dtype=np.int32))
        await loading
        return probed

    engines = Engines(kind=Slow)
    probed = in_pool(story, engines)
    assert sorted(probed.logprobs) == ["engine-0", "engine-1"]
    assert probed.missing == ("engine-2",)


def test_an_engine_that_does_not_score_in_time_is_asked_again_and_then_left_out() -> None:
    asked: list[float] = []

    class Busy(FakeEngine):
        async def score(self, token_ids: Any, timeout_s: float) -> Any:
            if self is not engines.made[0]:
                return await super().score(token_ids, timeout_s)
            asked.append(asyncio.get_running_loop().time())
            await asyncio.sleep(timeout_s)
            raise TimeoutError("busy")

    async def story(pool: Pool, _: Engines) -> Any:
        await asyncio.sleep(25)
        began = asyncio.get_running_loop().time()
        probed = await pool.score(np.arange(9, dtype=np.int32))
        return probed, asyncio.get_running_loop().time() - began, pool.statistics().lost

    engines = Engines(kind=Busy)
    with pytest.raises(UserError, match="no engine scored a text of 9 tokens, asked 3 times: engine-0"):
        in_pool(story, engines, size=1)
    asked.clear()
    engines = Engines(kind=Busy)
    probed, took_s, lost = in_pool(story, engines)
    assert (list(probed.logprobs), probed.missing, lost) == (["engine-1"], ("engine-0",), 0)
    assert len(asked) == 3
    assert took_s == pytest.approx(3 * LIMITS.answer_s)


# ---- fewer engines, fewer requests ----


@pytest.mark.parametrize("resume_partial", [True, False])
def test_a_leaving_engine_hands_over_what_it_cannot_finish(resume_partial: bool) -> None:
    async def story(pool: Pool, engines: Engines) -> Any:
        await asyncio.sleep(25)
        futures = pool.sample(requests(8, room=500), 0)
        await asyncio.sleep(1)
        pool.scale_to(1)
        completions = await asyncio.gather(*futures)
        assert [engine.dead for engine in engines.made] == [False, True]
        return completions, pool.statistics()

    completions, statistics = in_pool(story, Engines(replace(SPEED, median_length=5000)), resume_partial=resume_partial)
    assert {len(completion.token_ids) for completion in completions} == {500}
    assert (statistics.moved, statistics.lost, statistics.serving) == (4, 0, 1)
    # A second before it was asked to leave, and drain_s after.
    made = statistics.resumed_tokens if resume_partial else statistics.regenerated_tokens
    assert made == pytest.approx(4 * 3 / 0.02, rel=0.05)


def test_what_is_given_up_while_a_leaving_engine_aborts_is_no_loss() -> None:
    class Slow(FakeEngine):
        async def abort(self, keys: Sequence[str]) -> tuple[Completion, ...]:
            parts = await super().abort(keys)
            await asyncio.sleep(3)
            return parts

    async def story(pool: Pool, engines: Engines) -> Any:
        await asyncio.sleep(25)
        futures = pool.sample(requests(8, room=5000), 0)
        await asyncio.sleep(1)
        pool.scale_to(1)
        await asyncio.sleep(LIMITS.drain_s + 1)
        pool.abandon()
        await asyncio.sleep(10)
        assert all(future.cancelled() for future in futures)
        return pool.statistics()

    stands = in_pool(story, Engines(replace(SPEED, median_length=5000), Slow))
    assert (stands.lost, stands.failed, stands.serving) == (0, 0, 1)


@pytest.mark.parametrize("seconds", [0.6, 1.0, 1.4])
def test_a_leaving_engines_parts_have_no_gap_whatever_answer_comes_first(seconds: float) -> None:
    class Overtaken(FakeEngine):
        async def collect(self, timeout_s: float, part_tokens: int | None) -> Collected:
            collected = await super().collect(timeout_s, part_tokens)
            await asyncio.sleep(0.9)  # on its way, while `abort` is answered
            return collected

    wanted = requests(8, room=500)

    async def story(pool: Pool, engines: Engines) -> list[Completion]:
        await asyncio.sleep(25)
        futures = pool.sample(wanted, 0)
        await asyncio.sleep(seconds)
        pool.scale_to(1)
        return await asyncio.gather(*futures)

    completions = in_pool(story, Engines(replace(SPEED, median_length=5000), Overtaken))
    for request, completion in zip(wanted, completions, strict=True):
        expected = tokens_of(request, completion.spans, 0, len(completion.token_ids))
        assert completion.token_ids.tobytes() == expected.tobytes()


def test_an_engine_about_to_leave_may_stay() -> None:
    async def story(pool: Pool, engines: Engines) -> int:
        await asyncio.sleep(25)
        futures = pool.sample(requests(20), 0)
        await asyncio.sleep(0.5)
        pool.scale_to(1)
        await asyncio.sleep(0.5)
        pool.scale_to(2)
        await asyncio.gather(*futures)
        await asyncio.sleep(100)
        assert pool.statistics().serving == 2
        return len(engines.made)

    assert in_pool(story) == 2


def test_what_is_given_up_makes_room() -> None:
    async def story(pool: Pool, engines: Engines) -> tuple[float, list[int]]:
        await asyncio.sleep(25)
        given_up = pool.sample(requests(100, room=100_000), 0)
        await asyncio.sleep(1)
        for future in given_up:
            future.cancel()
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*pool.sample(requests(4, room=10), 0))
        return asyncio.get_running_loop().time() - began, [engine.num_in_flight for engine in engines.made]

    seconds, left = in_pool(story, Engines(replace(SPEED, median_length=90_000)))
    assert seconds < 1
    assert left == [0, 0]
