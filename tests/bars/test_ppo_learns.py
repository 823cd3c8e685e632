"""PPO on the sums compared with GRPO, from one start: as many right answers, and a critic that predicts returns.

More than ten minutes for each seed on two cores, by hand: pytest -s tests/bars/test_ppo_learns.py
"""

from pathlib import Path

import pytest

from examples.demo import TEST_SUMS, choose_start, load_sums
from tests.ray.conftest import curve, train

LIMIT_S = 1200
# When a model begins to add differs from CPU to CPU: the checkpoint is looked for by its share of right answers.
START_BAND = (0.25, 0.45)
SEEDS = (1, 2, 3)
WITHIN, EXPLAINED = 0.03, 0.5
LAST = 20  # rounds that the explained variance is a mean over


@pytest.fixture(scope="module")
def beginner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is right in a third of its sampled answers."""
    run_dir = tmp_path_factory.mktemp("sums") / "sft"
    often = ("--save_steps", "40", "--save_total_limit", "1000")
    train("sft", run_dir, "--config", "examples/sums_sft.yaml", *often, timeout_s=LIMIT_S)
    return choose_start([run_dir], load_sums(TEST_SUMS), START_BAND)[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_ppo_is_right_as_often_as_grpo(seed: int, beginner: Path, tmp_path: Path) -> None:
    found = {}
    for task in ("grpo", "ppo"):
        flags = ("--model", str(beginner), "--random_init", "false", "--seed", str(seed))
        train("rlhf", tmp_path / task, "--config", f"examples/sums_{task}.yaml", *flags, timeout_s=LIMIT_S)
        rewards = curve(tmp_path / task, "eval_reward")
        found[task] = rewards[max(rewards)]
    explained = list(curve(tmp_path / "ppo", "critic/vf_explained_var").values())[-LAST:]
    print(f"\nseed {seed}, right: {found}, explained variance {sum(explained) / LAST:.2f}")  # noqa: T201
    assert found["ppo"] >= found["grpo"] - WITHIN
    assert sum(explained) / LAST > EXPLAINED
