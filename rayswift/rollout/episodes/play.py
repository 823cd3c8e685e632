"""Plays an episode: the model writes, tools and environments answer, until one of them ends it.

Token ids go in and come out: sampled tokens stay as they are, and the tokens of answers are appended. Each turn has a
seed derived from that of the completion, so an episode is a function of weights, prompt and seed if its environment is
deterministic.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rayswift.data.rows import BadRow, Message
from rayswift.engines.samples import Completion, SampleRequest, Trajectory
from rayswift.log import UserError
from rayswift.rollout.episodes.calls import Said, parse
from rayswift.rollout.episodes.hosts import EpisodeFailed, Hosts, RemoteSession
from rayswift.rollout.episodes.sessions import Answer, Start, Turn
from rayswift.rollout.episodes.trajectories import Tape
from rayswift.rollout.episodes.turns import Turns
from rayswift.rollout.groups import Sampler

Generate = Callable[[SampleRequest], Awaitable[Completion]]


@dataclass(frozen=True)
class EpisodeLimits:
    """max_turns: of the model, None: as many as fit; max_completion_length: tokens of all turns and
    answers, or with `per_round` of each turn; window: tokens of prompt, turns and answers."""

    max_turns: int | None
    max_completion_length: int
    per_round: bool
    window: int

    def room(self, tape: Tape) -> int:
        """Return the number of tokens that the next turn may have; below 1: there is no next turn."""
        left = self.window - len(tape.prompt_ids) - len(tape)
        return min(left, self.max_completion_length - (0 if self.per_round else len(tape)))


class _Talk:
    """The messages of an episode."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._begun = ""

    def begin(self, text: str) -> None:
        """Begin a turn, or continue one, with this text of the model."""
        self._begun += text

    def say(self, said: Said, answers: Sequence[Message]) -> None:
        """Add a turn and its answer."""
        self.messages += [said.message | {"content": f"{self._begun}{said.content}"}, *answers]
        self._begun = ""


def turn_seed(seed: int, number: int) -> int:
    """Return the seed of a turn's random numbers; the first turn has the seed of the completion."""
    return seed if not number else (seed ^ (zlib.crc32(f"{seed}:{number}".encode()) * 0x9E3779B1)) & (2**62 - 1)


async def play(
    request: SampleRequest, generate: Generate, session: RemoteSession, turns: Turns, limits: EpisodeLimits
) -> Completion:
    """Play an episode.

    Args:
        request: Its first turn, as if it were the only one.
        generate: Samples a turn.
        session: Tools and environment.
        turns: Converts texts to tokens and back.
        limits: See there.

    Raises:
        EpisodeFailed: the environment gives it no reward.
    """
    opened = await session.open()
    tape, answers = Tape(request.prompt_ids if opened is None else _prompt(opened, turns)), list[Answer]()
    talk = _Talk()
    while True:
        number = len(answers)
        room = limits.room(tape)
        if not number and room < 1:
            raise EpisodeFailed(f"a prompt of {len(tape.prompt_ids)} tokens leaves the model no room")
        asked = tape.ids if number else tape.prompt_ids
        made = await generate(
            replace(
                request,
                key=f"{request.key}:{number}" if number else request.key,
                prompt_ids=asked,
                max_tokens=room,
                seed=turn_seed(request.seed, number),
            )
        )
        tape.write(asked, made)
        assert made.finish is not None
        last = number + 1 == limits.max_turns or made.finish == "length"
        text, end_text = turns.text(made.token_ids), turns.end(made.token_ids)
        said = parse(text, turns.call_format) if turns.call_format is not None else Said(text)
        answer = await session.answer(Turn(number, text, said, made.token_ids.tolist(), made.finish, last, end_text))
        answers.append(answer)
        heard, number_cut = (None, 0) if last or answer.done else _heard(answer, made, turns)
        fits = heard is not None and limits.room(tape) + number_cut > len(heard)
        if heard is None or not fits:
            talk.say(said, answer.messages if fits or heard is None else ())
            ends_by_length = made.finish == "length" or heard is not None
            end = "length" if ends_by_length else "stop" if answer.done else "max_turns"
            break
        if answer.raw is None:
            talk.say(said, answer.messages)
        else:
            talk.begin(text[: answer.kept] + answer.raw)
            tape.cut(len(made.token_ids) - number_cut)
        tape.hear(heard)
    return _whole(request, tape, opened, talk.messages, answers, end, await session.reward())


def _heard(answer: Answer, made: Completion, turns: Turns) -> tuple[NDArray[np.int32], int]:
    """Return the tokens of the answer to a turn, and how many tokens of the turn are cut off for it.

    Raises:
        EpisodeFailed: the chat template cannot render the answer.
    """
    if answer.raw is not None:
        kept = answer.kept
        number_cut = 0 if kept is None else len(made.token_ids) - turns.num_tokens(made.token_ids, kept)
        return turns.raw(answer.raw), number_cut
    ended = bool(len(made.token_ids)) and int(made.token_ids[-1]) in turns.end_ids
    try:
        return turns.answer(answer.messages, ended), 0
    except UserError as error:  # the template takes answers, but not these
        raise EpisodeFailed(str(error)) from error


def _prompt(opened: Sequence[Message] | str, turns: Turns) -> NDArray[np.int32]:
    if isinstance(opened, str):
        return turns.raw(opened)
    try:
        return turns.prompt(opened)
    except BadRow as bad:
        raise EpisodeFailed(f"reset: {bad}") from bad


def _whole(
    request: SampleRequest,
    tape: Tape,
    opened: Sequence[Message] | str | None,
    messages: Sequence[Message],
    answers: Sequence[Answer],
    end: str,
    reward: float | None,
) -> Completion:
    if isinstance(opened, str):
        opened = [{"role": "user", "content": opened}]
    infos = {name: value for answer in answers for name, value in answer.infos.items()}
    return Completion(
        request.key,
        tape.token_ids,
        tape.logprobs,
        tape.spans,
        "length" if end == "length" else "stop",
        trajectory=Trajectory(
            prompt_ids=tape.prompt_ids,
            asked=None if opened is None else tuple(opened),
            written=tape.written,
            messages=tuple(messages),
            num_turns=len(answers),
            num_calls=sum(each.calls for each in answers),
            num_failed_calls=sum(each.failed_calls for each in answers),
            reward=reward,
            end=end,
            infos=infos,
            checksum=tape.sampled,
        ),
    )


class Episodes:
    """Plays the completion of each request as an episode; a `Sampler` on a sampler of single turns."""

    def __init__(self, sampler: Sampler, hosts: Hosts, turns: Turns, limits: EpisodeLimits):
        self._sampler, self._hosts, self._turns, self._limits = sampler, hosts, turns, limits

    def sample(self, requests: Sequence[SampleRequest], min_step: int) -> list[asyncio.Future[Completion]]:
        """See Sampler; requests of one call reach the pool together."""

        async def generate(request: SampleRequest) -> Completion:
            (future,) = self._sampler.sample([request], min_step)
            return await future

        return [asyncio.ensure_future(self._play(request, generate)) for request in requests]

    async def _play(self, request: SampleRequest, generate: Generate) -> Completion:
        episode = request.episode
        assert episode is not None
        text = self._turns.whole(request.prompt_ids) if self._hosts.has_environment else ""
        start = Start(episode.prompt.messages, episode.prompt.columns, episode.seed, text)
        session = RemoteSession(self._hosts, request.key, start)
        try:
            return await play(request, generate, session, self._turns, self._limits)
        finally:
            session.close()
