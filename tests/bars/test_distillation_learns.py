"""A student of half the width closes at least half of its gap to its teacher, by GKD and by on-policy distillation.

Twenty minutes on two cores, so not part of the suite: pytest tests/bars/test_distillation_learns.py
"""

import subprocess
import sys
from pathlib import Path

import pytest

from examples.demo import TEST_SUMS, checkpoints, choose_start, load_sums, sampled_accuracy
from tests.ray.conftest import ROOT, train

LIMIT_S = 1200
# When a model begins to add differs from CPU to CPU: the checkpoint is looked for by its share of right answers.
START_BAND = (0.2, 0.4)
SFT = ("--config", "examples/sums_sft.yaml", "--report_to", "none", "--eval_strategy", "no")
BARE = ("--rollout.reward_funcs", "[]", "--data.eval", "[]", "--eval_strategy", "no", "--eval_on_start", "false")
WAYS = {"gkd": "examples/sums_gkd.yaml", "on-policy distillation": "examples/sums_distillation.yaml"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A teacher, and a student of half its width that adds unreliably."""
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, "examples/tiny/make.py", str(folder / "wide"), "256"], cwd=ROOT, check=True)
    train("sft", folder / "teacher", *SFT, "--model", str(folder / "wide"), timeout_s=LIMIT_S)
    often = ("--save_steps", "40", "--save_total_limit", "1000", "--max_steps", "1600")
    train("sft", folder / "student", *SFT, *often, timeout_s=LIMIT_S)
    student, _ = choose_start([folder / "student"], load_sums(TEST_SUMS), START_BAND)
    return checkpoints(folder / "teacher")[-1], student


@pytest.mark.parametrize("way", WAYS)
def test_half_of_the_gap_is_closed(way: str, models: tuple[Path, Path], run_dir: Path) -> None:
    """Of the share of right answers, sampled at temperature 1, to sums that nobody was trained on."""
    teacher, student = models
    flags = ("--model", str(student), "--random_init", "false", "--model.teacher", str(teacher))
    train("rlhf", run_dir, "--config", WAYS[way], "--report_to", "none", *BARE, *flags, timeout_s=LIMIT_S)
    sums = load_sums(TEST_SUMS)
    before, after, best = (sampled_accuracy(each, sums) for each in (student, checkpoints(run_dir)[-1], teacher))
    print(f"\n{way}: {before:.1%} -> {after:.1%}, teacher {best:.1%}")  # noqa: T201
    assert after - before >= (best - before) / 2, (before, after, best)
