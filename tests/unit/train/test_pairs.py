"""Online DPO's pairs: the chosen completion, the weight of each, and what is refused."""

import math
from pathlib import Path

import numpy as np
import pytest

from rayswift.config.checks.online import online_problems
from rayswift.config.load import load
from rayswift.train.policy.pairs import of_round

NEEDED = ["--model", "m", "--dataset", "d.jsonl", "--reward_funcs", "format", "--global_batch_size", "8"]


def test_the_better_completion_of_a_prompt_is_chosen() -> None:
    rewards = np.array([0.0, 1.0, 2.0, 2.0, math.nan, 1.0, 3.0, 1.0])
    ordinals = np.array([4, 4, 7, 7, 8, 8, 9, 9])
    ratios = np.array([0.5, -0.25, 1.0, 2.0, 0.0, 0.0, 0.1, 0.3])
    found = of_round(rewards, ordinals, ratios, beta=0.2)
    weights = [1 / (1 + math.exp(-0.75)), 1 / (1 + math.exp(-0.2))]
    first, last = (0.4 * weight for weight in weights)
    assert found.advantages == pytest.approx([-first, first, 0, 0, 0, 0, last, -last], rel=1e-12)
    losses = [math.log1p(math.exp(0.75)), math.log1p(math.exp(0.2))]
    assert found.metrics == pytest.approx(
        {"pairs": 2, "rewards/margins": -0.475, "rewards/accuracies": 0.0, "loss/dpo": sum(losses) / 2}, rel=1e-12
    )


def test_a_round_of_ties_teaches_nothing() -> None:
    found = of_round(np.ones(4), np.array([1, 1, 2, 2]), np.zeros(4), 0.1)
    assert not found.advantages.any()
    assert found.metrics == {"pairs": 0.0}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--num_generations", "4"], "online_dpo compares 2 completions"),
        (["--beta", "0"], "set it above 0"),
        (["--num_iterations", "2"], "one step of each round"),
        (["--max_staleness", "1"], "online_dpo is on-policy"),
        (["--teacher_server", "http://a"], "online_dpo learns from rewards alone"),
        (["--loss_type", "grpo"], "both are online_dpo, or neither"),
        (["--importance_sampling", "token_mask"], "is not corrected"),
        (["--mask_truncated_completions", "true"], "mask_truncated_completions: the loss of online_dpo has none"),
    ],
)
def test_what_online_dpo_cannot_use(flags: list[str], said: str) -> None:
    config = load("rlhf", [*NEEDED, "--rlhf_type", "online_dpo", *flags]).config
    assert any(said in line for line in online_problems(config)), online_problems(config)


def test_tasks_under_names_of_their_own(tmp_path: Path) -> None:
    """What a user sets wins, wherever the name stands; another task that is named later has nothing of it."""
    dpo = load("rlhf", [*NEEDED, "--rlhf_type", "online_dpo"]).config
    assert online_problems(dpo) == []
    assert (dpo.train.task, dpo.rollout.num_generations, dpo.train.trl_extra["beta"]) == ("grpo", 2, 0.1)
    rloo = load("rlhf", [*NEEDED, "--beta", "0.2", "--train.task", "rloo"]).config
    assert online_problems(rloo) == []
    assert (rloo.train.task, rloo.train.trl_extra["loss_type"], rloo.train.trl_extra["beta"]) == ("grpo", "rloo", 0.2)
    plus = load("rlhf", [*NEEDED, "--rlhf_type", "reinforce_plus_plus"]).config
    assert online_problems(plus) == []
    assert plus.train.trl_extra["advantage_estimator"] == "reinforce_plus_plus"

    file = tmp_path / "run.yaml"
    file.write_text("train: {task: rloo, beta: 0.3}\n", encoding="utf-8")
    named = load("rlhf", ["--config", str(file), *NEEDED]).config
    assert (named.train.task, named.train.trl_extra["beta"]) == ("grpo", 0.3)
    assert named.train.trl_extra["advantage_estimator"] == "rloo"
    again = load("rlhf", ["--config", str(file), *NEEDED, "--rlhf_type", "online_dpo"]).config
    assert (again.train.trl_extra["beta"], again.train.trl_extra["loss_type"]) == (0.3, "online_dpo")
    other = load("rlhf", ["--config", str(file), "--model", "m", "--dataset", "d.jsonl", "--rlhf_type", "dpo"]).config
    assert other.train.task == "dpo"
    assert "advantage_estimator" not in other.train.trl_extra
