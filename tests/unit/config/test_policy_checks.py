"""Settings that the loss of task grpo cannot use are refused, with a remedy."""

import pytest

from rayswift.cluster.layout import Layout
from rayswift.config.checks.built import problems, refuse_unbuilt
from rayswift.config.checks.policy import GRPO_LOSSES, policy_problems, steps_per_round
from rayswift.config.load import load
from rayswift.config.model import adapters_of_reference, named_reference
from rayswift.config.schema import RlhfConfig
from rayswift.launch.plan import resolve
from rayswift.log import UserError

GRPO = ("--model", "m", "--data.dataset", "d.jsonl", "--train.task", "grpo", "--rollout.reward_funcs", "accuracy")


def config_of(*flags: str) -> RlhfConfig:
    config = load("rlhf", [*GRPO, *flags]).config
    assert isinstance(config, RlhfConfig)
    return config


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--loss_type", "ppo"), "train.loss_type = ppo is no loss of task grpo; there are grpo, "),
        (("--loss_type", "vespo", "--importance_sampling", "sequence_mask"), "sequence_mask: loss vespo weighs whole"),
        (("--loss_type", "rloo", "--importance_sampling_level", "sequence"), "takes each completion as one action"),
        (("--importance_sampling_level", "word"), "there are token and sequence"),
        (("--top_entropy_quantile", "0"), "top_entropy_quantile = 0.0 is the share"),
        (("--temperature", "0"), "rollout.temperature = 0 samples the same"),
        (("--importance_sampling_max", "null"), "importance_sampling = token_truncate has no bound to truncate at"),
        (("--importance_sampling_min", "3"), "importance_sampling_min = 3.0 is not below"),
        (("--repetition_penalty", "1.2", "--structured_outputs_regex", "[0-9]+"), "vLLM cannot report the log-prob"),
        (("--advantage_estimator", "rloo", "--scale_rewards", "batch"), "train.scale_rewards = batch"),
        (("--scale_rewards", "sometimes"), "there are group, batch and none"),
        (("--generation_batch_size", "65", "--global_batch_size", "64"), "is no whole number of optimizer steps"),
        (("--num_iterations", "2", "--max_steps", "5"), "ends within a round of 2 optimizer steps"),
    ],
)
def test_refused(flags: tuple[str, ...], message: str) -> None:
    found = policy_problems(config_of(*flags))
    assert len(found) == 1
    assert message in found[0]


PPO = ("--model", "m", "--data.dataset", "d.jsonl", "--train.task", "ppo", "--rollout.reward_funcs", "accuracy")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--lam", "1.5"), "train.lam = 1.5: set it from 0 to 1"),
        (("--kl_coef", "-1"), "train.kl_coef = -1.0: set it 0 or more"),
        (("--cliprange_value", "0"), "train.cliprange_value = 0.0: set it above 0"),
        (("--model.critic_path", "c"), "train.critic is shared; set that to separate"),
        (
            ("--critic", "separate", "--tuner", "lora", "--adapters", "a", "--zero_stage", "3"),
            "with its adapter merged, which cannot be done in a model that ZeRO-3 spreads; merge it",
        ),
        (("--kl_control", "adaptive", "--kl_coef", "0"), "has nothing to adapt"),
        (
            ("--kl_control", "adaptive", "--kl_horizon", "100", "--global_batch_size", "500"),
            "train.kl_horizon = 100: a round of 500 completions changes train.kl_coef",
        ),
        (("--model.teacher", "t"), "task ppo learns from rewards alone"),
        (("--teacher_server", "http://a"), "task ppo learns from rewards alone"),
        (("--dynamic_sampling", "true"), "of which a critic learns; unset it"),
        (("--num_ppo_epochs", "0"), "train.num_ppo_epochs = 0: set 1 or more"),
        (("--num_mini_batches", "2", "--max_steps", "9"), "(train.num_mini_batches x train.num_ppo_epochs)"),
        (("--temperature", "0"), "rollout.temperature = 0 samples the same"),
    ],
)
def test_what_ppo_cannot_use_is_refused(flags: tuple[str, ...], message: str) -> None:
    config = load("rlhf", [*PPO, *flags]).config
    assert isinstance(config, RlhfConfig)
    (found,) = policy_problems(config)
    assert message in found


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--train.task", "ppo", "--kl_coef", "null"), "train.kl_coef = 'null'"),
        (("--train.task", "ppo", "--num_mini_batches", "few"), "train.num_mini_batches = 'few'"),
        (("--train.task", "gkd", "--model.teacher", "t", "--lmbda", "null"), "train.lmbda = 'null'"),
        (("--train.task", "grpo", "--num_iterations", "twice"), "train.num_iterations = 'twice'"),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error_not_a_crash_of_the_checks(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as raised:
        load("rlhf", ["--model", "m", "--data.dataset", "d.jsonl", "--reward_funcs", "accuracy", *flags, "--lam", "2"])
    assert message in str(raised.value)


def test_ppo_samples_one_completion_of_a_prompt_by_default() -> None:
    for flags, wanted in (((), 1), (("--num_generations", "4"), 4)):
        config = load("rlhf", [*PPO, *flags]).config
        assert isinstance(config, RlhfConfig)
        assert config.rollout.num_generations == wanted


def test_a_round_of_ppo_is_trained_in_epochs_and_mini_batches() -> None:
    config = load("rlhf", [*PPO, "--num_mini_batches", "3", "--num_generations", "1"]).config
    assert isinstance(config, RlhfConfig)
    assert (policy_problems(config), steps_per_round(config)) == ([], 12)


def test_what_works_is_let_through() -> None:
    assert not policy_problems(config_of())
    for loss in set(GRPO_LOSSES) - {"online_dpo"}:  # that needs pairs: tests/unit/train/test_pairs.py
        assert not policy_problems(config_of("--loss_type", loss, "--importance_sampling", "token_mask"))
    assert not policy_problems(config_of("--importance_sampling_max", "null", "--importance_sampling_min", "0.5"))
    for cut in (("--top_p", "0.9", "--top_k", "50", "--min_p", "0.1"), ("--repetition_penalty", "1.2")):
        assert not policy_problems(config_of(*cut))
    config = config_of("--num_iterations", "2", "--steps_per_generation", "3", "--max_steps", "12")
    assert (policy_problems(config), steps_per_round(config)) == ([], 6)
    for estimator in ("rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"):
        assert not policy_problems(config_of("--advantage_estimator", estimator, "--beta", "0.1"))


def test_adapters_of_the_reference_are_those_that_training_begins_with_or_merged_into_another_model() -> None:
    begun = ("--model", "m", "--tuner", "lora", "--adapters", "a", "--train.beta", "0.1")
    for given, path, merged in (
        (("a",), None, []),
        (("b",), "m", ["b"]),
        (("a", "--model.reference", "other"), "other", ["a"]),
    ):
        config = config_of(*begun, "--ref_adapters", *given)
        refuse_unbuilt(config)
        assert (named_reference(config.model), adapters_of_reference(config.model)) == (path, merged)
    for flags, why in (
        (("--zero_stage", "3"), "a model that ZeRO-3 spreads; merge them"),
        (("--quantization", "nf4", "--lora_sync", "adapter"), "cannot be merged into nf4 weights; merge them"),
        (("--random_init", "true"), "the weights below them are random"),
    ):
        lines = problems(config_of(*begun, "--ref_adapters", "b", *flags))
        assert any(line.startswith("model.reference_adapters") and why in line for line in lines), lines


@pytest.mark.parametrize("flags", [("--use_adaptive_entropy", "true"), ("--cast_lm_head_to_fp32", "true")])
def test_what_is_not_built_is_refused(flags: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=f"{flags[0][2:]} = .*: not built yet"):
        refuse_unbuilt(config_of(*flags))


def test_the_size_of_a_round_in_completions_becomes_steps() -> None:
    layout = Layout(local=True, device="cpu", num_workers=1, threads_per_worker=1)
    flags = ("--generation_batch_size", "64", "--global_batch_size", "16", "--max_completion_length", "64")
    train = resolve(config_of(*flags), layout, None).config.train
    assert (train.trl_extra["steps_per_generation"], train.trl_extra["generation_batch_size"]) == (4, None)
