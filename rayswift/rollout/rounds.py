"""A round as the trainer takes it: a table of all its completions, and the tokens of those that one rank trains.

Which rank trains what in which optimizer step is a function of the table, the number of steps and the number of ranks
alone (`shares`), so the coordinator sends each rank its own tokens, and every rank knows what the others have.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayswift.data.global_batches import Position
from rayswift.rollout.samples import Group, PolicyVersion

Indices = NDArray[np.int64]
_PARTS_OF_RANK = 4
"""As many parts as this for each rank are dealt out evenly enough."""


@dataclass(frozen=True)
class RoundTable:
    """One line for each of a round's N completions, in the order of the prompts and then of the samples.

    reward_names: of the F functions and models; ordinals [N] int64: of the prompt, which names the group; rewards
    [N, F] float64: NaN where one had no opinion; prompt_lengths, lengths [N] int64: tokens of the prompt and of the
    completion; truncated [N] bool: it ends because its room was full; staleness [N] float64: policy versions that its
    tokens lag behind, on average.
    """

    reward_names: tuple[str, ...]
    ordinals: NDArray[np.int64]
    rewards: NDArray[np.float64]
    prompt_lengths: NDArray[np.int64]
    lengths: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    staleness: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ordinals)


@dataclass(frozen=True)
class Tokens:
    """The tokens of some completions, end to end.

    rows [n] int64: their lines in the table; prompt_ids int32 and token_ids int32: prompts, and completions; logprobs
    float32: of each completion token, as the engine sampled it.
    """

    rows: Indices
    prompt_ids: NDArray[np.int32]
    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]


@dataclass(frozen=True)
class Round:
    """What a rank trains between two publications of weights.

    number: the step of the policy version that it trains on; rank, size: whose share it is; num_steps: optimizer steps
    of one pass over it; tokens: of this rank's completions, of all steps. epochs, position: passes over the prompts,
    and where the next round begins; last: no round follows; save: a checkpoint is asked for behind it; ledger: see
    `ledger`, what became of every prompt once this round is trained; metrics: what the rollout plane tells of it.
    """

    number: int
    rank: int
    size: int
    num_steps: int
    table: RoundTable
    tokens: Tokens
    epochs: float
    position: Position
    last: bool
    save: bool
    ledger: Mapping[str, Any]
    metrics: Mapping[str, float]


def make_table(groups: Sequence[Group], reward_names: tuple[str, ...], version: PolicyVersion) -> RoundTable:
    """The table of scored groups in the order of their prompts; `version`: what the round trains on."""
    lines = [(group.prompt, scored) for group in groups for scored in group.scored]
    completions = [scored.completion for _, scored in lines]
    return RoundTable(
        reward_names=reward_names,
        ordinals=np.array([prompt.ordinal for prompt, _ in lines], np.int64),
        rewards=np.array([scored.rewards for _, scored in lines], np.float64).reshape(len(lines), len(reward_names)),
        prompt_lengths=np.array([len(prompt.input_ids) for prompt, _ in lines], np.int64),
        lengths=np.array([len(each.token_ids) for each in completions], np.int64),
        truncated=np.array([each.finish == "length" for each in completions], np.bool_),
        staleness=np.array([_staleness(each.spans, len(each.token_ids), version) for each in completions], np.float64),
    )


def _staleness(spans: Sequence[Any], length: int, version: PolicyVersion) -> float:
    ends = [*(span.begin for span in spans[1:]), length]
    lags = [(end - span.begin) * (version.step - span.version.step) for span, end in zip(spans, ends, strict=True)]
    return sum(lags) / max(1, length)


def make_tokens(groups: Sequence[Group], rows: Indices) -> Tokens:
    """The tokens of the completions in some lines of the groups' table."""
    lines = [(group.prompt, scored.completion) for group in groups for scored in group.scored]
    picked = [lines[row] for row in rows]
    empty = [np.empty(0, np.int32)]
    return Tokens(
        rows=rows,
        prompt_ids=np.concatenate([prompt.input_ids for prompt, _ in picked] or empty).astype(np.int32),
        token_ids=np.concatenate([completion.token_ids for _, completion in picked] or empty).astype(np.int32),
        logprobs=np.concatenate([completion.logprobs for _, completion in picked] or empty).astype(np.float32),
    )


def rows_of_step(table: RoundTable, num_steps: int, step: int) -> Indices:
    """Lines of the table that an optimizer step trains: every `num_steps`-th, so that each prompt is in every step."""
    return np.arange(step, len(table), num_steps)


def group_begins(ordinals: NDArray[np.int64]) -> Indices:
    """Where in [N] ordinals, equal ones side by side, each begins."""
    return np.flatnonzero(np.diff(ordinals, prepend=-1)).astype(np.int64)


def shares(table: RoundTable, num_steps: int, size: int) -> list[list[Indices]]:
    """Lines of the table that each rank trains in each optimizer step: [num_steps][size], in the table's order.

    See `rows_of_step`. The completions of a prompt stay together, for the prompt is computed once for those of a
    micro-batch; in parts, where there are few prompts to a rank. The longest go first, each to the rank with least.
    """
    found = []
    for step in range(num_steps):
        rows = rows_of_step(table, num_steps, step)
        ranks: list[list[Indices]] = [[] for _ in range(size)]
        loads = [(0, rank) for rank in range(size)]
        for tokens, part in _parts(table, rows, size):
            load, rank = loads[0]
            heapq.heapreplace(loads, (load + tokens, rank))
            ranks[rank].append(part)
        found.append([np.sort(np.concatenate(parts)) if parts else rows[:0] for parts in ranks])
    return found


def _parts(table: RoundTable, rows: Indices, size: int) -> list[tuple[int, Indices]]:
    """Completions of one prompt each with their number of tokens, the longest part first."""
    firsts = group_begins(table.ordinals[rows])
    number = 1 if size == 1 else -(-_PARTS_OF_RANK * size // max(1, len(firsts)))
    parts = []
    for group in np.split(rows, firsts[1:]):
        by_length = group[np.argsort(-table.lengths[group], kind="stable")]
        for part in (by_length[begin::number] for begin in range(min(number, len(group)))):
            parts.append((int(table.prompt_lengths[part[0]] + table.lengths[part].sum()), part))
    return sorted(parts, key=lambda each: (-each[0], each[1][0]))


def share_of(table: RoundTable, num_steps: int, rank: int, size: int) -> Indices:
    """All lines that a rank trains, step after step."""
    return np.concatenate([step[rank] for step in shares(table, num_steps, size)])
