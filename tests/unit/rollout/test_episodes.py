"""Episodes: the trained tokens are the sampled ones, whatever tools and environments do."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rayswift.engines.pool.pool import Pool
from rayswift.engines.samples import Completion, Group, Prompt, SampleRequest, Scored
from rayswift.log import UserError
from rayswift.rollout.episodes.calls import Call, Said
from rayswift.rollout.episodes.hosts import Hosts, RemoteSession
from rayswift.rollout.episodes.play import EpisodeLimits, Episodes
from rayswift.rollout.episodes.process import Closing, Opening
from rayswift.rollout.episodes.sessions import Answer, Start, Turn
from rayswift.rollout.episodes.turns import Turns
from rayswift.rollout.groups import requests_for, scored_group
from rayswift.rollout.rounds import lines_of, make_table, make_tokens
from rayswift.train.policy.micro_batch_plan import PolicyLayout
from rayswift.train.policy.micro_batches import MicroBatcher
from tests.support.pools import LIMITS as LIMITS_OF_POOL
from tests.support.pools import SPEED, V0, Engines, in_pool

ROOT = Path(__file__).parents[3]
LIMITS = EpisodeLimits(max_turns=None, max_completion_length=400, per_round=False, window=460)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny tokenizer with a template that takes tools."""
    folder = tmp_path_factory.mktemp("tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_text((ROOT / "examples/tiny" / name).read_text())
    (folder / "chat_template.jinja").write_text((ROOT / "examples/tools/chat_template.jinja").read_text())
    return folder


SCHEMAS = [{"type": "function", "function": {"name": "t", "description": "t", "parameters": {"properties": {}}}}]


class Watched(Turns):
    """Notes what is tokenised, and keeps ids of other vocabularies out of the decoder."""

    def __init__(self, folder: Path):
        self.encoded: list[str] = []
        super().__init__(folder, SCHEMAS, {})
        self.encoded.clear()

    def _encode(self, text: str) -> NDArray[np.int32]:
        self.encoded.append(text)
        return super()._encode(text)

    def text(self, token_ids: NDArray[np.int32]) -> str:
        return "the model's " + super().text(token_ids % 512)


@dataclass
class World:
    """An environment as a process: how it answers is drawn from the episode's seed and the turn."""

    fails: Mapping[str, str] = field(default_factory=dict)
    dies: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    dead: bool = False
    frozen: bool = False

    async def _beat(self, timeout_s: float | None) -> None:
        if self.frozen:
            await asyncio.sleep(timeout_s or 1e9)
            raise TimeoutError

    async def start(self) -> None:
        await asyncio.sleep(1)

    def kill(self) -> None:
        self.dead = True

    async def ask(self, method: str, *arguments: Any, timeout_s: float | None) -> Any:
        await asyncio.sleep(0.01)
        if method == "beat":
            await self._beat(timeout_s)
            return None
        key = arguments[0]
        if self.dead or self.dies[key] > 0:
            self.dies[key] -= 1
            self.dead = True
            raise ConnectionError("gone")
        if self.fails.get(key) == method:
            self.frozen = True
            await asyncio.sleep(1e9)
        if method == "open":
            return Opening(None if key.endswith("1") else [{"role": "user", "content": f"guess {key}"}])
        if method == "close":
            return Closing(float(len(key)))
        self.notes[key] += 1
        turn: Turn = arguments[1]
        rng = random.Random(f"{key}{turn.number}")
        role = rng.choice(["tool", "user"])
        says = [{"role": role, "name": "t", "content": rng.choice(["12", "<|im_end|>", "nothing", "é" * 40])}]
        return Answer(
            tuple(says) * rng.randint(1, 2), done=rng.random() < 0.15, calls=1, failed_calls=rng.randint(0, 1)
        )


class Recording:
    """The pool, with what was asked of it."""

    def __init__(self, pool: Pool):
        self._pool, self.asked, self.made = pool, dict[str, SampleRequest](), dict[str, Completion]()

    def sample(self, requests: Any, min_step: int) -> list[asyncio.Future[Completion]]:
        futures = self._pool.sample(requests, min_step)
        for request, future in zip(requests, futures, strict=True):
            assert request.key not in self.asked, "a turn is sampled twice"
            self.asked[request.key] = request
            future.add_done_callback(lambda done, key=request.key: self._note(key, done))
        return futures

    def _note(self, key: str, done: asyncio.Future[Completion]) -> None:
        if not done.cancelled() and done.exception() is None:
            self.made[key] = done.result()


def prompts(number: int, turns: Turns) -> list[Prompt]:
    messages = [({"role": "user", "content": f"{n}?"},) for n in range(number)]
    return [Prompt(n, f"p:{n}", 0, turns.prompt(each), each, {}) for n, each in enumerate(messages)]


class Constant:
    """A scorer."""

    async def score(self, prompt: Prompt, completions: Any, rewarded: bool = True) -> list[Scored]:
        return [Scored(each, (float(n),), float(n)) for n, each in enumerate(completions)]


async def play_all(
    pool: Pool, turns: Turns, number: int, limits: EpisodeLimits, fails: Mapping[str, str] | None = None
) -> Any:
    """Groups of two, what was asked of the pool, and why others failed."""
    recording = Recording(pool)
    hosts = Hosts(lambda _: World(fails or {}), 2, 60.0, True, (ConnectionError,))
    await hosts.start()
    episodes = Episodes(recording, hosts, turns, limits)
    asked = prompts(number, turns)
    requests = [one for prompt in asked for one in requests_for(prompt, "train", 2, 400, 460, 0)]
    futures = episodes.sample(requests, 0)
    results = await asyncio.gather(
        *(scored_group(Constant(), each, futures[2 * n : 2 * n + 2], lambda *_: None) for n, each in enumerate(asked))
    )
    await hosts.close()
    return [group for group, _ in results], recording, [reason for _, reasons in results for reason in reasons], hosts


@pytest.fixture(scope="module")
def thousand(tokenizer_dir: Path) -> tuple[list[Group], Recording]:
    """A thousand episodes, in groups of two."""
    turns = Watched(tokenizer_dir)
    groups, recording, reasons, _ = in_pool(lambda pool, _: play_all(pool, turns, 500, LIMITS), Engines())
    assert not reasons
    assert not [text for text in turns.encoded if "the model's" in text]
    return groups, recording


@pytest.mark.parametrize("layout", ["shared", "rows", "flat"])
def test_of_a_thousand_episodes_no_token_is_made_twice_or_tokenised_again(
    thousand: tuple[list[Group], Recording], layout: PolicyLayout
) -> None:
    groups, recording = thousand
    table = make_table(groups, ("r",), V0)
    tokens = make_tokens(lines_of(groups), np.arange(len(table)))
    batch = MicroBatcher(table, tokens, 0, layout).batch(np.arange(len(table)))
    assert table.turns is not None and table.turns.max() > 3
    assert batch.lengths.tolist() == table.written_lengths.tolist()
    targets, logprobs = batch.targets.numpy(), batch.sampling_logprobs.numpy()
    begin = 0
    for group in groups:
        for scored in group.scored:
            played = scored.completion.trajectory
            assert played is not None
            whole = np.concatenate([group.prompt.input_ids, scored.completion.token_ids])
            for number in range(played.num_turns):
                key = f"{scored.completion.key}:{number}" if number else scored.completion.key
                asked, made = recording.asked[key], recording.made[key]
                # What the engine was given is what is trained before the turn, and what it made is trained.
                np.testing.assert_array_equal(asked.prompt_ids, whole[: len(asked.prompt_ids)])
                behind = slice(len(asked.prompt_ids), len(asked.prompt_ids) + len(made.token_ids))
                np.testing.assert_array_equal(made.token_ids, whole[behind])
                end = begin + len(made.token_ids)
                np.testing.assert_array_equal(targets[begin:end], made.token_ids)
                np.testing.assert_array_equal(logprobs[begin:end], made.logprobs)
                begin = end
            assert len(whole) <= LIMITS.window
            assert len(scored.completion.token_ids) <= LIMITS.max_completion_length + 20  # of its own prompt
    assert begin == len(targets) == sum(len(made.token_ids) for made in recording.made.values())
    ids = batch.inputs["input_ids"].numpy().ravel()
    assert not np.isnan(logprobs).any()
    if layout == "flat":
        np.testing.assert_array_equal(ids[batch.followed.numpy() + 1], targets)


def test_tokens_that_were_not_sampled_are_not_trained(tokenizer_dir: Path) -> None:
    turns = Watched(tokenizer_dir)
    groups, *_ = in_pool(lambda pool, _: play_all(pool, turns, 4, LIMITS), Engines())
    table = make_table(groups, ("r",), V0)
    tokens = make_tokens(lines_of(groups), np.arange(len(table)))
    tokens.token_ids[len(tokens.token_ids) // 2] += 1
    with pytest.raises(RuntimeError, match="not those that were sampled"):
        MicroBatcher(table, tokens, 0, "rows")


def test_an_episode_is_the_same_whenever_it_is_played_and_wherever(tokenizer_dir: Path) -> None:
    def played(size: int, die: bool) -> Any:
        async def story(pool: Pool, engines: Engines) -> Any:
            work = asyncio.ensure_future(play_all(pool, Watched(tokenizer_dir), 20, LIMITS))
            await asyncio.sleep(25)
            if die:
                engines.made[0].kill()
            return (await work)[0]

        return in_pool(story, Engines(), size, resume_partial=False)

    def ids(groups: list[Group]) -> list[list[int]]:
        return [scored.completion.token_ids.tolist() for group in groups for scored in group.scored]

    assert ids(played(1, False)) == ids(played(3, True))


def test_lengths_are_of_all_turns_or_of_each(tokenizer_dir: Path) -> None:
    async def story(pool: Pool, _: Engines) -> Any:
        per_round = EpisodeLimits(None, 40, True, 460)
        turns = Watched(tokenizer_dir)
        total = await play_all(pool, turns, 50, EpisodeLimits(None, 40, False, 460))
        return total, await play_all(pool, turns, 50, per_round)

    total, per_round = in_pool(story, Engines())
    lengths = [[len(s.completion.token_ids) for g in groups for s in g.scored] for groups, *_ in (total, per_round)]
    assert max(lengths[0]) <= 40 + 20 < max(lengths[1])  # what the environment asked is not the completion's
    assert max(len(made.token_ids) for made in per_round[1].made.values()) <= 40


def test_max_turns_ends_an_episode(tokenizer_dir: Path) -> None:
    turns = Watched(tokenizer_dir)
    limits = EpisodeLimits(2, 400, False, 460)
    groups, *_ = in_pool(lambda pool, _: play_all(pool, turns, 50, limits), Engines())
    played = [scored.completion.trajectory for group in groups for scored in group.scored]
    assert {each.num_turns for each in played if each} == {1, 2}
    assert "max_turns" in {each.end for each in played if each}


def test_an_episode_of_tools_alone_ends_with_the_turn_that_calls_none() -> None:
    async def story(said: Said, last: bool) -> bool:
        session = RemoteSession(Hosts(lambda _: World(), 1, 60.0, False), "k", Start([], {}, 0))
        return (await session.answer(Turn(0, "", said, [], "stop", last))).done

    assert asyncio.run(story(Said("x"), False))
    assert not asyncio.run(story(Said("", (Call("t", {}),)), True))  # it is cut by max_turns


def test_an_environment_that_hangs_is_an_outcome(tokenizer_dir: Path) -> None:
    turns = Watched(tokenizer_dir)
    fails = {"train:1:0": "open", "train:2:0": "answer", "train:3:1": "close"}
    results = in_pool(lambda pool, _: play_all(pool, turns, 6, LIMITS, fails), Engines())
    groups, _, reasons, _ = results
    # Others that were in its process twice may be lost with it.
    assert len(reasons) >= 3 and all(reason.startswith("environment: it") for reason in reasons)
    assert sum(len(group.scored) for group in groups) + len(reasons) == 12


def test_a_process_that_answers_is_not_lost_however_long_its_calls_wait(tokenizer_dir: Path) -> None:
    turns = Watched(tokenizer_dir)

    class Busy(World):
        async def ask(self, method: str, *arguments: Any, timeout_s: float | None) -> Any:
            await asyncio.sleep(200 if method == "answer" else 0)
            return await super().ask(method, *arguments, timeout_s=timeout_s)

    async def story(pool: Pool, _: Engines) -> int:
        hosts = Hosts(lambda _: Busy(), 1, 60.0, True, (ConnectionError,))
        await hosts.start()
        episodes = Episodes(pool, hosts, turns, LIMITS)
        requests = [one for each in prompts(2, turns) for one in requests_for(each, "train", 2, 400, 460, 0)]
        await asyncio.gather(*episodes.sample(requests, 0))
        await hosts.close()
        return hosts.num_lost

    assert in_pool(story, Engines()) == 0


def test_an_episode_survives_the_loss_of_its_process_once(tokenizer_dir: Path) -> None:
    turns = Watched(tokenizer_dir)

    class Dying(World):
        """Dies once, in the midst of an episode."""

        has_died = False

        async def ask(self, method: str, *arguments: Any, timeout_s: float | None) -> Any:
            if method == "answer" and arguments[1].number == 1 and not Dying.has_died:
                Dying.has_died = self.dead = True
            return await super().ask(method, *arguments, timeout_s=timeout_s)

    async def story(pool: Pool, _: Engines) -> Any:
        undisturbed = await play_all(pool, turns, 6, LIMITS)
        recording = Recording(pool)
        hosts = Hosts(lambda _: Dying(), 2, 60.0, True, (ConnectionError,))
        await hosts.start()
        episodes = Episodes(recording, hosts, turns, LIMITS)
        requests = [one for each in prompts(6, turns) for one in requests_for(each, "train", 2, 400, 460, 0)]
        made = await asyncio.gather(*episodes.sample(requests, 0))
        lost = hosts.num_lost
        await hosts.close()
        return undisturbed[1].made, recording.made, lost, made

    before, after, lost, _ = in_pool(story, Engines())
    assert lost == 1
    assert {key: made.token_ids.tolist() for key, made in before.items()} == {
        key: made.token_ids.tolist() for key, made in after.items()
    }


def test_a_prompt_without_room_is_an_outcome(tokenizer_dir: Path) -> None:
    turns = Watched(tokenizer_dir)
    limits = EpisodeLimits(None, 400, False, 5)
    _, _, reasons, _ = in_pool(lambda pool, _: play_all(pool, turns, 2, limits), Engines())
    assert len(reasons) == 4
    assert all("leaves the model no room" in each for each in reasons)


class Strict(Watched):
    """Its template takes no answer of two tools."""

    def answer(self, messages: Any, ended: bool) -> NDArray[np.int32]:
        if len(messages) > 1:
            raise UserError("the chat template refuses it")
        return super().answer(messages, ended)


def test_an_answer_that_the_template_refuses_is_an_outcome_of_its_episode_alone(tokenizer_dir: Path) -> None:
    turns = Strict(tokenizer_dir)
    groups, _, reasons, _ = in_pool(lambda pool, _: play_all(pool, turns, 10, LIMITS), Engines())
    assert set(reasons) == {"environment: the chat template refuses it"}
    assert sum(len(group.scored) for group in groups) + len(reasons) == 20


class EightTurns(World):
    """Answers after a tenth of a second, one to eight times."""

    async def ask(self, method: str, *arguments: Any, timeout_s: float | None) -> Any:
        await asyncio.sleep(0.1)
        if method != "answer":
            return Opening() if method == "open" else Closing(1.0)
        last = random.Random(arguments[0]).randint(1, 8)
        return Answer(({"role": "tool", "name": "t", "content": "12"},), done=arguments[1].number + 1 >= last, calls=1)


def test_engines_are_as_busy_with_episodes_as_with_single_turns(tokenizer_dir: Path) -> None:
    """Tokens per second of both, for as many tokens in all; virtual time."""
    turns = Watched(tokenizer_dir)

    def tokens_per_s(mean_turn: float, hosts: Hosts | None) -> float:
        async def story(pool: Pool, _: Engines) -> float:
            sampler: Any = pool
            if hosts is not None:
                await hosts.start()
                sampler = Episodes(pool, hosts, turns, EpisodeLimits(8, 2000, False, 2060))
            requests = [one for each in prompts(64, turns) for one in requests_for(each, "train", 8, 2000, 2060, 0)]
            began = asyncio.get_running_loop().time()
            made = await asyncio.gather(*sampler.sample(requests, 0))
            seconds = asyncio.get_running_loop().time() - began
            if hosts is not None:
                await hosts.close()
            return sum(each.num_written for each in made) / seconds

        speed = replace(SPEED, median_length=round(mean_turn), max_num_seqs=64)
        limits = replace(LIMITS_OF_POOL, max_outstanding=80)
        rate: float = in_pool(story, Engines(speed), size=2, limits=limits)
        return rate

    episodes = tokens_per_s(40, Hosts(lambda _: EightTurns(), 2, 60.0, True, (ConnectionError,)))
    assert episodes > 0.8 * tokens_per_s(4.5 * 40, None)
