"""Which completions of a prompt become rows; pure."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayswift.engines.samples import Group, Scored

KEPT, EASY, BAD = "kept", "left out: right too often", "left out: no completion with sample.min_reward"


@dataclass(frozen=True)
class RowSettings:
    """Fields of section `sample`: n_best_to_keep, min_reward, easy_query_threshold, right_from."""

    n_best_to_keep: int
    min_reward: float | None = None
    easy_query_threshold: float | None = None
    right_from: float = 1.0


def rows_of(group: Group, settings: RowSettings, reward_names: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """Return the rows of a prompt, the best completion first, and its outcome.

    A row has the columns of the prompt's row, `messages` that end with the completion, an `id` of these, and, if there
    are rewards, `reward` and `rewards` by name. `rejected_response` is the completion with the lowest reward, if that
    is lower. So sft and dpo can train the row. For an episode, `messages` and `rejected_messages` hold the turns.
    """
    scored = group.scored
    if settings.easy_query_threshold is not None:
        share = sum(each.reward >= settings.right_from for each in scored) / len(scored)
        if share > settings.easy_query_threshold:
            return [], EASY
    best: dict[str, Scored] = {}
    for each in sorted(scored, key=lambda each: -each.reward):  # of equal rewards the first that was sampled
        best.setdefault(each.text, each)
    least = settings.min_reward
    kept = [each for each in best.values() if least is None or each.reward >= least][: settings.n_best_to_keep]
    worst = min(scored, key=lambda each: each.reward)
    return [_row(group, each, worst, reward_names) for each in kept], KEPT if kept else BAD


def _row(group: Group, chosen: Scored, worst: Scored, reward_names: Sequence[str]) -> dict[str, Any]:
    messages = _messages(group, chosen)
    written = json.dumps(messages, ensure_ascii=False, sort_keys=True)
    row = {
        **group.prompt.columns,
        "messages": messages,
        "id": hashlib.md5(written.encode(), usedforsecurity=False).hexdigest(),
    }
    if not reward_names:
        return row
    # NaN, of a reward without an opinion, is no JSON.
    rewards = [value if value == value else None for value in chosen.rewards]
    row |= {"reward": chosen.reward, "rewards": dict(zip(reward_names, rewards, strict=True))}
    if worst.reward >= chosen.reward:
        return row
    if worst.completion.trajectory is None:
        return row | {"rejected_response": worst.text}
    return row | {"rejected_messages": _messages(group, worst)}


def _messages(group: Group, scored: Scored) -> list[Mapping[str, Any]]:
    """Return the conversation; for an episode, the environment's prompt and the turns."""
    played = scored.completion.trajectory
    if played is None:
        return [*group.prompt.messages, {"role": "assistant", "content": scored.text}]
    return [*(group.prompt.messages if played.asked is None else played.asked), *played.messages]
