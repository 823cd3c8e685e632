"""The rollout service: starts the coordinator and its engines for a run."""

import uuid
from functools import partial

from rayswift.config.checks.distillation import completions_per_prompt, has_engines, sampled_share
from rayswift.config.derived import max_sequence_length, num_rewards, reward_weights, round_shape
from rayswift.config.schema import RlhfConfig
from rayswift.data.sequence.windows import Windows
from rayswift.launch.supply import beside_the_driver
from rayswift.rollout.actors import RolloutActors, RolloutClient, RolloutSpec
from rayswift.rollout.admission import RolloutPlan, RoundPlan
from rayswift.rollout.advantages import AdvantageSettings
from rayswift.rollout.evaluation import eval_plans
from rayswift.rollout.ledger import LedgerSnapshot
from rayswift.train.spec import Connect, DataServiceClient, RunSpec


def rollout_plan(config: RlhfConfig) -> RolloutPlan:
    """The settings of the coordinator, from a resolved config."""
    train, rollout = config.train, config.rollout
    num_steps, num_iterations = round_shape(train)
    assert train.global_batch_size is not None, "the plan sets it"
    steps_per_round = num_steps * num_iterations
    # Estimators that compare the completions of a prompt need two of them.
    estimator = train.trl_extra.get("advantage_estimator", "grpo")
    compares = train.task != "ppo" and estimator != "reinforce_plus_plus" and num_rewards(config) > 0
    each = completions_per_prompt(config)
    return RolloutPlan(
        rounds=RoundPlan(
            num_prompts=train.global_batch_size * num_steps // each,
            max_staleness=rollout.max_staleness,
            max_resamples=rollout.max_resamples,
            oversampling=rollout.oversampling,
            num_rounds=-(-train.max_steps // steps_per_round) if train.max_steps > 0 else None,
        ),
        num_steps=num_steps,
        steps_per_round=steps_per_round,
        num_generations=each,
        num_generations_eval=rollout.num_generations_eval or each,
        min_group=min(2, each) if compares else 1,
        max_completion_length=rollout.max_completion_length,
        max_sequence_length=max_sequence_length(config),
        drops_even=_comparison(config) if rollout.dynamic_sampling else None,
        max_failed_fraction=rollout.max_failed_fraction,
        seed=train.seed,
        # The requests that it decodes, and some that wait in it, so that it is never idle between two submissions.
        max_outstanding=rollout.max_num_seqs * 5 // 4,
        max_still_s=config.cluster.timeout_s,
        sampled=sampled_share(config),
        has_engines=has_engines(config),
        evaluations=eval_plans(rollout),
    )


def _comparison(config: RlhfConfig) -> AdvantageSettings:
    """How the trainer combines the rewards of a completion."""
    given = config.train.trl_extra
    return AdvantageSettings(
        reward_weights(config),
        estimator=given.get("advantage_estimator", "grpo"),
        aggregation=given.get("multi_objective_aggregation", "sum_then_normalize"),
    )


class RolloutService:
    """The rollout service, see `supply.DataService`. start: the ledger of the checkpoint."""

    def __init__(self, spec: RunSpec, windows: Windows, eval_windows: Windows | None, start: LedgerSnapshot):
        config = spec.config
        assert isinstance(config, RlhfConfig)
        self._actor_spec = RolloutSpec(
            config=config,
            plan=rollout_plan(config),
            layout=spec.layout,
            run_dir=spec.run_dir,
            tokenizer_dir=spec.tokenizer_dir,
            work_dir=spec.work_dir,
            windows=windows,
            eval_windows=eval_windows,
            start=start,
        )
        self._timeout_s = config.cluster.timeout_s
        self._actors: RolloutActors | None = None

    def start(self, name: str) -> Connect:
        self._actors = RolloutActors(self._actor_spec, name, beside_the_driver())
        return partial(RolloutClient, name, timeout_s=self._timeout_s)

    def start_here(self) -> DataServiceClient:
        return self.start(f"rayswift-{uuid.uuid4().hex[:8]}")(0, 1)

    def progress(self) -> tuple[int, float]:
        return self._actors.progress() if self._actors else (0, 0.0)

    def standing(self) -> tuple[object, str]:
        return self._actors.standing() if self._actors else (None, "")

    def close(self) -> None:
        if self._actors:
            self._actors.close()
