"""PPO with a critic: the policy trainer, with a critic that is trained beside the policy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rayswift.config.derived import reward_weights
from rayswift.config.schema import RlhfConfig
from rayswift.rollout.advantages import AdvantageSettings
from rayswift.train import evaluation
from rayswift.train.policy.losses import Completions, StepCounts
from rayswift.train.policy.micro_batches import MicroBatch, Place
from rayswift.train.policy.policy_stream import PolicyStep
from rayswift.train.policy.policy_trainer import StreamedPolicyTrainer
from rayswift.train.policy.ppo import clipping, critic, returns
from rayswift.train.policy.ppo.arguments import PPOArguments, policy_settings
from rayswift.train.policy.ppo.critic import Critic
from rayswift.train.policy.ppo.losses import ValueTargets, ppo_loss
from rayswift.train.policy.round_values import RoundValues, Tokenwise, reward_metrics

_KL_COEF = "kl_coef"


class StreamedPPOTrainer(StreamedPolicyTrainer):
    """PPO on rounds of completions; see `StreamedPolicyTrainer`."""

    args: PPOArguments

    def __init__(self, *, critic: Critic, **kwargs: Any):
        self._critic = critic
        self._kl_coef = kwargs["args"].kl_coef
        self._num_policy_groups = 0
        self._norms: clipping.Norms | None = None
        self._scores_reference = False
        self._old_values: Tokenwise = {}
        self._returns: Tokenwise = {}
        self._trains_policy = True
        super().__init__(**kwargs)
        if self.is_deepspeed_enabled:
            self.args.hf_deepspeed_config.config["gradient_clipping"] = 0.0  # `_backward` clips

    def _set_losses(self, config: RlhfConfig, args: Any) -> None:
        self._advantages = AdvantageSettings(reward_weights(config))
        self._loss = policy_settings(config, args)

    def _beside(self) -> Sequence[Any]:
        return (self._critic.network,)

    def _complete(self, model: Any) -> None:
        self._critic.join(model)

    def _optimizer_groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the groups of the policy, then those of the critic."""
        own = critic.is_of_critic(self.model)
        rate = self.args.critic_learning_rate or self.args.learning_rate
        groups = super()._optimizer_groups(groups)
        policy = [{**group, "params": [p for p in group["params"] if id(p) not in own]} for group in groups]
        others = [{**group, "params": [p for p in group["params"] if id(p) in own], "lr": rate} for group in groups]
        policy, others = ([group for group in part if group["params"]] for part in (policy, others))
        self._num_policy_groups = len(policy)
        return policy + others

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """See `StreamedPolicyTrainer`; while the critic warms up, the policy does not change."""
        self._trains_policy = inputs["step"].round.number >= self.args.critic_warmup_rounds
        self._critic.leaves_policy = not self._trains_policy
        if not self._trains_policy:  # with zero gradients, weight decay would still change the policy
            for group in self.optimizer.param_groups[: self._num_policy_groups]:
                group["lr"] = 0.0
        return super().training_step(model, inputs, num_items_in_batch)

    def _backward(self, model: Any, loss: Tensor, is_last: bool) -> None:
        """Run the backward pass. DeepSpeed steps right after the last one, so gradients are clipped in between."""
        if not self.is_deepspeed_enabled:
            return super()._backward(model, loss, is_last)
        model.set_gradient_accumulation_boundary(is_last)
        model.backward(loss, scale_wrt_gas=False)
        if is_last:
            self._norms = clipping.clip_in_engine(model, self._num_policy_groups, self.args.max_grad_norm)
            model.step()

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clip the gradients of policy and critic separately.

        Returns:
            The policy's norm; NaN or infinite if either is.
        """
        if not self.is_deepspeed_enabled:
            self.accelerator.unscale_gradients()
            own = critic.is_of_critic(self.model)
            parameters = list(self.model.parameters())
            parts = [[p for p in parameters if (id(p) in own) == is_own] for is_own in (False, True)]
            self._norms = clipping.clip(parts, self.args.max_grad_norm)
        norms = self._norms
        assert norms is not None
        evaluation.add(self._sums, {"critic/grad_norm": (norms.critic, 1.0)})
        return norms.policy + 0 * norms.critic

    def _forward(self, model: Any, batch: MicroBatch) -> tuple[Tensor, ...]:
        """Return log-probability, entropy and value of each completion token, [n]; of a reference only the first."""
        if model is self._reference or self._scores_reference:
            return super()._forward(model, batch)
        with self._critic.asked(batch.followed.to(self.args.device)):
            found = super()._forward(model, batch)
        return *found, self._critic.take()

    def _score_reference(self, model: Any, batches: dict[Place, MicroBatch]) -> Tokenwise:
        self._scores_reference = True
        try:
            return super()._score_reference(model, batches)
        finally:
            self._scores_reference = False

    def _begin_round(self, model: Any, step: PolicyStep) -> None:
        """Compute values, log-probabilities, advantages and returns before the round's first step."""
        batches, table = step.batches_of_round, step.round.table
        old_logprobs, _, self._old_values = self._score(model, batches)
        reference = self._score_reference(model, batches) if self.args.kl_coef else None
        made = returns.make_returns(
            table,
            returns.scores(table, self._advantages.weights, self.args.missing_eos_penalty),
            batches,
            returns.RoundScores(old_logprobs, self._old_values, reference),
            self.args,
            self._kl_coef,
            self.sum_over_ranks,
        )
        self._values = RoundValues(made.advantages, old_logprobs)
        self._returns = made.returns
        evaluation.add(self._sums, made.sums)
        of_rewards = reward_metrics(table, self._advantages, step.round.metrics)
        of_rewards.pop("frac_reward_zero_std", None)  # completions are not compared within a group
        evaluation.add(self._sums, of_rewards)
        if self.args.kl_control == "adaptive":
            self._kl_coef = returns.adapted(
                self._kl_coef, made.kl, self.args.kl_target, len(table), self.args.kl_horizon
            )
        self._ordinals, self._rollout_metrics = table.ordinals, dict(step.round.metrics)

    def _micro_loss(
        self, model: Any, step: PolicyStep, batch: MicroBatch, place: Place, counts: StepCounts, counted: Tensor | None
    ) -> Tensor:
        values, device = self._values, self.args.device
        with self.compute_loss_context_manager():
            logprobs, entropies, predicted = self._forward(model, batch)
        completions = Completions(
            lengths=batch.lengths.to(device),
            advantages=values.advantages[place].to(device),
            old_logprobs=values.old_logprobs[place].to(device),
            sampling_logprobs=batch.sampling_logprobs.to(device),
        )
        loss = ppo_loss(
            logprobs,
            entropies,
            predicted,
            completions,
            ValueTargets(self._old_values[place].to(device), self._returns[place].to(device)),
            counts,
            self._loss,
            cliprange_value=self.args.cliprange_value,
            vf_coef=self.args.vf_coef,
            trains_policy=self._trains_policy,
        )
        self._note(batch, loss)
        return loss.total

    def _metrics(self) -> dict[str, float]:
        found = super()._metrics()
        if "val/ratio_var" in found:  # the mean of squares so far
            found["val/ratio_var"] -= found["val/ratio"] ** 2
        return found

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        whole = self.model.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, critic.policy_state(whole))
        self._critic.save(Path(output_dir or self.args.output_dir), whole, {_KL_COEF: self._kl_coef})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._critic.load(Path(resume_from_checkpoint))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        missing = [name for name in load_result.missing_keys if not name.startswith(f"{critic.NAME}.")]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint:
            self._kl_coef = critic.saved_values(Path(checkpoint))[_KL_COEF]
