"""ms-swift's environments and schedulers, written as its users write them."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayswift.config.rollout import RolloutConfig
from rayswift.config.swift import plugin_modules
from rayswift.config.user_code import load
from rayswift.engines.samples import Completion, PolicyVersion, SampleRequest, Span
from rayswift.log import UserError
from rayswift.rollout.adapters import named
from rayswift.rollout.episodes import contract
from rayswift.rollout.episodes.calls import Said
from rayswift.rollout.episodes.hosts import RemoteSession
from rayswift.rollout.episodes.play import EpisodeLimits, play
from rayswift.rollout.episodes.sessions import Answer, Runner, Session, Start, Turn
from rayswift.rollout.episodes.trajectories import checksum
from rayswift.rollout.episodes.turns import Turns
from tests.unit.rollout.test_episodes import SCHEMAS, tokenizer_dir

__all__ = ["tokenizer_dir"]
PLUGIN = """
from swift.infer_engine.protocol import RolloutInferRequest
from swift.plugin import Env, envs, multi_turns
from swift.rollout.multi_turn import MultiTurnScheduler
from swift.utils import get_logger

logger = get_logger()


class Lock(Env):
    async def reset(self, config: RolloutInferRequest):
        self.code = config.data_dict["code"]
        return f"Open {len(self.code)}.", {}, "You open locks."

    async def step(self, action):
        said = action[-1]["content"]
        right = sum(a == b for a, b in zip(said, self.code))
        return f"{right} right", right / 10, said == self.code, {}

    async def close(self):
        logger.info("closed")


class Tool(MultiTurnScheduler):
    def step(self, infer_request, response_choice, current_turn):
        said = response_choice.message.content
        infer_request.messages.append({"role": "tool", "content": said.upper()})
        return {"infer_request": infer_request, "rollout_infos": {"turns": current_turn}}

    def check_finished(self, infer_request, response_choice, current_turn):
        return "stop" in response_choice.message.content or super().check_finished(
            infer_request, response_choice, current_turn)


class Own(MultiTurnScheduler):
    async def run(self, infer_request, request_config, **kwargs):
        pass


class Rewrites(MultiTurnScheduler):
    def step(self, infer_request, response_choice, current_turn):
        infer_request.messages[0]["content"] = "other"
        infer_request.messages.pop()
        return {"infer_request": infer_request}


envs["lock"] = Lock
multi_turns.update(tool=Tool, own=Own, rewrites=Rewrites)
"""


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path) -> Iterator[None]:
    file = tmp_path / "plugin.py"
    file.write_text(PLUGIN)
    load("train.plugins", str(file))
    yield
    plugin_modules.envs.clear()


def spec(environment: str, max_turns: int | None = None) -> contract.EnvironmentSpec:
    return contract.EnvironmentSpec((), environment, 5.0, 1000, 2, max_turns)


def said(text: str, number: int = 0, last: bool = False) -> Turn:
    return Turn(number, text, Said(text), [1, 2], "stop", last)


def answer_of(environment: str, story: Any, **options: Any) -> Any:
    async def tell() -> Any:
        with ThreadPoolExecutor(2) as threads:
            make = await named.make(spec(environment, **options), Runner(threads, 5.0))
            assert make is not None
            return await story(make())

    return asyncio.run(tell())


START = Start([{"role": "user", "content": "Hi."}], {"code": "31", "env_config": {"name": "lock"}, "solution": "4"}, 0)


@pytest.mark.parametrize("environment", ["swift_env", "swift_env:lock", "swift_scheduler:gym_scheduler"])
def test_an_env_is_played(environment: str) -> None:
    async def story(session: Session) -> Any:
        opened = await session.reset(START)
        first = await session.answer(said("32"))
        second = await session.answer(said("31", 1))
        reward = await session.reward()
        await session.close()
        return opened, first, second, reward

    opened, first, second, reward = answer_of(environment, story)
    assert opened == [{"role": "system", "content": "You open locks."}, {"role": "user", "content": "Open 2."}]
    assert (first.messages, first.done) == (({"role": "user", "content": "1 right"},), False)
    assert second.done
    assert second.infos["step_rewards"] == [0.1, 0.2]
    assert reward == pytest.approx(0.3)


def test_a_row_that_asks_for_a_context_manager_fails() -> None:
    columns = {**START.columns, "ctx_config": {"name": "own"}}
    with pytest.raises(NotImplementedError, match="the row's ctx_config: RaySwift has no context managers"):
        answer_of("swift_env", lambda session: session.reset(replace(START, columns=columns)))


def test_a_scheduler_answers_by_step_until_it_is_finished() -> None:
    async def story(session: Session) -> Any:
        opened = await session.reset(START)
        return (
            opened,
            await session.answer(said("go on")),
            await session.answer(said("stop", 1)),
            await session.reward(),
        )

    opened, first, second, reward = answer_of("swift_scheduler:tool", story)
    assert opened is None
    assert first.messages == ({"role": "tool", "content": "GO ON", "name": "tool"},)
    assert first.infos == {"turns": 1}
    assert second.done
    assert reward is None
    assert answer_of("swift_scheduler:tool", lambda session: _both(session), max_turns=1).done


async def _both(session: Session) -> Answer:
    await session.reset(START)
    return await session.answer(said("go on"))


def test_a_scheduler_that_changes_what_was_there_fails() -> None:
    with pytest.raises(ValueError, match="changes what was there before the turn"):
        answer_of("swift_scheduler:rewrites", _both)


def test_what_cannot_be_had_is_said_before_anything_starts() -> None:
    for environment, problem in (
        ("swift_env:door", "no plugin (train.plugins) registers it in `envs`; there are lock"),
        ("swift_scheduler:door", "no plugin (train.plugins) registers it in `multi_turns`; there are "),
        ("swift_scheduler:own", "has a method run of its own"),
    ):
        with pytest.raises(UserError) as raised:
            contract.checked(RolloutConfig(environment=environment))
        assert problem in str(raised.value)
    assert contract.checked(RolloutConfig(environment="swift_env:lock")) == []
    with pytest.raises(UserError, match="answers all turns itself; leave one out"):
        contract.checked(RolloutConfig(environment="swift_env:lock", tools=["calculator"]))


class Script:
    """A session as the coordinator has it, without a process."""

    def __init__(self, session: Session):
        self._session = session

    async def open(self) -> Any:
        return await self._session.reset(START)

    async def answer(self, turn: Turn) -> Answer:
        return await self._session.answer(turn)

    async def reward(self) -> float | None:
        return await self._session.reward()


@pytest.mark.parametrize("room", [120, 30])
def test_a_tip_takes_the_place_of_a_wrong_answer(tokenizer_dir: Path, room: int) -> None:
    """The turn is cut at its token, and goes on; what is left of it is as it was sampled."""
    turns = Turns(tokenizer_dir, SCHEMAS, {})
    first, second = "I think it is <answer>5</answer>", " so it is <answer>4</answer>"
    texts, asked = iter([first, second]), list[SampleRequest]()

    async def generate(request: SampleRequest) -> Completion:
        asked.append(request)
        ids = np.append(turns.raw(next(texts)), min(turns.end_ids)).astype(np.int32)
        logprobs = np.arange(len(ids), dtype=np.float32) + 1
        return Completion(request.key, ids, logprobs, (Span(0, PolicyVersion(1, len(asked))),), "stop")

    prompt = turns.prompt(START.messages)
    request = SampleRequest("k", prompt, 200, 3)

    async def story(session: Session) -> Completion:
        script: RemoteSession = Script(session)  # type: ignore[assignment]
        return await play(request, generate, script, turns, EpisodeLimits(None, room, False, 400))

    made = answer_of("swift_scheduler:math_tip_trick", story)
    played = made.trajectory
    assert played is not None
    assert checksum(prompt, made.token_ids) == played.checksum
    if room == 30:
        assert (made.finish, played.num_turns) == ("length", 1)
        assert played.messages == ({"role": "assistant", "content": first},)
        assert played.written.all()
        return
    tip = "But wait... It seems I made a mistake,"
    assert played.messages == ({"role": "assistant", "content": f"I think it is {tip}{second}"},)
    kept = len(turns.raw("I think it is "))
    np.testing.assert_array_equal(made.token_ids[:kept], turns.raw(first)[:kept])
    np.testing.assert_array_equal(
        asked[1].prompt_ids, np.concatenate([prompt, made.token_ids])[: len(asked[1].prompt_ids)]
    )
    assert played.written.tolist() == [True] * kept + [False] * len(turns.raw(tip)) + [True] * (
        len(made.token_ids) - kept - len(turns.raw(tip))
    )
    assert np.isnan(made.logprobs[~played.written]).all()
    assert [span.begin for span in made.spans] == [0, kept + len(turns.raw(tip))]
