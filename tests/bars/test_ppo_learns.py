"""PPO on the sums beside GRPO, from one start: as many answers right, and a critic that foresees them.

Twenty minutes on two cores, by hand: pytest -s tests/bars/test_ppo_learns.py
"""

from pathlib import Path

import pytest

from tests.ray.conftest import curve, train

START, LIMIT_S = 250, 1200
WITHIN, EXPLAINED = 0.03, 0.5
LAST = 20  # rounds that the explained variance is a mean over


@pytest.fixture(scope="module")
def beginner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is right in a third of its sampled answers."""
    run_dir = tmp_path_factory.mktemp("sums") / "run"
    train(
        "sft",
        run_dir,
        "--config",
        "examples/sums_sft.yaml",
        "--save_steps",
        "50",
        "--save_total_limit",
        "30",
        timeout_s=LIMIT_S,
    )
    return run_dir / f"checkpoint-{START}"


def test_ppo_is_right_as_often_as_grpo(beginner: Path, tmp_path: Path) -> None:
    found = {}
    for task in ("grpo", "ppo"):
        run_dir = tmp_path / task
        flags = ("--model", str(beginner), "--random_init", "false", "--seed", "1")
        train("rlhf", run_dir, "--config", f"examples/sums_{task}.yaml", *flags, timeout_s=LIMIT_S)
        rewards = curve(run_dir, "eval_reward")
        found[task] = rewards[max(rewards)]
    explained = list(curve(tmp_path / "ppo", "critic/vf_explained_var").values())[-LAST:]
    print(f"\nright: {found}, explained variance {sum(explained) / LAST:.2f}")  # noqa: T201
    assert found["ppo"] >= found["grpo"] - WITHIN
    assert sum(explained) / LAST > EXPLAINED
