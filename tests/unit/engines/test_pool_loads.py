"""Weights that take long to load, or cannot be loaded: no request is lost, and nothing waits without bound.

The pool is the real one, over simulated engines in virtual time.
"""

import asyncio
import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayswift.engines.pool.pool import EnginesFailed, Pool
from rayswift.engines.samples import Completion, PolicyVersion, SampleRequest
from tests.support.fake_engine import FakeEngine, Load, tokens_of
from tests.support.pools import LIMITS, SPEED, V0, V1, Engines, in_pool, requests

LONG = replace(SPEED, median_length=5000)
FIVE_MINUTES = replace(LONG, load_s=300, pause_s=300)


def now() -> float:
    return asyncio.get_running_loop().time()


def assert_whole(wanted: Sequence[SampleRequest], completions: Sequence[Completion], attempt: int = 1) -> None:
    """Each completion is what the versions in its spans make of its request, with no gap and no end too early."""
    for request, completion in zip(wanted, completions, strict=True):
        assert completion.key == request.key
        expected = tokens_of(request, completion.spans, 0, len(completion.token_ids))
        assert completion.token_ids.tobytes() == expected.tobytes()
        assert completion.finish == "stop" or len(completion.token_ids) == request.max_tokens
        assert {span.version.attempt for span in completion.spans} == {attempt}


# ---- loads that take long ----


@pytest.mark.parametrize("at_first", [True, False])
def test_an_engine_that_loads_for_five_minutes_is_not_lost(at_first: bool) -> None:
    wanted = requests(12)

    async def story(pool: Pool, engines: Engines) -> tuple[list[Completion], Any]:
        futures = pool.sample(wanted, 0)
        if not at_first:
            await asyncio.sleep(400)
            for engine in engines.made:
                engine.slow_loads(300)
            await pool.set_weights(V1, "newer")
        return await asyncio.gather(*futures), pool.statistics()

    speed = FIVE_MINUTES if at_first else replace(LONG, step_s=4)
    completions, stands = in_pool(story, Engines(speed), limits=replace(LIMITS, load_s=400))
    assert_whole(wanted, completions)
    assert (stands.lost, stands.failed, stands.moved) == (0, 0, 0)


def test_calls_wait_for_a_load_and_what_is_new_goes_to_an_engine_that_answers() -> None:
    wanted = requests(6)

    async def story(pool: Pool, engines: Engines) -> Any:
        await asyncio.sleep(25)
        before = pool.sample(requests(8), 0)
        await asyncio.sleep(0.5)
        engines.made[0].slow_loads(300)
        loading = asyncio.ensure_future(pool.set_weights(V1, "newer"))
        before[0].cancel()  # an abort that has to wait
        scored = asyncio.ensure_future(pool.score(np.arange(9, dtype=np.int32)))
        await asyncio.sleep(20)
        asked_at = now()
        completions = await asyncio.gather(*pool.sample(wanted, 0))
        waited_s = now() - asked_at
        described = pool.describe()
        await loading
        await asyncio.gather(*before[1:], scored)
        return completions, waited_s, described, pool.statistics()

    completions, waited_s, described, stands = in_pool(story, limits=replace(LIMITS, load_s=400))
    assert_whole(wanted, completions)
    assert waited_s < 10
    assert "engine-0: loading version 1 of attempt 1" in described
    assert (stands.lost, stands.failed) == (0, 0)


def test_a_load_that_takes_longer_than_allowed_ends_the_engine_and_says_which_limit() -> None:
    async def story(pool: Pool, engines: Engines) -> Any:
        await asyncio.sleep(25)
        began = now()
        futures = pool.sample(requests(8, room=4000), 0)
        engines.made[0].spoil_loads(["hang"])
        await pool.set_weights(V1, "newer")
        await asyncio.gather(*futures)
        return now() - began, pool.statistics()

    seconds, stands = in_pool(story, Engines(LONG))
    assert (stands.lost, stands.failed, stands.serving) == (1, 0, 2)
    assert seconds < 4000 * SPEED.step_s + LIMITS.load_s + LIMITS.start_s


# ---- loads that fail ----


@pytest.mark.parametrize("resume_partial", [True, False])
@pytest.mark.parametrize("what", ["fail", "unreachable"])
@pytest.mark.parametrize("size", [1, 2])
def test_a_load_that_fails_once_loses_no_request(what: Load, size: int, resume_partial: bool) -> None:
    wanted, later = requests(16, room=300), requests(8, 2)

    async def story(pool: Pool, engines: Engines) -> Any:
        futures = pool.sample(wanted, 0)
        await asyncio.sleep(22)
        for engine in engines.made:
            engine.spoil_loads([what])
        loading = asyncio.ensure_future(pool.set_weights(V1, "newer"))
        new = []
        for request in later:  # before, while and after the load fails
            new += pool.sample([replace(request, key=f"later {request.key}")], 0)
            await asyncio.sleep(0.1)
        await loading
        return await asyncio.gather(*futures), await asyncio.gather(*new), pool.statistics()

    completions, new, stands = in_pool(story, Engines(LONG), size=size, resume_partial=resume_partial)
    assert_whole(wanted, completions)
    assert_whole([replace(request, key=f"later {request.key}") for request in later], new)
    assert (stands.lost, stands.failed, stands.requests) == (0, 0, len(wanted) + len(later))
    if resume_partial:
        assert stands.regenerated_tokens == 0


def test_an_engine_whose_loads_always_fail_is_replaced() -> None:
    wanted = requests(16, room=300)

    async def story(pool: Pool, engines: Engines) -> Any:
        futures = pool.sample(wanted, 0)
        await asyncio.sleep(22)
        engines.made[0].spoil_loads(itertools.repeat("fail"))
        began = now()
        await pool.set_weights(V1, "newer")
        took_s = now() - began
        completions = await asyncio.gather(*futures)
        await asyncio.sleep(60)
        return completions, took_s, [engine.dead for engine in engines.made], pool.statistics()

    completions, took_s, dead, stands = in_pool(story, Engines(LONG))
    assert_whole(wanted, completions)
    assert dead == [True, False, False]
    assert (stands.lost, stands.failed, stands.serving) == (1, 0, 2)
    assert took_s < 30


@pytest.mark.parametrize("what", ["fail", "die", "hang", "unreachable"])
@pytest.mark.parametrize("at_first", [True, False])
def test_loads_that_fail_everywhere_end_the_run_with_one_error(what: Load, at_first: bool) -> None:
    async def story(pool: Pool, engines: Engines) -> Any:
        began = now()
        futures = pool.sample(requests(16, room=3000), 0)
        if not at_first:
            await asyncio.sleep(22)
            began = now()
            engines.spoil_loads(what)
            await pool.set_weights(V1, "newer")
        for future in futures:
            with pytest.raises(EnginesFailed) as error:
                await future
        return now() - began, str(error.value), len(engines.made)

    engines = Engines(LONG, loads=itertools.repeat(what)) if at_first else Engines(LONG)
    seconds, text, num_engines = in_pool(story, engines)
    reasons = {
        "fail": "it could not load version 1 of attempt 1 in 3 tries: half of the weights are in place",
        "die": "its process died",
        "hang": "it did not load version 1 of attempt 1 within 30 s (rollout.load_timeout_s)",
        "unreachable": "it could not load version 1 of attempt 1: the owner of the weights died",
    }
    if at_first:
        reasons = {name: text.replace("version 1", "version 0") for name, text in reasons.items()}
    assert re.match(r"\d engines in a row could not come to serve; engine-\d: ", text)
    assert reasons[what] in text
    # Each generation of engines starts, and may take as long as a load may; there are few.
    assert seconds < 4 * (SPEED.start_s + LIMITS.load_s + 10)
    assert num_engines <= 6


def test_an_engine_that_dies_while_it_loads_loses_nothing() -> None:
    wanted = requests(16, room=300)

    async def story(pool: Pool, engines: Engines) -> Any:
        futures = pool.sample(wanted, 0)
        await asyncio.sleep(22)
        engines.made[1].spoil_loads(["die"])
        await pool.set_weights(V1, "newer")
        completions = await asyncio.gather(*futures)
        await asyncio.sleep(60)
        return completions, pool.statistics()

    completions, stands = in_pool(story, Engines(LONG))
    assert_whole(wanted, completions)
    assert (stands.lost, stands.failed, stands.serving) == (1, 0, 2)


LOADS: tuple[Load, ...] = ("take", "fail", "unreachable", "die", "hang")


@settings(max_examples=30)
@given(
    spoilt=st.lists(st.tuples(st.integers(0, 4), st.lists(st.sampled_from(LOADS), max_size=3)), min_size=3, max_size=6),
    gaps=st.lists(st.floats(0.2, 8), min_size=6, max_size=6),
    load_s=st.sampled_from([0.5, 25.0]),
    resume_partial=st.booleans(),
)
def test_whatever_becomes_of_loads_each_request_is_answered_with_the_versions_it_says(
    spoilt: list[tuple[int, list[Load]]], gaps: list[float], load_s: float, resume_partial: bool
) -> None:
    async def story(pool: Pool, engines: Engines) -> list[tuple[int, SampleRequest, Completion]]:
        rounds = []
        for step, ((number, loads), gap_s) in enumerate(zip(spoilt, gaps, strict=False)):
            wanted = [replace(each, key=f"{step}.{each.key}", seed=each.seed + 77 * step) for each in requests(9, 2)]
            rounds.append((step, wanted, pool.sample(wanted, max(0, step - 1))))
            await asyncio.sleep(gap_s)
            for _, _, futures in rounds[:step]:  # the rule of admission, at a staleness of 1
                await asyncio.wait(futures)
            engines.made[number % len(engines.made)].spoil_loads(loads)
            await pool.set_weights(PolicyVersion(1, step + 1), "weights")
        answers = [await asyncio.gather(*futures) for _, _, futures in rounds]
        return [
            (max(0, step - 1), request, completion)
            for (step, wanted, _), completions in zip(rounds, answers, strict=True)
            for request, completion in zip(wanted, completions, strict=True)
        ]

    limits = replace(LIMITS, max_tries=20, max_starts=20)
    engines = Engines(replace(SPEED, start_s=3, load_s=load_s, pause_s=load_s))
    for min_step, request, completion in in_pool(story, engines, limits=limits, resume_partial=resume_partial):
        assert_whole([request], [completion])
        assert min(span.version.step for span in completion.spans) >= min_step


def test_spoilt_loads_are_as_nasty_as_they_say() -> None:
    """The simulated engine itself: a failed load leaves nothing, and nothing is answered while it loads."""

    async def story(pool: Pool, engines: Engines) -> Any:
        engine = FakeEngine(replace(LONG, load_s=100, pause_s=100), loads=["take", "fail"])
        await engine.start()
        await engine.load(V0, "weights")
        await engine.submit(requests(2))
        loading = asyncio.ensure_future(engine.load(V1, "weights"))
        await asyncio.sleep(1)
        before, asked_at = engine.tokens, now()
        collecting = asyncio.ensure_future(engine.collect(1, None))
        with pytest.raises(Exception, match="half of the weights"):
            await loading
        await collecting
        return engine.tokens - before, now() - asked_at, (engine.version, engine.num_in_flight)

    made, waited_s, status = in_pool(story)
    assert made == 0
    assert waited_s >= 99
    assert status == (None, 0)
