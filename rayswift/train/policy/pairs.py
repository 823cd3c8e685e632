"""Online DPO (Guo et al., 2024, arXiv 2402.04792): the DPO loss on two completions of a prompt that rewards judge.

With h the difference of log(policy / reference) between the better completion c and the other one r, the loss of a pair
is -log sigmoid(beta h). Its gradient is -beta sigmoid(-beta h) (grad log p(c) - grad log p(r)): that of a policy
gradient whose advantage is beta sigmoid(-beta h) for each token of c, and its negative for each token of r. So a step
can be cut into micro-batches anywhere, if h is computed with the trained weights: a round is one step.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayswift.rollout.advantages import Floats


@dataclass(frozen=True)
class Pairs:
    """advantages: [N], of each completion's tokens, for a loss that sums tokens over N completions;
    metrics: of the pairs, under TRL's names."""

    advantages: Floats
    metrics: dict[str, float]


def of_round(rewards: Floats, ordinals: NDArray[np.int64], scaled_ratios: Floats, beta: float) -> Pairs:
    """Return the pairs of a round; two equal rewards, or a missing one, give no pair.

    Args:
        rewards: [N], weighted sums, NaN for none.
        ordinals: [N], of each completion's prompt.
        scaled_ratios: [N], beta times the sum of log(policy / reference) over the completion.
        beta: Of the loss.
    """
    advantages = np.zeros(len(rewards))
    margins, losses = [], []
    for ordinal in dict.fromkeys(ordinals.tolist()):
        rows = np.flatnonzero(ordinals == ordinal)
        if len(rows) != 2 or not abs(rewards[rows[0]] - rewards[rows[1]]) > 0:
            continue
        better, other = rows if rewards[rows[0]] > rewards[rows[1]] else rows[::-1]
        margin = scaled_ratios[better] - scaled_ratios[other]
        weight = 1 / (1 + np.exp(margin))
        # The loss divides by completions, two for each pair: the factor 2 makes it a mean over pairs.
        advantages[better], advantages[other] = 2 * beta * weight, -2 * beta * weight
        margins.append(margin)
        losses.append(np.logaddexp(0.0, -margin))
    metrics = {"pairs": float(len(margins))}
    if margins:
        metrics |= {
            "rewards/margins": float(np.mean(margins)),
            "rewards/accuracies": float(np.mean([margin > 0 for margin in margins])),
            "loss/dpo": float(np.mean(losses)),
        }
    return Pairs(advantages, metrics)
