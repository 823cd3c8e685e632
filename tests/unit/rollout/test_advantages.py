"""Rewards -> advantages: compared with the papers' formulas in plain float64; and invariants."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from rayswift.rollout.advantages import (
    AdvantageSettings,
    advantages,
    baselined,
    is_even,
    moments,
    returns,
    weighted,
    whitened,
)

REWARDS = npst.arrays(np.float64, (8, 2), elements=st.sampled_from([0.0, 0.5, 1.0, -2.0, np.nan]))
GROUPS = np.repeat([3, 7], 4)


def options(**values: Any) -> AdvantageSettings:
    return AdvantageSettings(**{"weights": (1.0, 0.5), **values})


def test_group_by_hand() -> None:
    rewards = np.array([[1.0], [0.0], [0.0], [1.0]])
    found = advantages(rewards, np.zeros(4, np.int64), AdvantageSettings((1.0,)))
    std = np.sqrt(1 / 3)
    assert found == pytest.approx(np.array([0.5, -0.5, -0.5, 0.5]) / (std + 1e-4))


def test_rloo_by_hand() -> None:
    rewards = np.array([[3.0], [0.0], [np.nan], [1.0], [9.0]])
    found = advantages(rewards, np.array([0, 0, 0, 0, 1]), AdvantageSettings((1.0,), estimator="rloo"))
    assert found == pytest.approx([3 - 0.5, 0 - 2, 0, 1 - 1.5, 0])


@settings(max_examples=50, deadline=None)
@given(REWARDS, st.sampled_from(["group", "batch", "none"]), st.sampled_from(["grpo", "rloo"]), st.booleans())
def test_what_always_holds(rewards: Any, scale: Any, estimator: Any, sums_first: bool) -> None:
    aggregation = "sum_then_normalize" if sums_first else "normalize_then_sum"
    chosen = options(scale_rewards=scale, estimator=estimator, aggregation=aggregation)
    found = advantages(rewards, GROUPS, chosen)
    unknown = np.isnan(rewards).all(axis=1)
    assert np.isfinite(found).all()
    assert not found[unknown].any()
    # The order of the completions plays no part.
    order = np.random.default_rng(0).permutation(len(rewards))
    assert advantages(rewards[order], GROUPS[order], chosen) == pytest.approx(found[order])
    if sums_first and scale != "batch":
        even = is_even(rewards, GROUPS, chosen)
        assert found[even & ~unknown] == pytest.approx(np.zeros(int((even & ~unknown).sum())), abs=1e-9)
        assert sum(found[:4]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("rewards", "weights", "summed", "scaled"),
    [
        ([[2, 0], [0, 1]], (1, 2), True, False),  # the sums are 2 and 2, but the second reward weighs more
        ([[2, 0], [0, 1]], (1, 1), False, True),  # the sums are 2 and 1, but both rewards tell the two apart equally
        ([[1, 0], [0, 1]], (1, 1), True, True),
        ([[0.1, 0.2], [0.3, 0.0], [0.3, 0.0]], (1, 1), True, True),  # 0.1 + 0.2 is not 0.3 in binary
        ([[1, 5], [1, 5]], (1, 1), True, True),
        ([[1, 0], [0, 0]], (1, 0), False, False),
        ([[1, 0], [0, 0]], (0, 1), True, True),
        ([[1, np.nan], [1, 3]], (1, 1), False, True),  # one opinion alone compares nothing
        ([[1, np.nan], [0, 3], [np.nan, np.nan]], (1, 1), False, False),
    ],
)
def test_a_group_is_even_if_no_completion_is_better(
    rewards: Any, weights: tuple[float, ...], summed: bool, scaled: bool
) -> None:
    values = np.array(rewards, np.float64)
    # Beside a group with advantages, which sets the scale of the round.
    both = np.concatenate([values, [[9.0, 9.0], [0.0, 0.0]]])
    groups = np.array([0] * len(values) + [1, 1])
    for aggregation, wanted in (("sum_then_normalize", summed), ("normalize_then_sum", scaled)):
        chosen = AdvantageSettings(weights, aggregation=aggregation)  # type: ignore[arg-type]
        assert is_even(both, groups, chosen).tolist() == [wanted] * len(values) + [False, False]
        # The constant beside a deviation is 1e-4, and deviations here are at least 0.1: 1e-3 of an advantage of 1.
        largest = np.abs(advantages(both, groups, chosen)[: len(values)]).max()
        assert (largest < 2e-3) if wanted else (largest > 0.1)


def reinforce(rewards: list[float], kls: list[list[float]], groups: list[int] | None) -> list[list[float]]:
    """REINFORCE++ as its paper writes it, one token after the other, with the penalties already weighted."""
    base = list(rewards)
    if groups:
        members = {g: [r for r, other in zip(rewards, groups, strict=True) if other == g] for g in groups}
        base = [r - sum(members[g]) / len(members[g]) for r, g in zip(rewards, groups, strict=True)]
    raw = [[r - sum(kl[t:]) for t in range(len(kl))] for r, kl in zip(base, kls, strict=True)]
    tokens = list(itertools.chain(*raw))
    mean = sum(tokens) / len(tokens)
    std = (sum((each - mean) ** 2 for each in tokens) / len(tokens)) ** 0.5
    return [[(each - mean) / std for each in row] for row in raw]


@pytest.mark.parametrize("estimator", ["reinforce_plus_plus", "reinforce_plus_plus_baseline"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_reinforce_plus_plus(estimator: Any, ranks: int) -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 9, 6)
    rewards, groups = rng.normal(size=6), np.array([0, 0, 0, 5, 5, 5])
    kls = [rng.normal(size=length) / 10 for length in lengths]
    chosen = AdvantageSettings((1.0,), estimator=estimator)
    assert chosen.is_per_token
    base = baselined(rewards[:, None], groups, chosen)
    rows_of = [range(rank, 6, ranks) for rank in range(ranks)]
    of_ranks = [np.concatenate([returns(base[row], kls[row]) for row in rows]) for rows in rows_of]
    summed = sum((moments(each) for each in of_ranks), np.zeros(3))
    wanted = reinforce(
        rewards.tolist(), [kl.tolist() for kl in kls], groups.tolist() if estimator.endswith("baseline") else None
    )
    for rows, each in zip(rows_of, of_ranks, strict=True):
        assert whitened(each, summed) == pytest.approx(list(itertools.chain(*(wanted[row] for row in rows))), abs=1e-9)


def test_a_reward_without_opinion_is_left_out_of_the_sum() -> None:
    rewards = np.array([[1.0, np.nan], [np.nan, np.nan], [1.0, 2.0]])
    assert weighted(rewards, (1.0, 0.5)) == pytest.approx([1.0, np.nan, 2.0], nan_ok=True)


def test_penalties_come_off_the_reward() -> None:
    rewards, penalties = np.array([[1.0], [0.0], [2.0], [0.0]]), np.array([1.0, 0.0, 0.0, 0.5])
    for chosen in (AdvantageSettings((1.0,)), AdvantageSettings((1.0,), estimator="rloo")):
        shifted = advantages(rewards - penalties[:, None], np.array([0, 0, 1, 1]), chosen)
        assert advantages(rewards, np.array([0, 0, 1, 1]), chosen, penalties) == pytest.approx(shifted)
