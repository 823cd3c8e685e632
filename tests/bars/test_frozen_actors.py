"""Each process of a run that samples is frozen (SIGSTOP): the run recovers, or ends with an error that names it.

One to six minutes a case, by hand: pytest tests/bars/test_frozen_actors.py
"""

import signal
import time
from pathlib import Path

import pytest

from tests.ray.conftest import curve, make_model, start
from tests.ray.test_episodes import GAME

STEPS, TIMEOUT_S = 12, 100
REWARDS = """
def digits(completions):
    return [sum(letter.isdigit() for letter in each[0]["content"]) / 10 for each in completions]
"""
# What is frozen (all processes of that name), the exit code, and what the last lines say.
CASES = {
    "engine": ("ray::VllmEngine", 0, "done in"),
    "reward function": ("ray::FunctionProcess", 0, "done in"),
    "weight store": ("ray::WeightStore", 0, "done in"),
    "coordinator": ("ray::CoordinatorActor", 1, "the rollout coordinator did not"),
    "engine of ppo": ("ray::VllmEngine", 0, "done in"),
    "engines of gkd, the teacher's too": ("ray::VllmEngine", 0, "done in"),
    "environments of episodes": ("ray::EnvironmentProcess", 0, "done in"),
    "train worker": ("ray::RayTrainWorker", 1, "worker 0: A worker health check has been hanging"),
}


def own_flags(case: str, folder: Path) -> tuple[str, ...]:
    """Task, rewards, teacher or environment of a case."""
    rewards, game, teacher = folder / "rewards.py", folder / "game.py", folder / "teacher"
    rewards.write_text(REWARDS)
    game.write_text(GAME)
    rewarded = ("--num_generations", "4", "--reward_funcs", f"{rewards}:digits", "--reward_timeout_s", "10")
    if "gkd" in case:
        make_model(teacher, 64)
        return "--rlhf_type", "gkd", "--model.teacher", str(teacher), "--teacher_engines", "1", "--logits_topk", "16"
    if "episodes" in case:
        played = ("--external_plugins", str(game), "--gym_env", "echo", "--tool_timeout_s", "10")
        limits = ("--completion_length_limit_scope", "per_round", "--max_length", "128")
        return "--rlhf_type", "grpo", "--num_generations", "4", *played, *limits
    if "ppo" in case:
        return "--rlhf_type", "ppo", "--num_ppo_epochs", "1", *rewarded
    return "--rlhf_type", "grpo", *rewarded


@pytest.mark.parametrize("case", CASES)
def test_a_frozen_process_is_survived_or_named(
    case: str, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray Train's own check; ten minutes otherwise.
    monkeypatch.setenv("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "30")
    run = start(
        "rlhf", run_dir,
        *own_flags(case, tmp_path), "--model", "examples/tiny", "--random_init",
        "--data.dataset", "examples/sums/train.jsonl", "--max_prompt_length", "32", "--max_completion_length", "12",
        "--global_batch_size", "32", "--max_steps", str(STEPS), "--save_strategy", "no",
        "--logging_steps", "1", "--gradient_checkpointing", "false", "--report_to", "none",
        "--timeout_s", str(TIMEOUT_S), "--threads_per_worker", "1", "--canary_steps", "2", "--num_workers", "1",
        "--max_failures", "0",
        "--engine_kwargs", '{"enforce_eager": true, "kv_cache_memory_bytes": 67108864}',
    )  # fmt: skip
    name, expected_code, message = CASES[case]
    run.wait_for(lambda: (run_dir / "metrics.jsonl").exists() and bool(curve(run_dir)), "a step", 200)
    found = run.processes(name)
    assert len(found) >= (2 if "gkd" in case else 1), f"processes {name}: {found}"
    for process in found:
        process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    code, out = run.wait(TIMEOUT_S + 240)
    print(f"{case}: exit {code} after {time.monotonic() - began:.0f} s\n{out[-1500:]}")  # noqa: T201
    assert code == expected_code, out
    assert message in out
    if code == 0:
        assert set(curve(run_dir)) == set(range(1, STEPS + 1))
