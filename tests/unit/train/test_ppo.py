"""PPO's advantages, losses and KL control, compared with plain float64 loops after TRL's PPO trainer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayswift.rollout import advantages
from rayswift.rollout.rounds import make_table
from rayswift.train.policy.losses import Completions, PolicySettings, StepCounts
from rayswift.train.policy.ppo import returns
from rayswift.train.policy.ppo.losses import ValueTargets, ppo_loss, value_losses
from tests.policy_runs import VERSION, Rounds, make_groups, make_spec, make_trainer, tiny_model

RELATIVE = 1e-5  # float32 tokens beside float64 ones
Array = np.ndarray[Any, np.dtype[np.float64]]


def plain_gae(rewards: Array, values: Array, gamma: float, lam: float) -> Array:
    """Equation 16 of the paper as it stands: a sum over all later one-step errors."""
    length = len(rewards)
    ahead = [*values[1:], 0.0]
    delta = [rewards[t] + gamma * ahead[t] - values[t] for t in range(length)]
    return np.array([sum((gamma * lam) ** k * delta[t + k] for k in range(length - t)) for t in range(length)])


def plain_whiten(values: Array, shift_mean: bool = True) -> Array:
    whitened = (values - values.mean()) / np.sqrt(max(values.var(), 1e-8))
    return whitened if shift_mean else whitened + values.mean()


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.0), (0.97, 1.0)])
def test_advantages_are_those_of_the_paper(gamma: float, lam: float) -> None:
    rng = np.random.default_rng(0)
    lengths = [7, 1, 4]
    rewards, values = np.zeros((3, 7)), np.zeros((3, 7))
    for row, length in enumerate(lengths):
        rewards[row, :length], values[row, :length] = rng.normal(size=length), rng.normal(size=length)
    found = advantages.gae(rewards, values, gamma, lam)
    for row, length in enumerate(lengths):
        wanted = plain_gae(rewards[row, :length], values[row, :length], gamma, lam)
        np.testing.assert_allclose(found[row, :length], wanted, rtol=1e-12)
        assert not found[row, length:].any()


def test_the_weight_of_the_kl_follows_its_target() -> None:
    """Ziegler et al.: proportional to the relative error, which counts for a fifth at most."""
    assert returns.adapted(0.1, 6.6, 6.0, 256, 10000) == pytest.approx(0.1 * (1 + 0.1 * 256 / 10000), rel=1e-12)
    assert returns.adapted(0.1, 60.0, 6.0, 256, 10000) == pytest.approx(0.1 * (1 + 0.2 * 256 / 10000), rel=1e-12)
    assert returns.adapted(0.1, -3.0, 6.0, 256, 10000) == pytest.approx(0.1 * (1 - 0.2 * 256 / 10000), rel=1e-12)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("whitens", [False, True])
def test_returns_of_a_round(tmp_path: Path, size: int, estimator: str, whitens: bool) -> None:
    """Any number of ranks makes of a round what plain loops make of it."""
    groups = make_groups(4, 2, num_rewards=2)
    flags = ["--train.task", "ppo", "--kl_estimator", estimator, "--whiten_rewards", str(whitens).lower()]
    flags += ["--missing_eos_penalty", "0.5", "--num_generations", "2", "--gamma", "0.98", "--micro_batch_tokens", "40"]
    ranks = []
    for rank in range(size):
        spec = make_spec(tmp_path / str(rank), *flags)
        trainer = make_trainer(spec, Rounds([groups], rank=rank, size=size, num_rewards=2), tiny_model())
        ranks.append((trainer, next(iter(trainer.stream))["step"].batches_of_round))
    table = make_table(groups, ("a", "b"), VERSION)
    rng = np.random.default_rng(1)
    made = {name: [rng.normal(size=n) for n in table.lengths] for name in ("logprobs", "reference", "values")}
    scores = returns.scores(table, (1.0, 2.0), 0.5)

    def of_rank(rank: int, shared: Any) -> returns.Returns:
        trainer, batches = ranks[rank]
        tokenwise = {
            name: {
                place: torch.tensor(np.concatenate([np.empty(0), *(each[row] for row in batch.rows)]))
                for place, batch in batches.items()
            }
            for name, each in made.items()
        }
        scored = returns.RoundScores(tokenwise["logprobs"], tokenwise["values"], tokenwise["reference"])
        return returns.make_returns(table, scores, batches, scored, trainer.args, 0.3, shared)

    found = _together([lambda shared, rank=rank: of_rank(rank, shared) for rank in range(size)])
    log_ratios = [p - q for p, q in zip(made["logprobs"], made["reference"], strict=True)]
    kls = [each if estimator == "k1" else np.exp(-each) - 1 + each for each in log_ratios]
    rewards = [-0.3 * each for each in kls]
    for row, each in enumerate(rewards):
        each[-1] += table.rewards[row] @ [1.0, 2.0] - 0.5 * table.truncated[row]
    if whitens:
        rewards = np.split(plain_whiten(np.concatenate(rewards), False), np.cumsum(table.lengths)[:-1])
    raw = [plain_gae(r, v, 0.98, 0.95) for r, v in zip(rewards, made["values"], strict=True)]
    wanted = np.split(plain_whiten(np.concatenate(raw)), np.cumsum(table.lengths)[:-1])
    targets = [a + v for a, v in zip(raw, made["values"], strict=True)]
    for (_, batches), each in zip(ranks, found, strict=True):
        for place, batch in batches.items():
            for name, columns in (("advantages", wanted), ("returns", targets)):
                ours = getattr(each, name)[place].numpy()
                theirs = np.concatenate([np.empty(0), *(columns[row] for row in batch.rows)])
                np.testing.assert_allclose(ours, theirs, rtol=RELATIVE, atol=1e-6)
        assert each.kl == pytest.approx(np.mean([kl.sum() for kl in kls]), rel=1e-9)
        explained = 1 - np.concatenate(raw).var() / np.concatenate(targets).var()
        assert each.sums["critic/vf_explained_var"][0] == pytest.approx(explained, rel=1e-9)
    penalty = sum(each.sums["objective/non_score_reward"][0] for each in found) / len(table)
    assert penalty == pytest.approx(-0.3 * np.mean([kl.sum() for kl in kls]), rel=1e-9)


def _together(ranks: list[Any]) -> list[Any]:
    """Each rank's function, called with a sum over all of them, in threads that wait for each other."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    barrier, given = Barrier(len(ranks)), [torch.zeros(0)] * len(ranks)

    def run(rank: int) -> Any:
        def shared(values: torch.Tensor) -> torch.Tensor:
            given[rank] = values
            barrier.wait(20)
            total = torch.stack(given).sum(0)
            barrier.wait(20)
            return total

        return ranks[rank](shared)

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(run, range(len(ranks))))


def test_a_completion_without_a_score_teaches_nothing(tmp_path: Path) -> None:
    groups = make_groups(2, 2)
    trainer = make_trainer(
        make_spec(tmp_path, "--train.task", "ppo", "--num_generations", "2"), Rounds([groups]), tiny_model()
    )
    batches = next(iter(trainer.stream))["step"].batches_of_round
    (place, batch), *_ = batches.items()
    table = make_table(groups, ("f0",), VERSION)
    values = {place: torch.rand(int(batch.lengths.sum()))}
    scores = np.array([np.nan, 1.0, 2.0, 0.0])
    scored = returns.RoundScores({place: torch.zeros_like(values[place])}, values, None)
    made = returns.make_returns(table, scores, batches, scored, trainer.args, 0.0, lambda each: each)
    is_without = torch.from_numpy(np.repeat(batch.rows == 0, batch.lengths.numpy()))
    assert not made.advantages[place][is_without].any()
    assert made.advantages[place][~is_without].all()
    assert torch.equal(made.returns[place][is_without], values[place][is_without])


def test_losses_beside_plain_ones() -> None:
    """TRL's: masked means of clipped surrogates and clipped value errors, here over the tokens of a step."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 3, 8])
    new, old, advantage, value, old_value, target = torch.randn(6, 16, generator=generator, dtype=torch.float64)
    new = old + 0.3 * new
    logprobs, values = new.clone().requires_grad_(), value.clone().requires_grad_()
    counts = StepCounts(sequences=6, tokens=40, mean_tokens=40.0, counted_tokens=40)
    loss = ppo_loss(
        logprobs,
        torch.ones_like(new),
        values,
        Completions(lengths, advantage, old, old),
        ValueTargets(old_value, target),
        counts,
        PolicySettings(loss_type="bnpo", epsilon=0.2),
        cliprange_value=0.3,
        vf_coef=0.1,
    )
    loss.total.backward()
    plain_new, plain_value = new.clone().requires_grad_(), value.clone().requires_grad_()
    ratio = torch.exp(plain_new - old)
    surrogate = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)).sum() / 40
    clipped = torch.clamp(plain_value, old_value - 0.3, old_value + 0.3)
    error = 0.5 * torch.maximum((plain_value - target) ** 2, (clipped - target) ** 2).sum() / 40
    (surrogate + 0.1 * error).backward()
    torch.testing.assert_close(loss.total, surrogate + 0.1 * error, rtol=1e-12, atol=0)
    torch.testing.assert_close(logprobs.grad, plain_new.grad, rtol=1e-12, atol=0)
    torch.testing.assert_close(values.grad, plain_value.grad, rtol=1e-12, atol=0)
    assert loss.sums["loss/policy_avg"] / 40 == pytest.approx(float(surrogate.detach()), rel=1e-12)
    assert loss.sums["policy/approxkl_avg"] == pytest.approx(float(0.5 * (new - old).square().sum()), rel=1e-12)


def test_a_value_that_has_moved_enough_gets_no_gradient() -> None:
    values = torch.tensor([0.5, 0.5], requires_grad=True)
    losses, is_clipped = value_losses(values, ValueTargets(torch.zeros(2), torch.tensor([1.0, -1.0])), 0.2)
    losses.sum().backward()
    assert is_clipped.tolist() == [True, False]
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 1.5]
