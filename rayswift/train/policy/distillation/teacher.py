"""The teacher as a worker has it: a model beside the policy, the weights that training began with, or the policy."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rayswift.train import evaluation
from rayswift.train.policy.losses import k3
from rayswift.train.policy.micro_batches import MicroBatch, Place
from rayswift.train.policy.round_values import RoundValues, Tokenwise
from rayswift.train.policy.scoring import Scorer


@dataclass(frozen=True)
class Teacher:
    """model, scorer: a model of its own, prepared for this rank; None: the policy, below its adapter if `is_start`."""

    model: Any
    scorer: Scorer | None
    is_start: bool

    @contextmanager
    def asked(self, policy: Any, accelerator: Any) -> Iterator[Any]:
        """The model to ask, while it lasts; call it without gradient."""
        if self.model is not None:
            yield self.model
        elif self.is_start:
            with accelerator.unwrap_model(policy).disable_adapter():
                yield policy
        else:
            yield policy


def in_order(values: Tensor, batch: MicroBatch) -> Tensor:
    """What was computed for the tokens of what a teacher sees, [n, ...], in the order of the micro-batch's own."""
    return values if batch.teacher is None or batch.teacher.order is None else values[batch.teacher.order]


def teach(
    values: RoundValues, teacher_logprobs: Tokenwise, batches: Mapping[Place, MicroBatch], coefficient: float
) -> evaluation.Sums:
    """Add to each token's advantage by how much likelier the teacher finds it than the policy that sampled it.

    In expectation that is the gradient of KL(policy || teacher); Thinking Machines 2025, "On-Policy Distillation".

    Args:
        values: Of a round, with the old log-probabilities of all tokens; their advantages change.
        teacher_logprobs: Of the same tokens, as the teacher saw them.
        batches: The micro-batches.
        coefficient: Weight of the difference.

    Returns:
        `teacher_kl`: the k3 estimate of KL(policy || teacher), a mean over tokens.
    """
    kl, num_tokens = 0.0, 0
    for place, batch in batches.items():
        ours, theirs = values.old_logprobs[place], in_order(teacher_logprobs[place], batch)
        values.advantages[place] = values.advantages[place] + coefficient * (theirs - ours)
        kl += float(k3(ours, theirs).sum())
        num_tokens += len(ours)
    return {"teacher_kl": (kl, num_tokens)}
