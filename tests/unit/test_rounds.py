"""Rounds: their tables, who trains what, and how a rank's share is cut."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayswift.data.batches import IGNORED
from rayswift.rollout.rounds import RoundTable, make_table, make_tokens, share_of, shares
from rayswift.rollout.samples import Completion, Group, PolicyVersion, Prompt, Scored, Span
from rayswift.train.policy.micro_batches import Sequences, cut

PAD = 0


def make_groups(lengths: list[tuple[int, int]], of_group: int = 2) -> list[Group]:
    """Completions of (prompt, completion) lengths; each token is told from every other one."""
    groups, token = [], 1
    for ordinal in range(0, len(lengths), of_group):
        members = lengths[ordinal : ordinal + of_group]
        ids = np.arange(token, token + members[0][0], dtype=np.int32)
        prompt = Prompt(ordinal, f"rows:{ordinal}", 0, ids, (), {})
        token += members[0][0]
        scored = []
        for number, (_, length) in enumerate(members):
            tokens = np.arange(token, token + length, dtype=np.int32)
            spans = (Span(0, PolicyVersion(0, 3)), Span(length - 1, PolicyVersion(0, 4)))
            logprobs = -tokens.astype(np.float32)
            done = Completion(f"{ordinal}:{number}", tokens, logprobs, spans, "length" if number else "stop")
            scored.append(Scored(done, (1.0, float("nan")), 1.0))
            token += length
        groups.append(Group(prompt, tuple(scored)))
    return groups


def make(lengths: list[tuple[int, int]]) -> tuple[RoundTable, list[Group]]:
    groups = make_groups(lengths)
    return make_table(groups, ("accuracy", "format"), PolicyVersion(0, 4)), groups


def test_table() -> None:
    table, _ = make([(3, 5), (3, 2), (1, 4), (1, 1)])
    assert table.ordinals.tolist() == [0, 0, 2, 2]
    assert (table.prompt_lengths.tolist(), table.lengths.tolist()) == ([3, 3, 1, 1], [5, 2, 4, 1])
    assert table.truncated.tolist() == [False, True, False, True]
    assert table.staleness == pytest.approx([4 / 5, 1 / 2, 3 / 4, 0])
    assert table.rewards.shape == (4, 2)
    empty, groups = make([])
    assert empty.rewards.shape == (0, 2)
    assert len(make_tokens(groups, share_of(empty, 1, 0, 2)).rows) == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 30)), max_size=20), st.integers(1, 3), st.integers(1, 4))
def test_every_completion_is_trained_once_a_pass(lengths: Any, num_steps: int, size: int) -> None:
    table, _ = make(lengths)
    found = shares(table, num_steps, size)
    rows = [int(row) for step in found for rank in step for row in rank]
    assert sorted(rows) == list(range(len(lengths)))
    for step in found:
        counts = [len(rank) for rank in step]
        assert max(counts) - min(counts) <= 1
    mine = [share_of(table, num_steps, rank, size).tolist() for rank in range(size)]
    assert mine == [[int(row) for step in found for row in step[rank]] for rank in range(size)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 40), max_size=12), min_size=1, max_size=3),
    st.integers(1, 100),
    st.sampled_from(["rows", "flat"]),
)
def test_cuts_cover_all_within_the_budget(totals: Any, budget: int, layout: Any) -> None:
    ranks = [np.array(sorted(rank, reverse=True), np.int64) for rank in totals]
    cuts = cut(ranks, budget, layout)
    assert len({len(pieces) for pieces in cuts}) == 1
    assert cuts[0]
    for rank, pieces in zip(ranks, cuts, strict=True):
        taken = [rank[piece] for piece in pieces]
        assert np.concatenate(taken).tolist() == rank.tolist()
        for piece in taken:
            if len(piece) > 1:
                assert (len(piece) * piece[0] if layout == "rows" else piece.sum()) <= budget


def test_like_lengths_share_a_micro_batch() -> None:
    """Three long completions and forty short ones fit one budget together, but would be mostly padding."""
    totals = np.array([200] * 3 + [10] * 40)
    assert cut([totals], 10_000, "rows") == [[slice(0, 3), slice(3, 43)]]
    # One that is hardly shorter is not worth a pass of its own.
    assert cut([np.array([20, 20, 19, 18])], 10_000, "rows") == [[slice(0, 4)]]


@pytest.mark.parametrize("layout", ["rows", "flat"])
def test_micro_batches_hold_the_tokens_they_are_of(layout: Any) -> None:
    table, groups = make([(3, 5), (3, 2), (1, 4), (1, 1), (2, 6), (2, 3)])
    for rank in range(2):
        tokens = make_tokens(groups, share_of(table, 1, rank, 2))
        texts = Sequences(table, tokens, PAD, layout)
        for rows in (tokens.rows[:2], tokens.rows[2:], tokens.rows[:0]):
            batch = texts.batch(rows)
            lines = [(group.prompt.input_ids, each.completion) for group in groups for each in group.scored]
            wanted = [[*lines[row][0].tolist(), *lines[row][1].token_ids.tolist()] for row in rows]
            assert batch.texts == wanted
            labels = batch.inputs["labels"]
            trained = np.concatenate([np.empty(0, np.int32), *(lines[row][1].token_ids for row in rows)])
            assert labels[labels != IGNORED].tolist() == trained.tolist()
            assert torch.equal(batch.sampling_logprobs, torch.from_numpy(-trained.astype(np.float32)))
            assert batch.lengths.tolist() == [len(lines[row][1].token_ids) for row in rows]
            if layout == "flat" and len(rows):
                borders = batch.inputs["cu_seq_lens_q"].tolist()
                assert borders == [0, *np.cumsum(batch.totals)]
                assert (batch.inputs["position_ids"][0] == 0).sum() == len(rows)
