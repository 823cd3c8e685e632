"""Each process of a run that samples is frozen (SIGSTOP): the run recovers, or ends with an error that names it.

About two minutes a case, by hand: pytest tests/bars/test_frozen_actors.py
"""

import signal
import time
from pathlib import Path

import pytest

from tests.ray.conftest import curve, start

STEPS, TIMEOUT_S = 12, 100
REWARDS = """
def digits(completions):
    return [sum(letter.isdigit() for letter in each[0]["content"]) / 10 for each in completions]
"""
# What is frozen, the exit code, and what the last lines say.
CASES = {
    "engine": ("ray::VllmEngine", 0, "done in"),
    "reward function": ("ray::FunctionProcess", 0, "done in"),
    "weight store": ("ray::WeightStore", 0, "done in"),
    "coordinator": ("ray::CoordinatorActor", 1, "the rollout coordinator did not"),
    "engine of ppo": ("ray::VllmEngine", 0, "done in"),
    "train worker": ("ray::RayTrainWorker", 1, "worker 0: A worker health check has been hanging"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_frozen_process_is_survived_or_named(
    case: str, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray Train's own check; ten minutes otherwise.
    monkeypatch.setenv("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "30")
    rewards = tmp_path / "rewards.py"
    rewards.write_text(REWARDS)
    task = ("--rlhf_type", "ppo", "--num_ppo_epochs", "1") if case.endswith("ppo") else ("--rlhf_type", "grpo")
    run = start(
        "rlhf", run_dir,
        *task, "--model", "examples/tiny", "--random_init",
        "--data.dataset", "examples/sums/train.jsonl", "--reward_funcs", f"{rewards}:digits",
        "--reward_timeout_s", "10", "--max_prompt_length", "32", "--max_completion_length", "12",
        "--num_generations", "4", "--global_batch_size", "32", "--max_steps", str(STEPS), "--save_strategy", "no",
        "--logging_steps", "1", "--gradient_checkpointing", "false", "--report_to", "none",
        "--timeout_s", str(TIMEOUT_S), "--threads_per_worker", "1", "--canary_steps", "2", "--num_workers", "1",
        "--max_failures", "0",
        "--engine_kwargs", '{"enforce_eager": true, "kv_cache_memory_bytes": 67108864}',
    )  # fmt: skip
    name, expected_code, message = CASES[case]
    run.wait_for(lambda: (run_dir / "metrics.jsonl").exists() and bool(curve(run_dir)), "a step", 200)
    run.send(name, signal.SIGSTOP)
    began = time.monotonic()
    code, out = run.wait(TIMEOUT_S + 240)
    print(f"{case}: exit {code} after {time.monotonic() - began:.0f} s\n{out[-1500:]}")  # noqa: T201
    assert code == expected_code, out
    assert message in out
    if code == 0:
        assert set(curve(run_dir, "reward")) == set(range(1, STEPS + 1))
