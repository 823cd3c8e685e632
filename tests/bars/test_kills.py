"""A run whose engines and environments are SIGKILLed every 30 s, its train worker once, and whose reward function or
environment raises, hangs or returns garbage now and then: it finishes, and every prompt is accounted for.

Four to nine minutes a case, by hand: pytest -s tests/bars/test_kills.py
"""

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rayswift.run import events
from rayswift.run.accounting import read_accounting
from rayswift.run.folder import COMPLETIONS
from tests.ray.conftest import Run, curve, make_model, start

STEPS, PROMPTS, GENERATIONS = 60, 16, 8
EVERY_S, WORKER_AFTER_S, LIMIT_S = 30, 50, 900
REWARDS = """
import random, time

def digits(completions):
    values = []
    for each in completions:
        fate = random.random()
        if fate < 0.002:
            time.sleep(3600)
        if fate < 0.02:
            raise RuntimeError("out of luck")
        values.append("much" if fate < 0.05 else sum(letter.isdigit() for letter in each[0]["content"]) / 10)
    return values
"""
GAME = """
import random, time

from swift.rollout.gym_env import Env, envs


class Echo(Env):
    async def reset(self, config):
        self.left = 2
        return "start " + config.data_dict["answer"], {}, "be brief"

    async def step(self, messages):
        fate = random.random()
        if fate < 0.001:
            time.sleep(3600)
        if fate < 0.01:
            raise RuntimeError("out of luck")
        self.left -= 1
        said = messages[-1]["content"]
        reward = "much" if fate < 0.02 else sum(map(str.isdigit, said)) / 10
        return f"{self.left} more", reward, self.left <= 0, {}

    async def close(self):
        pass


envs["echo"] = Echo
"""
REWARDED = ("--num_generations", str(GENERATIONS))
PER_ROUND = ("--completion_length_limit_scope", "per_round", "--max_completion_length", "48", "--max_length", "256")
WAYS = {
    "grpo": ("--rlhf_type", "grpo", *REWARDED),
    "ppo": ("--rlhf_type", "ppo", *REWARDED, "--num_ppo_epochs", "1"),
    "gkd": ("--rlhf_type", "gkd", "--lmbda", "1", "--logits_topk", "16", "--teacher_engines", "1"),
    "episodes": ("--rlhf_type", "grpo", *REWARDED, "--gym_env", "echo", "--tool_timeout_s", "5", *PER_ROUND),
}
CASES = [
    *(("grpo", each) for each in (0, 1, 4)),
    *(("ppo", each) for each in (0, 1)),
    *(("episodes", each) for each in (0, 1)),
    ("gkd", 0),
]


def kill(run: Run, name: str) -> bool:
    """SIGKILL any one of the run's processes of a name, if there is one."""
    found = run.processes(name)
    if found:
        random.choice(found).send_signal(signal.SIGKILL)
    return bool(found)


def own_flags(way: str, folder: Path) -> tuple[str, ...]:
    """Of a way: the answers of gkd's teacher are compared, the other ways have rewards or an environment."""
    rewards, game, teacher = folder / "rewards.py", folder / "game.py", folder / "teacher"
    rewards.write_text(REWARDS)
    game.write_text(GAME)
    more = {
        "gkd": ("--model.teacher", str(teacher)),
        "episodes": ("--external_plugins", str(game)),
    }.get(way, ("--reward_funcs", f"{rewards}:digits", "--reward_timeout_s", "5"))
    if way == "gkd":
        make_model(teacher, 64)
    return *WAYS[way], *more


@pytest.mark.parametrize(("way", "max_staleness"), CASES)
def test_nothing_is_lost_whatever_dies(way: str, max_staleness: int, run_dir: Path, tmp_path: Path) -> None:
    run = start(
        "rlhf", run_dir,
        "--model", "examples/tiny", "--random_init", "--data.dataset", "examples/sums/train.jsonl",
        "--max_prompt_length", "32", "--max_completion_length", "96", *own_flags(way, tmp_path),
        "--global_batch_size", str(PROMPTS * GENERATIONS),
        "--max_steps", str(STEPS), "--save_steps", "5", "--max_staleness", str(max_staleness), "--num_engines", "2",
        "--logging_steps", "1", "--gradient_checkpointing", "false", "--report_to", "none", "--learning_rate", "1e-4",
        "--timeout_s", "200", "--threads_per_worker", "1", "--canary_steps", "5", "--num_workers", "1",
        "--engine_kwargs", '{"enforce_eager": true, "kv_cache_memory_bytes": 67108864}',
    )  # fmt: skip
    run.wait_for(lambda: (run_dir / "metrics.jsonl").exists() and bool(curve(run_dir)), "a step", 200)
    began, killed = time.monotonic(), Counter[str]()
    while run.process.poll() is None and (elapsed := time.monotonic() - began) < LIMIT_S:
        if elapsed > WORKER_AFTER_S and not killed["worker"]:
            killed["worker"] += kill(run, "ray::RayTrainWorker")
        if elapsed > EVERY_S * (killed["engine"] + 1):
            killed["engine"] += kill(run, "ray::VllmEngine")
            killed["environment"] += way == "episodes" and kill(run, "ray::EnvironmentProcess")
        time.sleep(0.2)
    code, out = run.wait(10)
    assert code == 0, out
    assert set(curve(run_dir)) == set(range(1, STEPS + 1))
    assert killed["engine"] >= 2 and killed["worker"] == 1, killed
    assert way != "episodes" or killed["environment"], killed
    counts, prompts = read_accounting(run_dir), PROMPTS * (GENERATIONS if way == "gkd" else 1)
    found = {name: curve(run_dir, name) for name in ("engines_lost", "tokens_salvaged", "tokens_regenerated", "failed")}
    print(f"\n{way}, staleness {max_staleness}: killed {dict(killed)}, rows {counts}")  # noqa: T201
    print({name: (max(values.values()), sum(values.values())) for name, values in found.items()})  # noqa: T201
    assert [event.kind for event in events.read(run_dir)].count("start") == 2, "the worker was not killed"
    failed = sum(count for outcome, count in counts.items() if outcome.startswith("failed"))
    assert counts["trained"] <= STEPS * prompts <= counts["trained"] + failed
    parts = sorted((run_dir / COMPLETIONS).glob("*.parquet"))
    rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
    rounds_of: dict[int, set[int]] = {}
    for row in rows:
        assert row["round"] - max_staleness <= row["oldest_version"] <= row["newest_version"] <= row["round"]
        if not row["outcome"].startswith("failed"):
            rounds_of.setdefault(row["ordinal"], set()).add(row["round"])
    assert len(rounds_of) == counts["trained"]
    assert all(len(rounds) == 1 for rounds in rounds_of.values()), "a prompt was trained twice"
    if not max_staleness:  # failed prompts are replaced by the next ones, none is left out
        assert counts["trained"] + failed == max(row["ordinal"] for row in rows) + 1
