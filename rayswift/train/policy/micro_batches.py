"""Completions -> micro-batches; pure.

The model's attention decides between three layouts. `shared`: one row of prompts, each once, and the completions that
follow them, see `shared_prompts`. `rows`: each completion with its prompt is a row, padded to the longest; attention is
causal, for which SDPA needs no mask. `flat`: completions with their prompts, concatenated, for variable-length flash
attention.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rayswift.data.collate.pieces import ranges
from rayswift.rollout.episodes.trajectories import checksum
from rayswift.rollout.rounds import Indices, RoundTable, Tokens, group_begins
from rayswift.train.policy.micro_batch_plan import PolicyLayout
from rayswift.train.policy.shared_prompts import SharedPrompts

Place = tuple[int, int]
"""The place of a micro-batch in a round: the optimizer step, and its number in the step."""


@dataclass(frozen=True)
class MicroBatch:
    """B completions with their prompts; the model wrote n of their tokens, and these are trained.

    rows [B]: their lines in the round's table; ids: prompts with completions, concatenated, and totals [B] int64, the
    tokens of each; lengths [B] int64: how many of them the model wrote; sampling_logprobs [n] float32; inputs: of the
    model; followed, targets [n]: the position in the flattened input_ids at which each token is predicted, and the
    token; shared_prompts: see there; teacher: the same completions after the teacher's prompts, None: the prompts are
    the same; order [n]: of a teacher's micro-batch: for each token of the policy's micro-batch its index here; scores:
    by a teacher outside the workers. B may be 0: then inputs have
    one padding token.
    """

    rows: Indices
    ids: NDArray[np.int64]
    totals: NDArray[np.int64]
    lengths: torch.Tensor
    sampling_logprobs: torch.Tensor
    inputs: Mapping[str, Any]
    followed: torch.Tensor
    targets: torch.Tensor
    shared_prompts: SharedPrompts | None = None
    teacher: "MicroBatch | None" = None
    order: torch.Tensor | None = None
    scores: "Scores | None" = None

    @property
    def num_computed_tokens(self) -> int:
        """Return the number of tokens that the model computes, padding included."""
        return int(self.inputs["input_ids"].numel())

    @property
    def texts(self) -> list[list[int]]:
        """Return the tokens of each completion with its prompt."""
        return [ids.tolist() for ids in np.split(self.ids, np.cumsum(self.totals)[:-1])] if len(self.rows) else []


@dataclass(frozen=True)
class Scores:
    """A teacher's scores of n completion tokens: logprobs [n] float32; top_ids [n, k] int64 and top_logprobs [n, k]
    float32, its likeliest tokens, None if they were not requested."""

    logprobs: torch.Tensor
    top_ids: torch.Tensor | None = None
    top_logprobs: torch.Tensor | None = None


class MicroBatcher:
    """A rank's prompts with their completions, concatenated; makes micro-batches."""

    def __init__(self, table: RoundTable, tokens: Tokens, pad_token_id: int, layout: PolicyLayout):
        prompts, lengths = table.prompt_lengths[tokens.rows], table.lengths[tokens.rows]
        self._ordinals = table.ordinals[tokens.rows]
        self._place = {int(row): place for place, row in enumerate(tokens.rows)}
        self._prompts, self._lengths = prompts, lengths
        self._begins = _begins(prompts + lengths)
        self._logprob_begins, self._logprobs = _begins(lengths), tokens.logprobs
        self._pad_token_id, self._layout = pad_token_id, layout
        self._ids = np.empty(int((prompts + lengths).sum()), np.int64)
        is_prompt = np.repeat(np.tile([True, False], len(prompts)), np.stack([prompts, lengths], axis=1).ravel())
        self._ids[is_prompt], self._ids[~is_prompt] = tokens.prompt_ids, tokens.token_ids
        self._scores = tokens.scores
        self._teacher = None
        if tokens.teacher_ids is not None and tokens.teacher_lengths is not None:
            lengths_seen = table.prompt_lengths.copy()
            lengths_seen[tokens.rows] = tokens.teacher_lengths
            seen = replace(tokens, prompt_ids=tokens.teacher_ids, teacher_ids=None)
            # The teacher's prompt was not sampled from, so it has no checksum.
            table_seen = replace(table, prompt_lengths=lengths_seen, checksums=None)
            self._teacher = MicroBatcher(table_seen, seen, pad_token_id, layout)
        self._written, self._written_lengths = tokens.written, table.written_lengths[tokens.rows]
        _check(table, tokens, self._ids, self._begins, prompts + lengths)

    def batch(self, rows: Indices) -> MicroBatch:
        """Return the micro-batch of these lines of the table; shared prompts: in the order of `ordered`."""
        places = np.array([self._place[int(row)] for row in rows], np.int64)
        prompts, lengths = self._prompts[places], self._lengths[places]
        totals = prompts + lengths
        ids = self._ids[ranges(self._begins[places], totals)]
        is_target = ranges(np.zeros_like(totals), totals) >= np.repeat(prompts, totals)
        logprobs = self._logprobs[ranges(self._logprob_begins[places], lengths)]
        shared = None
        if not len(rows):
            inputs, followed = {"input_ids": torch.full((1, 1), self._pad_token_id)}, np.empty(0, np.int64)
        elif self._layout == "rows":
            inputs, followed = self._rows(ids, totals, is_target)
        elif self._layout == "flat":
            inputs, followed = _flat(ids, totals, is_target)
        else:
            inputs, followed, shared = _shared(ids, prompts, lengths, is_target, group_begins(self._ordinals[places]))
        targets, of_tokens = ids[is_target], ranges(self._logprob_begins[places], lengths)
        if self._written is not None:
            written = self._written[of_tokens]
            followed, targets, logprobs = followed[written], targets[written], logprobs[written]
            of_tokens = of_tokens[written]
        return MicroBatch(
            rows=rows,
            ids=ids,
            totals=totals,
            lengths=torch.from_numpy(self._written_lengths[places]),
            sampling_logprobs=torch.from_numpy(logprobs),
            inputs=inputs,
            followed=torch.from_numpy(followed),
            targets=torch.from_numpy(targets),
            shared_prompts=shared,
            teacher=self._teacher.in_own_order(rows) if self._teacher else None,
            scores=self._scores_of(of_tokens),
        )

    def _scores_of(self, places: NDArray[np.int64]) -> Scores | None:
        if self._scores is None:
            return None
        logprobs, top = torch.from_numpy(self._scores.logprobs[places]), self._scores.top
        if top is None:
            return Scores(logprobs)
        return Scores(
            logprobs, torch.from_numpy(top.ids[places].astype(np.int64)), torch.from_numpy(top.logprobs[places])
        )

    def in_own_order(self, rows: Indices) -> MicroBatch:
        """Return the micro-batch of some lines of the table, ordered by these prompts, with `order`."""
        places = np.array([self._place[int(row)] for row in rows], np.int64)
        order = np.arange(len(rows))
        if self._layout == "shared":
            order = np.lexsort((-self._lengths[places], self._ordinals[places], -self._prompts[places]))
        lengths = self._written_lengths[places][order]
        begins = np.empty(len(rows), np.int64)
        begins[order] = _begins(lengths)
        tokens = ranges(begins, self._written_lengths[places])
        return replace(self.batch(rows[order]), order=torch.from_numpy(tokens))

    def _rows(
        self, ids: NDArray[np.int64], totals: NDArray[np.int64], is_target: NDArray[np.bool_]
    ) -> tuple[dict[str, Any], NDArray[np.int64]]:
        """Return input_ids [B, T], without position ids, because no row holds two texts; and followed."""
        is_text = np.arange(int(totals.max())) < totals[:, None]
        padded = np.full(is_text.shape, self._pad_token_id, np.int64)
        padded[is_text] = ids
        return {"input_ids": torch.from_numpy(padded)}, np.flatnonzero(is_text)[is_target] - 1


def _check(
    table: RoundTable, tokens: Tokens, ids: NDArray[np.int64], begins: NDArray[np.int64], totals: NDArray[np.int64]
) -> None:
    """Check that the trained tokens are the sampled ones.

    Raises:
        RuntimeError: they are not.
    """
    if table.checksums is None:
        return
    whole = ids.astype(np.int32)
    for row, begin, total in zip(tokens.rows.tolist(), begins.tolist(), totals.tolist(), strict=True):
        if checksum(whole[begin : begin + total]) != table.checksums[row]:
            raise RuntimeError(
                f"the tokens of completion {row} (prompt {table.ordinals[row]}) are not those that were sampled"
            )


def _flat(
    ids: NDArray[np.int64], totals: NDArray[np.int64], is_target: NDArray[np.bool_]
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Return input_ids and position_ids [1, sum T] with the borders for flash attention, and followed."""
    borders = torch.tensor([0, *np.cumsum(totals)], dtype=torch.int32)
    longest = int(totals.max())
    inputs = {
        "input_ids": torch.from_numpy(ids)[None],
        "position_ids": torch.from_numpy(ranges(np.zeros_like(totals), totals))[None],
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": longest,
        "max_length_k": longest,
    }
    return inputs, np.flatnonzero(is_target) - 1


def _shared(
    ids: NDArray[np.int64],
    prompts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    is_target: NDArray[np.bool_],
    firsts: NDArray[np.int64],
) -> tuple[dict[str, Any], NDArray[np.int64], SharedPrompts]:
    """Return input_ids and position_ids [1, T] of prompts and completions, followed, and the `SharedPrompts`.

    firsts [u]: the first completion of each prompt.
    """
    totals = prompts + lengths
    begins = _begins(totals)
    once = prompts[firsts]
    places = np.concatenate([ranges(begins[firsts], once), np.flatnonzero(is_target)])
    positions = ranges(np.concatenate([np.zeros_like(once), prompts]), np.concatenate([once, lengths]))
    inputs = {
        "input_ids": torch.from_numpy(ids[places])[None],
        "position_ids": torch.from_numpy(positions)[None],
    }
    of = np.repeat(np.arange(len(firsts)), np.diff(firsts, append=len(prompts)))
    # A completion's first token follows its prompt's last one, any other the one before it.
    followed = int(once.sum()) + np.arange(int(lengths.sum())) - 1
    followed[_begins(lengths)] = np.cumsum(once)[of] - 1
    return inputs, followed, SharedPrompts(once, of, lengths)


def _begins(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.cumsum(lengths) - lengths
