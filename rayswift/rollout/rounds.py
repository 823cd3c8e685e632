"""A round for the trainer: a table of all its completions, and the tokens of those that one rank trains.

The completions of each rank and optimizer step are a function of the table, the number of steps and the number of ranks
(`shares`). So the coordinator sends each rank its own tokens, and every rank knows what the others have.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayswift.data.sequence.global_batches import Position
from rayswift.engines.samples import Completion, Group, PolicyVersion, Prompt, TopTokens
from rayswift.rollout.episodes.trajectories import checksum
from rayswift.rollout.ledger import LedgerSnapshot

Indices = NDArray[np.int64]
OF_PROMPTS = ("round_s", "drawn", "filtered", "failed", "surplus")
"""Metrics of one round's prompts; the others are of the engines, since the start or at present."""
_PARTS_OF_RANK = 4
"""With this number of parts for each rank, ranks get almost equal work."""


@dataclass(frozen=True)
class RoundTable:
    """One line for each of a round's N completions, in the order of the prompts and then of the samples.

    reward_names: of the F functions and models; ordinals [N] int64: of the prompt, which identifies the group; rewards
    [N, F] float64: NaN for no opinion; prompt_lengths, lengths [N] int64: tokens of the prompt and of the
    completion; truncated [N] bool: it reached the length limit; staleness [N] float64: policy versions that its
    tokens lag behind, on average; checksums [N] int64: CRC-32 of prompt and completion, as sampled. With several
    turns: written [N] int64: tokens that the model wrote, None: all; turns, calls, failed_calls [N] int64.
    """

    reward_names: tuple[str, ...]
    ordinals: NDArray[np.int64]
    rewards: NDArray[np.float64]
    prompt_lengths: NDArray[np.int64]
    lengths: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    staleness: NDArray[np.float64]
    checksums: NDArray[np.int64] | None = None
    written: NDArray[np.int64] | None = None
    turns: NDArray[np.int64] | None = None
    calls: NDArray[np.int64] | None = None
    failed_calls: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ordinals)

    @property
    def written_lengths(self) -> NDArray[np.int64]:
        """Return the number of tokens [N] of each completion that the model wrote: these are trained."""
        return self.lengths if self.written is None else self.written


@dataclass(frozen=True)
class TeacherScores:
    """logprobs [n] float32: of n completion tokens; top: the teacher's likeliest tokens at each place, if asked for."""

    logprobs: NDArray[np.float32]
    top: TopTokens | None

    @classmethod
    def of(cls, completions: Sequence[Completion]) -> "TeacherScores | None":
        """Return the scores of concatenated completions; None: they have none."""
        scored = [each.teacher for each in completions if each.teacher]
        if not scored:
            return None
        top = None
        if any(each.top for each in scored):
            ids, logprobs = zip(*((each.top.ids, each.top.logprobs) for each in scored if each.top), strict=True)
            top = TopTokens(np.concatenate(ids), np.concatenate(logprobs))
        return cls(np.concatenate([each.logprobs for each in scored]), top)


@dataclass(frozen=True)
class Tokens:
    """The tokens of some completions, concatenated.

    rows [n] int64: their lines in the table; prompt_ids int32 and token_ids int32: prompts, and completions; logprobs
    float32: of each completion token, by the engine; teacher_ids int32: what a teacher sees in place of the prompts,
    and teacher_lengths [n] int64, the tokens of each, if any of them differs in the round; scores: of each completion
    token, by a teacher outside the workers; written bool: whether the model wrote the token,
    None: all.
    """

    rows: Indices
    prompt_ids: NDArray[np.int32]
    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    teacher_ids: NDArray[np.int32] | None = None
    teacher_lengths: NDArray[np.int64] | None = None
    scores: TeacherScores | None = None
    written: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Round:
    """The input of a rank between two publications of weights.

    number: the step of the policy version that it trains on; rank, size: of the rank whose share it is; num_steps:
    optimizer steps of one pass over it; tokens: of this rank's completions, of all steps. epochs, position: passes over
    the prompts, and where the next round begins; last: no round follows; save: a checkpoint is requested after it;
    ledger: see `ledger`, outcomes of all prompts once this round is trained; metrics: rollout metrics;
    ended: why it is empty and the run ends successfully.
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
    ended: str = ""


def make_table(groups: Sequence[Group], reward_names: tuple[str, ...], version: PolicyVersion) -> RoundTable:
    """Make the table of scored groups, in the order of their prompts; `version`: the step that the round trains on."""
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
        checksums=np.array([_checksum(prompt, scored.completion) for prompt, scored in lines], np.int64),
        **_of_trajectories(completions),
    )


def _checksum(prompt: Prompt, completion: Completion) -> int:
    if completion.trajectory is not None:
        return completion.trajectory.checksum
    return checksum(prompt.input_ids, completion.token_ids)


def _of_trajectories(completions: Sequence[Completion]) -> dict[str, NDArray[np.int64]]:
    """Return the columns of the table for completions of several turns."""
    played = [each.trajectory for each in completions]
    if not any(played):
        return {}
    return {
        "written": np.array([each.num_written for each in completions], np.int64),
        "turns": np.array([each.num_turns if each else 1 for each in played], np.int64),
        "calls": np.array([each.num_calls if each else 0 for each in played], np.int64),
        "failed_calls": np.array([each.num_failed_calls if each else 0 for each in played], np.int64),
    }


def _written(completions: Sequence[Completion]) -> NDArray[np.bool_] | None:
    """Return for each token, concatenated, whether the model wrote it; None: all."""
    if not any(each.trajectory for each in completions):
        return None
    return np.concatenate(
        [each.trajectory.written if each.trajectory else np.ones(len(each.token_ids), np.bool_) for each in completions]
    )


def _staleness(spans: Sequence[Any], length: int, version: PolicyVersion) -> float:
    ends = [*(span.begin for span in spans[1:]), length]
    lags = [(end - span.begin) * (version.step - span.version.step) for span, end in zip(spans, ends, strict=True)]
    return sum(lags) / max(1, length)


NO_TOKENS = Tokens(
    np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32)
)  # fmt: skip

Lines = Sequence[tuple[Prompt, Completion]]
"""Prompt and completion of each line of a table."""


def lines_of(groups: Sequence[Group]) -> Lines:
    """Return the lines of scored groups, in the order of `make_table`."""
    return [(group.prompt, scored.completion) for group in groups for scored in group.scored]


def make_tokens(lines: Lines, rows: Indices) -> Tokens:
    """Return the tokens of the completions in some lines of a table."""
    picked = [lines[row] for row in rows]
    empty = [np.empty(0, np.int32)]
    for_teacher: dict[str, Any] = {}
    if any(prompt.teacher_ids is not None for prompt, _ in lines):
        prompts = [prompt.seen_by_teacher for prompt, _ in picked]
        lengths = np.array([len(each) for each in prompts], np.int64)
        for_teacher = {"teacher_ids": np.concatenate([*empty, *prompts]), "teacher_lengths": lengths}
    return Tokens(
        rows=rows,
        prompt_ids=np.concatenate([prompt.input_ids for prompt, _ in picked] or empty).astype(np.int32),
        token_ids=np.concatenate([completion.token_ids for _, completion in picked] or empty).astype(np.int32),
        logprobs=np.concatenate([completion.logprobs for _, completion in picked] or empty).astype(np.float32),
        scores=TeacherScores.of([completion for _, completion in picked]),
        **for_teacher,
        written=_written([completion for _, completion in picked]),
    )


def rows_of_step(table: RoundTable, num_steps: int, step: int) -> Indices:
    """Return the lines of the table of an optimizer step: every `num_steps`-th, so each prompt is in every step."""
    return np.arange(step, len(table), num_steps)


def group_begins(ordinals: NDArray[np.int64]) -> Indices:
    """Return where each ordinal begins in [N] sorted ordinals."""
    return np.flatnonzero(np.diff(ordinals, prepend=-1)).astype(np.int64)


def shares(table: RoundTable, num_steps: int, size: int) -> list[list[Indices]]:
    """Return the lines that each rank trains in each optimizer step: [num_steps][size], in the table's order.

    See `rows_of_step`. The completions of a prompt stay together, because a micro-batch computes the prompt once; with
    few prompts for each rank they are split in parts. The longest parts go first, each to the rank with the fewest
    tokens.
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
    """Return parts with completions of one prompt each and their number of tokens, the longest part first."""
    firsts = group_begins(table.ordinals[rows])
    number = 1 if size == 1 else -(-_PARTS_OF_RANK * size // max(1, len(firsts)))
    parts = []
    for group in np.split(rows, firsts[1:]):
        by_length = group[np.argsort(-table.lengths[group], kind="stable")]
        for part in (by_length[begin::number] for begin in range(min(number, len(group)))):
            parts.append((int(table.prompt_lengths[part[0]] + table.lengths[part].sum()), part))
    return sorted(parts, key=lambda each: (-each[0], each[1][0]))


def rows_of_ranks(table: RoundTable, num_steps: int, size: int) -> list[Indices]:
    """Return all lines that each rank trains, step after step."""
    steps = shares(table, num_steps, size)
    return [np.concatenate([step[rank] for step in steps]) for rank in range(size)]


class Dealt:
    """A round that ranks fetch: the common part is made once, the tokens of each rank when it asks.

    Args:
        common: The part that all ranks get: all but tokens, rank and whether to save.
        lines: Of its table.
    """

    def __init__(self, common: Round, lines: Lines):
        self._common, self._lines = common, lines
        self._rows = rows_of_ranks(common.table, common.num_steps, common.size)

    def share(self, rank: int, save: bool) -> Round:
        """Return the share of a rank; save: whether a checkpoint is requested after the round."""
        return replace(self._common, rank=rank, tokens=make_tokens(self._lines, self._rows[rank]), save=save)


@dataclass
class Serving:
    """The ranks' requests for rounds, and the rounds that they fetch.

    since: when each rank first asked for what it wants; dealt: rounds that some ranks have yet to take.
    """

    newest_served: int
    wanted: dict[int, int] = field(default_factory=dict)
    since: dict[int, float] = field(default_factory=dict)
    dealt: dict[int, Dealt] = field(default_factory=dict)
    save_request: int | None = None
    save_at: int | None = None

    def ask(self, rank: int, number: int, size: int, now: float) -> int | None:
        """Note the round that a rank wants; return the oldest round that any rank still wants, once all have asked."""
        if self.wanted.get(rank) != number:
            self.wanted[rank], self.since[rank] = number, now
        if len(self.wanted) < size:
            return None
        oldest = min(self.wanted.values())
        for each in [n for n in self.dealt if n < oldest]:
            del self.dealt[each]
        return oldest


@dataclass(frozen=True)
class Finished:
    """A round that can be trained: its groups by ordinal, the ledger once it is trained, whether it is the last.

    surplus: prompts that were sampled in vain; ended: why it has nothing to train, so that the run ends before it.
    """

    number: int
    groups: tuple[Group, ...]
    ledger: LedgerSnapshot
    last: bool
    drawn: int
    filtered: int
    failed: int
    surplus: int
    seconds: float
    ended: str = ""

    def metrics(self) -> dict[str, float]:
        """Return the metrics that are logged."""
        return {
            "round_s": self.seconds,
            "drawn": float(self.drawn),
            "filtered": float(self.filtered),
            "failed": float(self.failed),
            "surplus": float(self.surplus),
        }


@dataclass(frozen=True)
class Waiting:
    """The result is not ready yet; says why. The caller asks again, so that no call occupies the actor for long."""

    text: str
