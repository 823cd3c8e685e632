"""Rewards -> advantages; pure, in float64.

Every rank computes them from the table of the whole round, so all ranks get the same values. N completions, F rewards
each; NaN is a missing reward (no opinion). A completion without any reward has advantage 0 and counts in no mean.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Estimator = Literal["grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "online_dpo", "real"]
Floats = NDArray[np.float64]

_EPSILON = 1e-4  # TRL's, added to standard deviations
_MIN_VARIANCE = 1e-8


@dataclass(frozen=True)
class AdvantageSettings:
    """How rewards become advantages, under TRL's names.

    estimator: grpo (Shao et al. 2024, arXiv 2402.03300), rloo (Ahmadian et al. 2024, arXiv 2402.14740) or REINFORCE++
    without or with the group's mean as baseline (Hu et al. 2025, arXiv 2501.03262), or online_dpo, see
    `train.policy.pairs`, or real, see `classified`; weights: of each reward;
    scale_rewards: divide by the standard deviation of the group, of the whole round, or not, grpo only; aggregation:
    normalize_then_sum scales each reward by itself before they are summed (GDPO, arXiv 2601.05242), grpo only; beta: of
    online_dpo; tau: of real.
    """

    weights: tuple[float, ...]
    estimator: Estimator = "grpo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    beta: float = 0.0
    tau: float = 0.5

    @property
    def is_per_token(self) -> bool:
        """Whether advantages may differ within a completion: then `returns` and `whitened` follow `baselined`."""
        return self.estimator.startswith("reinforce_plus_plus")

    @property
    def normalizes_first(self) -> bool:
        """Whether each reward is scaled by itself."""
        return self.aggregation == "normalize_then_sum" and self.estimator == "grpo"


def weighted(rewards: Floats, weights: tuple[float, ...]) -> Floats:
    """Return the weighted sum of each completion's rewards [N, F] that are not NaN; NaN if all are; [N]."""
    total = np.nansum(rewards * np.asarray(weights, np.float64), axis=1)
    total[np.isnan(rewards).all(axis=1)] = np.nan
    return total


def advantages(
    rewards: Floats, groups: NDArray[np.int64], settings: AdvantageSettings, penalties: Floats | None = None
) -> Floats:
    """Return advantages of whole completions [N], for the estimators grpo and rloo.

    Args:
        rewards: [N, F].
        groups: [N], the same for the completions of a prompt.
        settings: See there.
        penalties: [N], subtracted from the rewards: KL to the reference times its weight.
    """
    total = _combined(rewards, groups, settings)
    total = total if penalties is None else total - penalties
    if settings.normalizes_first:
        return np.nan_to_num(_standardised(total, np.zeros(len(total), np.int64)))
    if settings.estimator == "real":
        return classified(total, groups, settings.tau)
    means, spreads, counts = _statistics(total, groups)
    if settings.estimator == "rloo":
        # The mean of a group's other completions is (count x mean - own) / (count - 1).
        return np.nan_to_num(np.where(counts > 1, (total - means) * counts / np.maximum(counts - 1, 1), 0.0))
    if settings.scale_rewards == "none":
        return np.nan_to_num(total - means)
    if settings.scale_rewards == "batch":
        spreads = _statistics(total, np.zeros(len(total), np.int64))[1]
    return np.nan_to_num((total - means) / (spreads + _EPSILON))


def classified(rewards: Floats, groups: NDArray[np.int64], tau: float) -> Floats:
    """Return the advantages [N] that give the gradient of REAL, rewards as labels (arXiv 2602.05630).

    With s the mean of log(policy / sampler) over a completion's tokens, the loss of a group is log(1 + sum over the
    good of e^(-s / tau)) + log(1 + sum over the bad of e^(s / tau)). A completion is good if its reward is above the
    group's mean; a group of one kind has no loss. If the policy is the sampler, s is 0. The gradient with respect to s
    is then -1 / (tau (1 + number of good ones)) for a good completion, and 1 / (tau (1 + number of bad ones)) for a bad
    one. The loss, a mean over groups, is scaled to one over completions.
    """
    means, _, _ = _statistics(rewards, groups)
    good, bad = rewards > means, rewards <= means
    found, names = np.zeros(len(rewards)), np.unique(groups)
    for name in names:
        own = groups == name
        num_good, num_bad = int((good & own).sum()), int((bad & own).sum())
        if num_good and num_bad:
            found[good & own], found[bad & own] = 1 / (tau * (1 + num_good)), -1 / (tau * (1 + num_bad))
    return found * len(rewards) / max(1, len(names))


def baselined(rewards: Floats, groups: NDArray[np.int64], settings: AdvantageSettings) -> Floats:
    """Return the reward of each completion [N], less the baseline, for REINFORCE++; NaN if it has none."""
    total = weighted(rewards, settings.weights)
    return total - _statistics(total, groups)[0] if settings.estimator.endswith("baseline") else total


def returns(reward: float, penalties: Floats) -> Floats:
    """Return the return of each token [T] of a completion: the reward less the penalties [T] from that token on.

    REINFORCE++, arXiv 2501.03262, equation 6, with the discount 1.
    """
    total: Floats = reward - np.cumsum(penalties[::-1])[::-1]
    return total


def gae(rewards: Floats, values: Floats, gamma: float, lam: float) -> Floats:
    """Return generalised advantage estimates [B, T] of the tokens of B completions, padded with zeros at the end.

    Schulman et al. 2016, arXiv 1506.02438, equation 16; the value of the state after a completion's last token is 0.

    Args:
        rewards: [B, T] of each token.
        values: [B, T] of the states that the tokens follow.
        gamma: Discount.
        lam: 0: one step ahead, less variance; 1: to the end, less bias.
    """
    found = np.zeros_like(rewards)
    ahead = next_values = np.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_values - values[:, t]
        found[:, t] = ahead = delta + gamma * lam * ahead
        next_values = values[:, t]
    return found


def moments(values: Floats) -> Floats:
    """Return count, sum and sum of squares of the values that are not NaN; their sums over ranks go to `whitened`."""
    known = values[~np.isnan(values)]
    return np.array([len(known), known.sum(), np.square(known).sum()])


def whitened(values: Floats, summed: Floats, shift_mean: bool = True) -> Floats:
    """Return values less their mean, divided by their standard deviation, of the whole round (`moments`); 0 for NaN.

    Without `shift_mean` the mean is kept, as TRL whitens rewards.
    """
    count, total, squares = summed / max(summed[0], 1.0)
    variance = squares - total**2 if count else 0.0
    scaled = (values - total) / np.sqrt(max(variance, _MIN_VARIANCE))
    return np.nan_to_num(scaled if shift_mean else scaled + total)


def is_even(rewards: Floats, groups: NDArray[np.int64], settings: AdvantageSettings) -> NDArray[np.bool_]:
    """Whether the completions in the group of each completion [N] have the same reward, as rewards are combined.

    Then none of them is better than another. With normalize_then_sum the weighted sums may be equal although the scaled
    rewards differ, or differ although these cancel out.
    """
    # Without the constant: two rewards of other scales, one high where the other is low, cancel out but for it.
    return _is_even(_combined(rewards, groups, settings, epsilon=0.0), groups)


def _combined(
    rewards: Floats, groups: NDArray[np.int64], settings: AdvantageSettings, epsilon: float = _EPSILON
) -> Floats:
    """Return the sum of each completion's rewards [N, F], scaled before if the settings say so; NaN if all are; [N]."""
    if settings.normalizes_first:
        rewards = rewards.copy()
        for column in rewards.T:
            column[:] = _standardised(column, groups, epsilon)
    return weighted(rewards, settings.weights)


def _standardised(values: Floats, groups: NDArray[np.int64], epsilon: float = _EPSILON) -> Floats:
    means, spreads, _ = _statistics(values, groups)
    even = _is_even(values, groups)
    return (values - means) * ~even / np.where(even, 1.0, spreads + epsilon)


def _is_even(values: Floats, groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the values in a value's group are equal but for rounding; NaN is none of them."""
    return np.isclose(_statistics(values, groups)[1], 0.0)


def _statistics(values: Floats, groups: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Return for each value [N] its group's mean, standard deviation (Bessel's, 0 of one value) and count, without NaN.

    Mean and standard deviation are 0 in a group of NaN.
    """
    _, index = np.unique(groups, return_inverse=True)
    known = ~np.isnan(values)
    counts = np.bincount(index, known).astype(np.float64)
    means = np.bincount(index, np.where(known, values, 0.0)) / np.maximum(counts, 1)
    squares = np.bincount(index, np.where(known, values - means[index], 0.0) ** 2)
    spreads = np.sqrt(squares / np.maximum(counts - 1, 1))
    return means[index], spreads[index], counts[index]
