"""The teacher in a worker: a model beside the policy, the initial weights, or the policy itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rayswift.config.checks.distillation import has_teacher_outside
from rayswift.config.model import SELF
from rayswift.config.schema import RlhfConfig
from rayswift.train import evaluation
from rayswift.train.policy.losses import k3
from rayswift.train.policy.micro_batches import MicroBatch
from rayswift.train.policy.round_values import RoundValues, Tokenwise
from rayswift.train.policy.scoring import Scorer


@dataclass(frozen=True)
class Teacher:
    """model, scorer: a separate model, prepared for this rank; None: the policy, without its adapter if `is_start`; or,
    if `is_outside`, engines or a server that have already scored the completions."""

    model: Any
    scorer: Scorer | None
    is_start: bool
    is_outside: bool = False

    @classmethod
    def of(cls, config: RlhfConfig, model: Any, prepare: Callable[[Any], Any]) -> "Teacher | None":
        """Return the teacher of a run, if it has one.

        Args:
            config: The run's.
            model: A separate model that this rank holds.
            prepare: Prepares it for this rank.
        """
        if has_teacher_outside(config):
            return cls(None, None, False, is_outside=True)
        if not config.model.teacher:
            return None
        if model is None:
            return cls(None, None, is_start=config.model.teacher != SELF)
        scorer = Scorer(model, config.rollout.temperature, entropy=False)
        return cls(prepare(model), scorer, is_start=False)

    @contextmanager
    def asked(self, policy: Any, accelerator: Any) -> Iterator[Any]:
        """Yield the model to ask; call it without gradient."""
        if self.model is not None:
            yield self.model
        elif self.is_start:
            with accelerator.unwrap_model(policy).disable_adapter():
                yield policy
        else:
            yield policy


def outside_logprobs(batch: MicroBatch) -> Tensor:
    """Return the log-probabilities [n] of a teacher that has already scored the completions."""
    assert batch.scores is not None or not len(batch.targets), "the coordinator has them scored"
    return batch.scores.logprobs if batch.scores else torch.empty(0)


def in_order(values: Tensor, batch: MicroBatch) -> Tensor:
    """Reorder values [n, ...] from the order of the teacher's micro-batch to that of the policy's."""
    return values if batch.teacher is None or batch.teacher.order is None else values[batch.teacher.order]


def teach(values: RoundValues, teacher_logprobs: Tokenwise, coefficient: float) -> evaluation.Sums:
    """Add to each token's advantage its log-probability by the teacher minus that by the policy that sampled it.

    In expectation this gives the gradient of KL(policy || teacher); Thinking Machines 2025, "On-Policy Distillation".

    Args:
        values: Of a round, with the old log-probabilities of all tokens; the advantages are changed.
        teacher_logprobs: Of the same tokens.
        coefficient: Weight of the difference.

    Returns:
        `teacher_kl`: the k3 estimate of KL(policy || teacher), a mean over tokens.
    """
    kl, num_tokens = 0.0, 0
    for place, theirs in teacher_logprobs.items():
        ours = values.old_logprobs[place]
        values.advantages[place] = values.advantages[place] + coefficient * (theirs - ours)
        kl += float(k3(ours, theirs).sum())
        num_tokens += len(ours)
    return {"teacher_kl": (kl, num_tokens)}
