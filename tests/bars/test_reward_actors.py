"""Reward functions that raise, hang, die and return garbage, and a reward model, in real workers.

By hand: pytest tests/bars/test_reward_actors.py
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ray.conftest import ROOT, TIMEOUT_S


def test_exactly_the_guilty_completions_fail_and_the_others_are_scored(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bars.reward_actors", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    (first, second), (four, long, five) = json.loads(done.stdout.splitlines()[-1])
    assert first[0] == pytest.approx([1, None, four, 1 + 0.5 * four], abs=1e-5)
    assert first[1] == pytest.approx([0, None, five, 0.5 * five], abs=1e-5)
    assert first[2:4] == [
        "reward judge gave no answer: not within rollout.reward_timeout_s = 10",
        "reward judge ended its process",
    ]
    assert first[4].startswith("reward judge raised RuntimeError: no verdict (mine.py:")
    assert first[5] == "reward judge returned garbage: 'much' for a number"
    assert second[0] == first[0]
    assert second[2] == first[1]
    judge, length, model, total = second[1]
    assert (judge, model) == (0, pytest.approx(long, abs=1e-5)) and length > 0.2
    assert total == pytest.approx(2 * length + 0.5 * model)
    failed = (tmp_path / "run" / "completions" / "failed.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["completion"] for line in failed] == ["hang", "exit", "raise", "junk"]
