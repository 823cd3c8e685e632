"""ms-swift's multi-turn schedulers: their hooks, called as `MultiTurnScheduler.run` calls them (ms-swift 4.6).

A `step` may add messages after the turn of the model, or cut the turn and append text to it, as ms-swift's
`math_tip_trick` does. The tokens follow from the text; token ids and masks that `step` returns are not needed.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rayswift.config.swift.plugin_modules import (
    ChatCompletionResponseChoice,
    ChatMessage,
    MultiTurnScheduler,
    RolloutInferRequest,
)
from rayswift.data.rows import Message
from rayswift.rollout.episodes.sessions import Answer, Runner, Start, Turn, as_reward, cut
from rayswift.rollout.rewards.builtin import accuracy

_NUMBERS = itertools.count()


class SchedulerSession:
    """An episode of a scheduler; a process has one scheduler.

    Args:
        run: Runs its hooks.
        scheduler: See above.
        max_chars: Longest message that it adds after a turn.
    """

    def __init__(self, run: Runner, scheduler: Any, max_chars: int):
        self._run, self._scheduler, self._max_chars = run, scheduler, max_chars
        self._uuid = f"episode-{next(_NUMBERS)}"
        self._request: Any = None
        self._infos: dict[str, Any] = {}

    async def reset(self, start: Start) -> Sequence[Message] | None:
        messages = [dict(each) for each in start.messages]
        self._request = RolloutInferRequest(messages, dict(start.columns), self._uuid)
        await self._run(self._scheduler.on_trajectory_start, [self._request])
        if self._request.messages == list(start.messages):
            return None
        return [self._message(each) for each in self._request.messages]

    async def answer(self, turn: Turn) -> Answer:
        choice = ChatCompletionResponseChoice(
            0, ChatMessage("assistant", turn.text), turn.finish, token_ids=list(turn.token_ids)
        )
        messages = self._request.messages
        if messages and messages[-1]["role"] == "assistant":  # the turn was cut, and continues
            messages[-1]["content"] += turn.text
        else:
            messages.append({"role": "assistant", "content": turn.text})
        asked = self._request, choice, turn.number + 1
        answer = await self._run(self._scheduler.on_turn_end, *asked) or {}
        self._infos.update(answer.get("rollout_infos") or {})
        done = await self._run(self._scheduler.check_finished, *asked)
        if answer.get("done", done) or turn.last:
            return Answer(done=True, infos=dict(self._infos))
        return await self._stepped(asked, turn.text)

    async def _stepped(self, asked: tuple[Any, ...], text: str) -> Answer:
        """Return what `step` adds after the turn, or into it.

        Raises:
            ValueError: it changes what was there before.
        """
        before = len(self._request.messages)
        whole = str(self._request.messages[-1]["content"])
        found: Mapping[str, Any] = await self._run(self._scheduler.step, *asked)
        self._request = found["infer_request"]
        self._infos.update(found.get("rollout_infos") or {})
        messages = self._request.messages
        if len(messages) > before and messages[-1] == {"role": "assistant", "content": ""}:
            messages.pop()  # ms-swift's opening of the next turn
        content = str(messages[before - 1]["content"]) if len(messages) >= before else ""
        if len(messages) > before and content == whole:
            return Answer(tuple(self._message(each) for each in messages[before:]), infos=dict(self._infos))
        differs = (at for at, (new, old) in enumerate(zip(content, whole, strict=False)) if new != old)
        same = next(differs, min(len(content), len(whole)))
        kept = same - (len(whole) - len(text))
        if len(messages) != before or kept < 0 or same == len(content):
            raise ValueError(
                "step changes what was there before the turn, or adds nothing after it; it may add messages after "
                "the turn, or replace its end by text"
            )
        return Answer(raw=cut(content[same:], self._max_chars), kept=kept, infos=dict(self._infos))

    def _message(self, message: Mapping[str, Any]) -> Message:
        made = {**message, "content": cut(str(message["content"]), self._max_chars)}
        return made | ({"name": message.get("name", "tool")} if message["role"] == "tool" else {})

    async def reward(self) -> float | None:
        """See Session: the sum of an environment's rewards."""
        return as_reward(self._infos.get("total_reward"))

    async def close(self) -> None:
        end = getattr(self._scheduler, "end", None) or getattr(self._scheduler, "_close_and_remove", None)
        if end is not None:
            await self._run(end, self._uuid)


class MathTips(MultiTurnScheduler):
    """ms-swift's `math_tip_trick`: cuts a wrong answer once and appends a hint; the row has a `solution`."""

    tip = "But wait... It seems I made a mistake,"

    def check_finished(
        self, infer_request: RolloutInferRequest, response_choice: ChatCompletionResponseChoice, current_turn: int
    ) -> bool:
        said = infer_request.messages[-1]["content"]
        completions, solutions = [[{"content": said}]], [infer_request.data_dict["solution"]]
        if self.tip in said or accuracy(completions, solution=solutions) == [1.0]:
            return True
        return super().check_finished(infer_request, response_choice, current_turn)

    def step(
        self, infer_request: RolloutInferRequest, response_choice: ChatCompletionResponseChoice, current_turn: int
    ) -> dict[str, Any]:
        said = infer_request.messages[-1]["content"]
        ends = [at for mark in ("<answer>", "</think>") if (at := said.find(mark)) >= 0]
        infer_request.messages[-1]["content"] = said[: min(ends, default=len(said))] + self.tip
        return {"infer_request": infer_request}
