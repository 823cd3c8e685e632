"""A run whose engines are SIGKILLed every 30 s, its train worker once, and whose reward function raises, hangs or
returns garbage for one completion in twenty: it finishes, and every prompt is accounted for.

Four to seven minutes a case, by hand: pytest -s tests/bars/test_kills.py
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
from tests.ray.conftest import Run, curve, start

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


def kill(run: Run, name: str) -> bool:
    """SIGKILL any one of the run's processes of a name, if there is one."""
    found = run.processes(name)
    if found:
        random.choice(found).send_signal(signal.SIGKILL)
    return bool(found)


@pytest.mark.parametrize(("task", "max_staleness"), [("grpo", 0), ("grpo", 1), ("grpo", 4), ("ppo", 0), ("ppo", 1)])
def test_nothing_is_lost_whatever_dies(task: str, max_staleness: int, run_dir: Path, tmp_path: Path) -> None:
    rewards = tmp_path / "rewards.py"
    rewards.write_text(REWARDS)
    own = ("--num_ppo_epochs", "1") if task == "ppo" else ()
    run = start(
        "rlhf", run_dir,
        "--rlhf_type", task, *own, "--model", "examples/tiny", "--random_init",
        "--data.dataset", "examples/sums/train.jsonl", "--reward_funcs", f"{rewards}:digits",
        "--reward_timeout_s", "5", "--max_prompt_length", "32", "--max_completion_length", "96",
        "--num_generations", str(GENERATIONS), "--global_batch_size", str(PROMPTS * GENERATIONS),
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
        time.sleep(0.2)
    code, out = run.wait(10)
    assert code == 0, out
    assert set(curve(run_dir, "reward")) == set(range(1, STEPS + 1))
    assert killed["engine"] >= 2 and killed["worker"] == 1, killed
    counts = read_accounting(run_dir)
    found = {name: curve(run_dir, name) for name in ("engines_lost", "tokens_salvaged", "tokens_regenerated", "failed")}
    print(f"\n{task}, staleness {max_staleness}: killed {dict(killed)}, rows {counts}")  # noqa: T201
    print({name: (max(values.values()), sum(values.values())) for name, values in found.items()})  # noqa: T201
    assert [event.kind for event in events.read(run_dir)].count("start") == 2, "the worker was not killed"
    assert counts["trained"] + sum(v for k, v in counts.items() if k.startswith("failed")) == STEPS * PROMPTS
    rows = [
        row for part in sorted((run_dir / COMPLETIONS).glob("*.parquet")) for row in pq.read_table(part).to_pylist()
    ]
    rounds_of: dict[int, set[int]] = {}
    for row in rows:
        rounds_of.setdefault(row["ordinal"], set()).add(row["round"])
        assert row["round"] - max_staleness <= row["oldest_version"] <= row["newest_version"] <= row["round"]
    assert len(rounds_of) == counts["trained"]
    assert all(len(rounds) == 1 for rounds in rounds_of.values()), "a prompt was trained twice"
