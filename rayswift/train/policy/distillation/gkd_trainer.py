"""The distillation trainer: compares student and teacher at each token of a round's completions.

A round has completions that the student sampled, or the answers of its rows, see `rollout.groups.is_sampled`. The loss
is TRL's: the sum over the tokens of completions, divided by their number in the whole step.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rayswift.config.derived import reward_weights
from rayswift.config.schema import RlhfConfig
from rayswift.rollout.advantages import AdvantageSettings
from rayswift.rollout.groups import is_sampled
from rayswift.train import evaluation
from rayswift.train.policy.distillation.divergence import TopK, divergence, masses, target_logprobs, top_k
from rayswift.train.policy.distillation.teacher import in_order, outside_logprobs
from rayswift.train.policy.losses import Loss, StepCounts, k3
from rayswift.train.policy.micro_batches import MicroBatch, Place
from rayswift.train.policy.policy_stream import PolicyStep
from rayswift.train.policy.policy_trainer import StreamedPolicyTrainer
from rayswift.train.policy.round_values import RoundValues, reward_metrics


def outside_top_k(batch: MicroBatch, logits: Tensor, temperature: float) -> TopK:
    """Return the likeliest tokens that an outside teacher gave at the positions of logits [n, V], as logits.

    Args:
        batch: With its scores.
        logits: Of the student.
        temperature: Of the teacher's log-probabilities.
    """
    if batch.scores is None:
        return top_k(logits.detach(), 1)  # there are no positions
    assert batch.scores.top_ids is not None and batch.scores.top_logprobs is not None, "asked for with `logits_topk`"
    ids, logprobs = batch.scores.top_ids.to(logits.device), batch.scores.top_logprobs.to(logits.device)
    # Entries of a larger head that are no tokens here get nearly no probability.
    logprobs = (logprobs * temperature).masked_fill(ids >= logits.shape[-1], -1e4)
    return TopK(ids.clamp(max=logits.shape[-1] - 1), logprobs)


class StreamedGkdTrainer(StreamedPolicyTrainer):
    """Generalised knowledge distillation (GKD, arXiv 2306.13649) on rounds of completions."""

    def _set_losses(self, config: RlhfConfig, args: Any) -> None:
        rollout = config.rollout
        self._advantages = AdvantageSettings(reward_weights(config))
        self._temperature, self._seed = rollout.temperature, config.train.seed
        # Engines give log-probabilities at the temperature of sampling, servers at 1.
        self._outside_temperature = rollout.temperature if rollout.teacher_engines else 1.0

    def _begin_round(self, model: Any, step: PolicyStep) -> None:
        """Only note the metrics of the round."""
        self._values = RoundValues()
        table = step.round.table
        evaluation.add(self._sums, reward_metrics(table, self._advantages, step.round.metrics))
        evaluation.add(self._sums, {"on_policy": (float(self._is_sampled(step)), 1.0)})
        self._ordinals, self._rollout_metrics = table.ordinals, dict(step.round.metrics)

    def _is_sampled(self, step: PolicyStep) -> bool:
        return is_sampled(self._seed, step.round.number, self.args.lmbda)

    def _micro_loss(
        self, model: Any, step: PolicyStep, batch: MicroBatch, place: Place, counts: StepCounts, counted: Tensor | None
    ) -> Tensor:
        args, temperature = self.args, self._temperature
        theirs = self._teacher_logits(model, batch)  # first: ZeRO-3 needs the pass with gradients to be the last one
        with self.compute_loss_context_manager():
            ours = self._logits(model, batch)
        best = None
        if theirs is None:
            best = outside_top_k(batch, ours, self._outside_temperature)
        else:
            width = min(ours.shape[-1], theirs.shape[-1])  # a head may have more entries than there are tokens
            ours, theirs = ours[:, :width], theirs[:, :width]
            best = top_k(theirs, args.logits_topk) if args.logits_topk else None
        total = divergence(ours, theirs if best is None else best, args.beta, temperature).sum()
        targets = batch.targets.to(ours.device)
        sums = self._compared(ours.detach(), theirs, best, batch, targets)
        if args.sft_alpha and not self._is_sampled(step):
            likelihood = F.cross_entropy(ours.float(), targets, reduction="sum")
            total = total + args.sft_alpha * likelihood
            sums["sft_loss"] = likelihood.detach()
        loss = Loss(total / max(1, counts.tokens), sums)
        self._note(batch, loss)
        return loss.total

    def _compared(
        self, ours: Tensor, theirs: Tensor | None, best: TopK | None, batch: MicroBatch, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the sums of logged metrics over tokens, at the temperature of the teacher's log-probabilities."""
        temperature = self._outside_temperature if theirs is None else self._temperature
        if theirs is None:
            wanted = outside_logprobs(batch).to(ours.device)
        else:
            wanted = target_logprobs(theirs, targets, temperature)
        sums = {"teacher_kl": k3(target_logprobs(ours, targets, temperature), wanted).sum()}
        if best is not None:
            mass = masses(ours, best, theirs, temperature)
            sums |= {
                f"distillation/{who}_mass": each.sum() for who, each in zip(("student", "teacher"), mass, strict=True)
            }
        return sums

    def _logits(self, model: Any, batch: MicroBatch) -> Tensor:
        with self._inputs(batch) as inputs:
            return self._scorer(model).logits(model, inputs, batch.followed.to(self.args.device))

    @torch.no_grad()
    def _teacher_logits(self, model: Any, batch: MicroBatch) -> Tensor | None:
        """Return logits [n, V]; None: the teacher is outside, and gives only its likeliest tokens."""
        assert self._teacher is not None
        if self._teacher.is_outside:
            return None
        with self._scoring(model), self._teacher.asked(model, self.accelerator) as asked:
            logits = self._logits(asked, batch.teacher or batch)
        return in_order(logits, batch)

    def _target_logprobs(self, model: Any, inputs: dict[str, Any], followed: Tensor, targets: Tensor) -> Tensor:
        """Return log-probabilities by the model's own head, as in training."""
        return target_logprobs(self._score_policy.logits(model, inputs, followed), targets, self._temperature)
