"""GRPO through a killed driver, a killed engine and a killed train worker: the training does not change.

Two minutes, by hand: pytest tests/bars/test_online_kills.py. With tools and environments: tests/ray/test_episodes.py
"""

from pathlib import Path

from rayswift.run import events
from rayswift.run.accounting import read_accounting
from tests.ray.conftest import assert_same_curve, train, train_through_kills
from tests.ray.test_online import STEPS, assert_every_completion_is_kept, grpo_flags


def test_three_kills_change_nothing(run_dir: Path, tmp_path: Path) -> None:
    """Other batches round otherwise in the engines: that moves the last digits of log-probabilities, not a token."""
    flags = grpo_flags(tmp_path)
    train("rlhf", tmp_path / "undisturbed", *flags)
    out = train_through_kills(run_dir, *flags, last="ray::RayTrainWorker")
    assert "continuing" in out
    assert [event.kind for event in events.read(run_dir)].count("start") == 3, "the worker was not killed"
    keys = ("loss", "grad_norm", "reward", "completions/mean_length")
    assert_same_curve(run_dir, tmp_path / "undisturbed", 1e-3, keys=keys)
    assert read_accounting(run_dir) == {"trained": 8 * STEPS}
    assert_every_completion_is_kept(run_dir)
