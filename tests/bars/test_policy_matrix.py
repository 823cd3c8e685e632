"""The policy trainer: every loss and its options compared with TRL, and workers x ZeRO stages with one process.

Minutes, so not part of the suite: pytest tests/bars/test_policy_matrix.py
"""

import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.policy_curve import curve

LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
CORRECTIONS = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
FURTHER: dict[str, tuple[Any, ...]] = {
    "epsilon_high": (None, 0.28),
    "delta": (None, 1.5),
    "off_policy_mask_threshold": (None, 0.01),
    "use_bias_correction_kl": (True, False),
    "top_entropy_quantile": (1.0, 0.37),
    "entropy_coef": (0.0, 0.05),
    "mask_truncated_completions": (False, True),
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "importance_sampling_max": (3.0, 0.9),
}


@pytest.fixture(scope="module")
def oracle() -> Iterator[Any]:
    """Imported for these tests alone: it takes seconds, and sets environment variables that runs would inherit."""
    environment = dict(os.environ)
    import torch

    from tests import policy_oracle

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield policy_oracle
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(environment)


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_losses(oracle: Any, tmp_path: Path, loss_type: str, level: str) -> None:
    """Each loss x correction x KL, on policy and off it, with further options drawn for each."""
    groups = oracle.make_groups(3, oracle.NUM_GENERATIONS, num_rewards=2)
    draw = random.Random(f"{loss_type} {level}")
    for correction, beta, later in itertools.product(CORRECTIONS, (0.0, 0.1), (False, True)):
        if loss_type == "vespo" and correction.startswith("sequence"):
            continue
        options = {"loss_type": loss_type, "importance_sampling_level": level, "importance_sampling": correction}
        further = {name: draw.choice(values) for name, values in FURTHER.items()}
        if further["delta"] is not None:
            further["delta"] = 1.5
        chosen = {name: value for name, value in further.items() if value is not None}
        # TRL's vespo weighs padding too, as tokens of ratio 1: of no effect unless the bound is below 1.
        if correction == "none" or loss_type == "vespo":
            chosen.pop("importance_sampling_max")
        try:
            oracle.assert_equal(tmp_path, groups, later, {**options, **chosen, "beta": beta})
        except AssertionError as error:
            raise AssertionError(f"{later} {options} {chosen} {beta}: {error}") from error


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_rloo(oracle: Any, tmp_path: Path, later: bool, beta: float) -> None:
    groups = oracle.make_groups(3, oracle.NUM_GENERATIONS, num_rewards=2)
    oracle.assert_equal(tmp_path, groups, later, {"loss_type": "rloo", "advantage_estimator": "rloo", "beta": beta})


ALGORITHMS = {
    "grpo": ("--train.beta", "0.1", "--train.entropy_coef", "0.01"),
    "gspo": ("--loss_type", "grpo", "--importance_sampling_level", "sequence", "--top_entropy_quantile", "0.37"),
    "reinforce": ("--advantage_estimator", "reinforce_plus_plus", "--train.beta", "0.1"),
    "lora": ("--tuner", "lora", "--lora_dropout", "0", "--train.beta", "0.1", "--loss_type", "cispo"),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_workers_and_stages_train_as_one_process_does(algorithm: str, tmp_path: Path) -> None:
    reference = curve(tmp_path / "one", 1, *ALGORITHMS[algorithm])
    assert len(reference) == 12
    for size, stage in ((2, 0), (3, 0), (1, 2), (2, 1), (2, 2), (2, 3)):
        found = curve(tmp_path / f"{size}-{stage}", size, *ALGORITHMS[algorithm], "--zero_stage", str(stage))
        for step, (ours, theirs) in enumerate(zip(found, reference, strict=True)):
            assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-5), (size, stage, step)


FROM_ADAPTERS = {
    "grpo": ("--train.beta", "0.1"),
    "ppo": ("ppo",),
    "ppo-separate": ("ppo", "--train.critic", "separate"),  # the critic begins as the policy, the adapter merged
}


@pytest.mark.parametrize("case", FROM_ADAPTERS)
def test_a_policy_goes_on_from_an_adapter_as_one_process_does(case: str, tmp_path: Path) -> None:
    """The reference is the model with that adapter, so at the first step there is no KL."""
    from peft import LoraConfig

    from tests.policy_runs import tiny_adapter

    adapter = tiny_adapter(tmp_path / "adapter", LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    flags = ("--tuner", "lora", "--model.adapters", str(adapter), *FROM_ADAPTERS[case])
    reference = curve(tmp_path / "one", 1, *flags)
    name = "kl" if case == "grpo" else "objective/kl"
    kl = [abs(step[name]) for step in reference if name in step]  # of ppo once a round
    assert kl[0] < 1e-6 < kl[-1]
    for size, stage in ((2, 0), (1, 2), (2, 1), (2, 2), (2, 3)):
        if stage == 3 and case == "ppo-separate":
            continue  # an adapter cannot be merged into weights that ZeRO-3 spreads
        found = curve(tmp_path / f"{size}-{stage}", size, *flags, "--zero_stage", str(stage))
        for step, (ours, theirs) in enumerate(zip(found, reference, strict=True)):
            assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-5), (case, size, stage, step)


PPO = {
    "shared": ("--train.critic", "shared", "--whiten_rewards", "true", "--num_mini_batches", "2"),
    "separate": ("--train.critic", "separate", "--num_mini_batches", "2", "--critic_learning_rate", "5e-4"),
    "lora": ("--tuner", "lora", "--lora_dropout", "0", "--num_mini_batches", "2"),
    "lora-separate": (
        *("--tuner", "lora", "--lora_dropout", "0", "--train.critic", "separate", "--num_mini_batches", "2"),
        *("--critic_warmup_rounds", "1", "--kl_control", "adaptive"),
    ),
}


@pytest.mark.parametrize("case", PPO)
def test_ppo_trains_as_one_process_does(case: str, tmp_path: Path) -> None:
    """Losses, and the gradient norms of policy and critic before clipping, which changes every step here."""
    from tests.policy_runs import tiny_critic

    flags = ("ppo", *PPO[case], "--max_grad_norm", "0.05")
    if "separate" in case:
        flags += ("--model.critic_path", str(tiny_critic(tmp_path / "critic")))
    reference = curve(tmp_path / "one", 1, *flags)
    assert len(reference) == 12
    assert max(step["critic/grad_norm"] for step in reference) > 0.05
    for size, stage in ((2, 0), (3, 0), (1, 2), (2, 1), (2, 2), (2, 3)):
        found = curve(tmp_path / f"{size}-{stage}", size, *flags, "--zero_stage", str(stage))
        for step, (ours, theirs) in enumerate(zip(found, reference, strict=True)):
            assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-5), (case, size, stage, step)
