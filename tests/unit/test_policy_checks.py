"""What task grpo's loss cannot use is refused, with what to do."""

import pytest

from rayswift.config.load import load
from rayswift.config.policy_checks import GRPO_LOSSES, policy_problems, steps_per_round
from rayswift.config.schema import RlhfConfig

GRPO = ("--model", "m", "--data.dataset", "d.jsonl", "--train.task", "grpo", "--rollout.reward_funcs", "accuracy")


def config_of(*flags: str) -> RlhfConfig:
    config = load("rlhf", [*GRPO, *flags]).config
    assert isinstance(config, RlhfConfig)
    return config


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--loss_type", "ppo"), "train.loss_type = ppo is no loss of task grpo; there are grpo, "),
        (("--loss_type", "vespo"), "rollout.importance_sampling = sequence_mask: loss vespo"),
        (("--loss_type", "rloo", "--importance_sampling_level", "sequence"), "takes each completion as one action"),
        (("--importance_sampling_level", "word"), "there are token and sequence"),
        (("--top_entropy_quantile", "0"), "top_entropy_quantile = 0.0 is the share"),
        (("--temperature", "0"), "rollout.temperature = 0 samples the same"),
        (("--model.teacher", "t"), "does not distil"),
        (("--kl_in_reward", "true"), "set train.beta"),
        (("--advantage_estimator", "rloo", "--scale_rewards", "batch"), "train.scale_rewards = batch"),
        (("--scale_rewards", "sometimes"), "there are group, batch and none"),
        (("--generation_batch_size", "64"), "set train.steps_per_generation"),
        (("--num_iterations", "2", "--max_steps", "5"), "ends within a round of 2 optimizer steps"),
    ],
)
def test_refused(flags: tuple[str, ...], message: str) -> None:
    found = policy_problems(config_of(*flags))
    assert len(found) == 1
    assert message in found[0]


def test_what_works_is_let_through() -> None:
    assert not policy_problems(config_of())
    for loss in GRPO_LOSSES:
        assert not policy_problems(config_of("--loss_type", loss, "--importance_sampling", "token_mask"))
    config = config_of("--num_iterations", "2", "--steps_per_generation", "3", "--max_steps", "12")
    assert (policy_problems(config), steps_per_round(config)) == ([], 6)
    for estimator in ("rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"):
        assert not policy_problems(config_of("--advantage_estimator", estimator, "--beta", "0.1"))
