"""FIPO: weights each token's advantage by the log-ratios of the later tokens; arXiv 2603.19835, as in ms-swift.

Tensors are flat: n tokens of B whole completions, concatenated.
"""

import torch
from torch import Tensor


@torch.no_grad()
def influence(
    log_ratio: Tensor,
    ratio: Tensor,
    advantages: Tensor,
    lengths: Tensor,
    *,
    delta: float | None,
    decay_rate: float,
    clip_range: float | None,
    clip_high_only: bool,
    safety_threshold: float | None,
) -> Tensor:
    """Return the weight [n] of each token's advantage.

    exp(sum over k >= t of gamma^(k - t) log_ratio_k), gamma = 2^(-1 / decay_rate), over the rest of the completion,
    clipped. A token whose ratio is above `delta` adds nothing to it.

    Args:
        log_ratio: [n], of the policy to the one that sampled.
        ratio: [n], of each token, or of its completion.
        advantages: [n].
        lengths: [B] int64, no zeros.
        delta: Upper bound of the loss's ratios; None: there is none.
        decay_rate: Tokens over which the weight of a later token halves.
        clip_range: How far a weight may be from 1; None: any.
        clip_high_only: Whether no weight is below 1.
        safety_threshold: Ratio above which a token of a bad completion has a weight of 0.8 to 1; None: none has.
    """
    if not len(lengths):
        return torch.ones_like(log_ratio)
    moved = log_ratio if delta is None else log_ratio.masked_fill(ratio > delta, 0.0)
    padded = torch.nn.utils.rnn.pad_sequence(list(moved.split(lengths.tolist())), batch_first=True)
    gamma = 2.0 ** (-1.0 / decay_rate)
    total = torch.zeros_like(padded[:, 0])
    futures = []
    for column in reversed(padded.unbind(1)):  # padding is at the end, and adds nothing
        total = column + gamma * total
        futures.append(total)
    is_token = torch.arange(padded.shape[1], device=lengths.device) < lengths[:, None]
    weights = torch.exp(torch.stack(futures[::-1], dim=1)[is_token])
    if clip_range:
        low = 1.0 if clip_high_only else 1.0 - clip_range
        weights = weights.clamp(low, 1.0 + clip_range)
    if safety_threshold is not None:
        is_risky = (advantages < 0) & (ratio > safety_threshold)
        weights = torch.where(is_risky, weights.clamp(0.8, 1.0), weights)
    return weights
