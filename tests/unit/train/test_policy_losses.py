"""Policy losses: the parts of a step add up; clips, masks and bounds. Comparisons with TRL: tests/ray."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rayswift.config.checks.policy import GRPO_LOSSES
from rayswift.config.rollout import RolloutConfig
from rayswift.rollout import advantages
from rayswift.train.policy import fipo
from rayswift.train.policy.losses import (
    LOSS_TYPES,
    Completions,
    PolicySettings,
    Sequences,
    StepCounts,
    correction_ratio,
    k3,
    policy_loss,
)

LENGTHS = (3, 1, 4, 2)
TOKENS = sum(LENGTHS)


def drawn(seed: int) -> torch.Tensor:
    return torch.randn(TOKENS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 3 - 1


def loss_of(settings: PolicySettings, rows: slice, entropy_coef: float = 0.1) -> tuple[float, torch.Tensor]:
    """The loss of some of the four completions as a part of all, and its gradient by token."""
    begin, end = sum(LENGTHS[: rows.start]), sum(LENGTHS[: rows.stop])
    logprobs = drawn(0)[begin:end].requires_grad_()
    per_sequence = torch.tensor([1.0, -0.5, 2.0, -1.0], dtype=torch.float64)
    lengths = torch.tensor(LENGTHS)
    completions = Completions(
        lengths=lengths[rows],
        advantages=per_sequence.repeat_interleave(lengths)[begin:end],
        old_logprobs=drawn(1)[begin:end],
        sampling_logprobs=drawn(2)[begin:end],
        reference_logprobs=drawn(3)[begin:end] if settings.beta else None,
        counted=(drawn(4) > -1)[begin:end],
    )
    counts = StepCounts(len(LENGTHS), TOKENS, TOKENS, int((drawn(4) > -1).sum()))
    total = policy_loss(logprobs, drawn(5)[begin:end], completions, counts, settings, entropy_coef).total
    total.backward()
    assert logprobs.grad is not None
    return total.item(), logprobs.grad


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_parts_of_a_step_add_up_to_it(loss_type: str, level: Any) -> None:
    settings = PolicySettings(
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=0.1,
        importance_sampling="token_truncate",
        off_policy_mask_threshold=0.05,
    )
    whole, gradient = loss_of(settings, slice(0, 4))
    parts = [loss_of(settings, rows) for rows in (slice(0, 1), slice(1, 1), slice(1, 3), slice(3, 4))]
    assert sum(part for part, _ in parts) == pytest.approx(whole)
    torch.testing.assert_close(torch.cat([each for _, each in parts]), gradient)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_on_policy_the_gradient_is_reinforces(loss_type: str) -> None:
    """Where nothing has moved, each token's gradient is minus its advantage over the divisor."""
    logprobs = drawn(0).requires_grad_()
    lengths = torch.tensor(LENGTHS)
    advantages = torch.tensor([1.0, -0.5, 2.0, -1.0], dtype=torch.float64).repeat_interleave(lengths)
    completions = Completions(lengths, advantages, None, drawn(0))
    # cispo bounds the ratio itself, not its distance from 1.
    settings = PolicySettings(loss_type=loss_type, epsilon_high=1.0, max_completion_length=8)
    policy_loss(logprobs, drawn(5), completions, StepCounts(4, TOKENS, 20.0, TOKENS), settings).total.backward()
    own = lengths.repeat_interleave(lengths).double()
    divisors = {
        "grpo": 4 * own,
        "sapo": 4 * own,
        "real": 4 * own,
        "bnpo": TOKENS,
        "dr_grpo": 4 * 8,
        "luspo": 4,
        "online_dpo": 4,
        "rloo": 4,  # the ratio of a completion moves with each of its tokens
    }
    torch.testing.assert_close(logprobs.grad, -advantages / divisors.get(loss_type, 20.0))


def test_clipping_stops_the_gradient_on_the_far_side_only() -> None:
    old = torch.zeros(4, dtype=torch.float64)
    logprobs = torch.tensor([0.5, 0.5, -0.5, -0.5], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    completions = Completions(torch.tensor([4]), advantages, old, old)
    loss = policy_loss(logprobs, old, completions, StepCounts(1, 4, 4, 4), PolicySettings(loss_type="bnpo"))
    loss.total.backward()
    assert logprobs.grad is not None
    assert (logprobs.grad == 0).tolist() == [True, False, False, True]
    sums = {name: each.item() for name, each in loss.sums.items()}
    assert (sums["clip_ratio/high_mean"], sums["clip_ratio/low_mean"], sums["clip_ratio/region_mean"]) == (1, 1, 2)


def test_correction_of_what_the_engine_sampled() -> None:
    sequences = Sequences(torch.tensor([2, 1]))
    old, sampled = torch.tensor([0.0, 2.0, -3.0]), torch.tensor([0.0, 0.0, float("nan")])
    settings = PolicySettings(importance_sampling_max=3.0, importance_sampling_min=0.5)
    found = {
        name: correction_ratio(old, sampled, sequences, replace(settings, importance_sampling=name))  # type: ignore[arg-type]
        for name in ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    }
    assert found.pop("none") is None
    assert {name: each.tolist() for name, each in found.items() if each is not None} == {
        "token_truncate": [1, 3, 1],
        "token_mask": [1, 0, 1],
        "sequence_truncate": [3, 3, 1],
        "sequence_mask": [0, 0, 1],
    }


def test_small_differences_of_many_tokens_do_not_stop_a_long_text_by_default() -> None:
    """An engine in 16 bit, a thousandth of a nat a token off to one side, 20,000 tokens."""
    rollout, length = RolloutConfig(), 20_000
    noise = 1e-2 * torch.randn(length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    old, sampled = torch.full((length,), -1.0, dtype=torch.float64), noise - 1.0 + 1e-3
    settings = PolicySettings(
        importance_sampling=rollout.importance_sampling,
        importance_sampling_max=rollout.importance_sampling_max,
        importance_sampling_min=rollout.importance_sampling_min,
    )
    sequences = Sequences(torch.tensor([length]))
    weights = correction_ratio(old, sampled, sequences, settings)
    assert weights is not None
    # Each is e^(-0.001 - noise), of noise that is beyond 0.06 once in a thousand million tokens.
    assert 0.93 < weights.min() <= weights.max() < 1.07
    whole = correction_ratio(old, sampled, sequences, replace(settings, importance_sampling="sequence_mask"))
    assert whole is not None and whole.max() < 1e-6


def test_what_is_left_out_in_sampling_needs_no_weight() -> None:
    """For E_mu[A] = 0 the loss's gradient by the logits is that of the reward under what is sampled from, mu; the
    weight pi / mu takes the probability of what is left off it. float64: to 1e-12 of the largest part."""
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0], dtype=torch.float64, requires_grad=True)
    kept = torch.tensor([True, True, True, False, False])
    rewards = torch.tensor([1.0, -2.0, 0.5, 7.0, -9.0], dtype=torch.float64)

    def mu() -> torch.Tensor:
        return logits.masked_fill(~kept, -torch.inf).softmax(0)

    (wanted,) = torch.autograd.grad((mu() * rewards)[kept].sum(), logits)
    drawn_from, advantages = mu().detach(), rewards - (mu().detach() * rewards)[kept].sum()
    surrogate = (drawn_from * advantages * logits.log_softmax(0))[kept].sum()
    (found,) = torch.autograd.grad(surrogate, logits, retain_graph=True)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    pi = logits.detach().softmax(0)
    left = pi[kept].sum()
    torch.testing.assert_close((pi / drawn_from)[kept], left.expand(3), rtol=1e-12, atol=0)
    (shrunk,) = torch.autograd.grad(left * (drawn_from * advantages * logits.log_softmax(0))[kept].sum(), logits)
    torch.testing.assert_close(shrunk, left * wanted, rtol=0, atol=1e-12)


def test_real_is_a_classification_of_each_group() -> None:
    """The gradient beside that of the paper's loss, written out on the log-ratios of whole completions."""
    lengths, tau = torch.tensor([3, 1, 4, 2, 2, 5, 1, 3]), 0.7
    groups = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    rewards = np.array([1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 0.0, 2.0])
    begins = torch.tensor(lengths.tolist()).cumsum(0) - lengths
    logprobs = torch.linspace(-2, -0.1, int(lengths.sum()), dtype=torch.float64).requires_grad_()
    scores = torch.stack(
        [
            (logprobs[b : b + n] - logprobs[b : b + n].detach()).mean()
            for b, n in zip(begins.tolist(), lengths.tolist(), strict=True)
        ]
    )
    total = torch.zeros((), dtype=torch.float64)
    for group in (0, 2):  # all of group 1 are alike
        own = torch.from_numpy(groups == group)
        good = own & torch.from_numpy(rewards > rewards[groups == group].mean())
        total = total + torch.log1p(torch.exp(-scores[good] / tau).sum())
        total = total + torch.log1p(torch.exp(scores[own & ~good] / tau).sum())
    (wanted,) = torch.autograd.grad(total / 3, logprobs)

    labels = torch.from_numpy(advantages.classified(rewards, groups, tau))
    at = logprobs.detach().clone().requires_grad_()
    completions = Completions(lengths, labels.repeat_interleave(lengths), None, at.detach())
    tokens = int(lengths.sum())
    counts = StepCounts(len(lengths), tokens, tokens, tokens)
    policy_loss(at, torch.zeros(tokens), completions, counts, PolicySettings(loss_type="real")).total.backward()
    torch.testing.assert_close(at.grad, wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("clip_range", [None, 0.3])
@pytest.mark.parametrize("high_only", [True, False])
def test_fipo_weighs_advantages_by_what_follows(clip_range: float | None, high_only: bool) -> None:
    """Against the sums of the paper, written out token by token."""
    lengths, log_ratio = torch.tensor(LENGTHS), (drawn(6) + 1) * 3
    advantages = torch.tensor([1.0, -0.5, 2.0, -1.0], dtype=torch.float64).repeat_interleave(lengths)
    ratio, delta, rate, threshold = log_ratio.exp(), 1.5, 2.0, 0.4
    found = fipo.influence(
        log_ratio,
        ratio,
        advantages,
        lengths,
        delta=delta,
        decay_rate=rate,
        clip_range=clip_range,
        clip_high_only=high_only,
        safety_threshold=threshold,
    )
    begin = 0
    for length in LENGTHS:
        for t in range(begin, begin + length):
            future = sum(
                2 ** (-(k - t) / rate) * float(log_ratio[k]) for k in range(t, begin + length) if ratio[k] <= delta
            )
            weight = math.exp(future)
            if clip_range is not None:
                weight = min(max(weight, 1.0 if high_only else 1 - clip_range), 1 + clip_range)
            if advantages[t] < 0 and ratio[t] > threshold:
                weight = min(max(weight, 0.8), 1.0)
            assert float(found[t]) == pytest.approx(weight, rel=1e-12)
        begin += length
    assert bool((ratio > delta).any()) and bool(((advantages < 0) & (ratio > threshold)).any())


def test_fipo_is_dapo_where_nothing_moved() -> None:
    for settings in (PolicySettings(loss_type="fipo", fipo_clip_range=0.0), PolicySettings(loss_type="fipo")):
        logprobs = drawn(0)
        lengths = torch.tensor(LENGTHS)
        completions = Completions(lengths, drawn(7), logprobs, logprobs)
        counts = StepCounts(len(LENGTHS), TOKENS, TOKENS, TOKENS)
        ours = policy_loss(logprobs, drawn(5), completions, counts, settings).total
        dapo = policy_loss(logprobs, drawn(5), completions, counts, replace(settings, loss_type="dapo")).total
        assert float(ours) == float(dapo)


def test_k3_is_never_negative_and_zero_at_the_reference() -> None:
    assert (k3(drawn(0), drawn(1)) > 0).all()
    assert not k3(drawn(0), drawn(0)).any()


def test_every_loss_that_the_config_knows_is_there() -> None:
    assert tuple(LOSS_TYPES) == GRPO_LOSSES
