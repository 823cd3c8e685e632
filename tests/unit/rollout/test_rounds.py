"""Rounds: tables, shares of ranks, and micro-batches."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayswift.data.collate.pieces import padded_pieces
from rayswift.engines.samples import Completion, Group, PolicyVersion, Prompt, Scored, Span
from rayswift.rollout.rounds import RoundTable, group_begins, lines_of, make_table, make_tokens, rows_of_ranks, shares
from rayswift.train.policy.micro_batch_plan import PolicyLayout, cut, ordered
from rayswift.train.policy.micro_batches import MicroBatcher

PAD = 0


def make_groups(lengths: list[tuple[int, int]], of_group: int = 2) -> list[Group]:
    """Completions of (prompt, completion) lengths; all tokens differ."""
    groups, token = [], 1
    for ordinal in range(0, len(lengths), of_group):
        sequences = lengths[ordinal : ordinal + of_group]
        ids = np.arange(token, token + sequences[0][0], dtype=np.int32)
        prompt = Prompt(ordinal, f"rows:{ordinal}", 0, ids, (), {})
        token += sequences[0][0]
        scored = []
        for number, (_, length) in enumerate(sequences):
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
    assert len(make_tokens(lines_of(groups), rows_of_ranks(empty, 1, 2)[0]).rows) == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 30)), max_size=20), st.integers(1, 3), st.integers(1, 4))
def test_every_completion_is_trained_once_a_pass(lengths: Any, num_steps: int, size: int) -> None:
    table, _ = make(lengths)
    found = shares(table, num_steps, size)
    rows = [int(row) for step in found for rank in step for row in rank]
    assert sorted(rows) == list(range(len(lengths)))
    mine = [rows_of_ranks(table, num_steps, size)[rank].tolist() for rank in range(size)]
    assert mine == [[int(row) for step in found for row in step[rank]] for rank in range(size)]


def test_prompts_stay_together_and_ranks_have_like_work() -> None:
    """Sixteen prompts of four completions to two ranks: whole ones, with as many tokens each, or nearly."""
    rng = np.random.default_rng(0)
    groups = make_groups([(7, int(length)) for length in rng.integers(1, 60, 64)], of_group=4)
    table = make_table(groups, ("accuracy", "format"), PolicyVersion(0, 4))
    ranks = shares(table, 1, 2)[0]
    assert not set(table.ordinals[ranks[0]]) & set(table.ordinals[ranks[1]])
    work = [7 * len(set(table.ordinals[rows])) + table.lengths[rows].sum() for rows in ranks]
    assert abs(work[0] - work[1]) < 0.05 * sum(work)
    # One prompt's are divided: a rank without any would wait for the others.
    assert [len(rows) for rows in shares(make_table(groups[:1], ("a", "f"), PolicyVersion(0, 4)), 1, 4)[0]] == [1] * 4


def tokens_of(table: RoundTable, rows: Any, layout: PolicyLayout) -> int:
    """What a micro-batch computes."""
    totals = table.prompt_lengths[rows] + table.lengths[rows]
    if layout == "shared":
        return int(table.prompt_lengths[rows[group_begins(table.ordinals[rows])]].sum() + table.lengths[rows].sum())
    return int(len(rows) * totals.max() if layout == "rows" else totals.sum())


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), max_size=24),
    st.integers(1, 3),
    st.integers(1, 100),
    st.sampled_from(["shared", "rows", "flat"]),
)
def test_cuts_cover_all_within_the_budget(lengths: Any, size: int, budget: int, layout: Any) -> None:
    table, _ = make(lengths)
    ranks = [ordered(table, rows, layout) for rows in shares(table, 1, size)[0]]
    cuts = cut(table, ranks, budget, layout)
    assert len({len(pieces) for pieces in cuts}) == 1
    assert cuts[0]
    for rows, pieces in zip(ranks, cuts, strict=True):
        taken = [rows[piece] for piece in pieces]
        assert np.concatenate(taken).tolist() == rows.tolist()
        assert all(tokens_of(table, each, layout) <= budget for each in taken if len(each) > 1)


def test_like_lengths_share_a_micro_batch() -> None:
    """Three long completions and forty short ones fit one budget together, but would be mostly padding."""
    lengths = np.array([200] * 3 + [10] * 40)
    assert padded_pieces(lengths, 256) == padded_pieces(lengths, 256, 10_000) == [slice(0, 3), slice(3, 43)]
    assert padded_pieces(lengths[:3], 256, 400) == [slice(0, 1), slice(1, 3)]
    # One that is hardly shorter is not worth a pass of its own.
    assert padded_pieces(np.array([20, 20, 19, 18]), 256) == [slice(0, 4)]


def test_a_prompt_is_computed_once_for_the_completions_that_follow_it() -> None:
    """Two groups of (10, 5), (10, 5) fit 45 tokens once each prompt is counted once; a third one begins anew."""
    table, _ = make([(10, 5)] * 6)
    assert cut(table, [np.arange(6)], 45, "shared") == [[slice(0, 4), slice(4, 6)]]
    assert cut(table, [np.arange(6)], 15, "shared") == [[slice(row, row + 1) for row in range(6)]]


@pytest.mark.parametrize("layout", ["shared", "rows", "flat"])
def test_micro_batches_hold_the_tokens_they_are_of(layout: Any) -> None:
    table, groups = make([(3, 5), (3, 2), (2, 6), (2, 3), (1, 4), (1, 1)])
    lines = [(group.prompt.input_ids, each.completion.token_ids) for group in groups for each in group.scored]
    for rank in range(2):
        tokens = make_tokens(lines_of(groups), rows_of_ranks(table, 1, 2)[rank])
        texts = MicroBatcher(table, tokens, PAD, layout)
        mine = ordered(table, tokens.rows, layout)
        for rows in (mine[:2], mine[2:], mine[:0]):
            batch = texts.batch(rows)
            assert batch.texts == [[*lines[row][0].tolist(), *lines[row][1].tolist()] for row in rows]
            trained = np.concatenate([np.empty(0, np.int32), *(lines[row][1] for row in rows)])
            assert batch.targets.tolist() == trained.tolist()
            assert torch.equal(batch.sampling_logprobs, torch.from_numpy(-trained.astype(np.float32)))
            assert batch.lengths.tolist() == [len(lines[row][1]) for row in rows]
            before = [token for row in rows for token in (lines[row][0][-1], *lines[row][1][:-1])]
            assert batch.inputs["input_ids"].flatten()[batch.followed].tolist() == before
            assert batch.num_computed_tokens == (tokens_of(table, rows, layout) if len(rows) else 1)
            if layout == "flat" and len(rows):
                borders = batch.inputs["cu_seq_lens_q"].tolist()
                assert borders == [0, *np.cumsum(batch.totals)]
                assert (batch.inputs["position_ids"][0] == 0).sum() == len(rows)
