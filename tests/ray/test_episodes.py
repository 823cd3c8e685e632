"""Tools and environments on the real stack: they answer, and kills do not change the training."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rayswift.run import events
from rayswift.run.accounting import read_accounting
from rayswift.run.folder import COMPLETIONS
from tests.ray.conftest import IN_PROCESS, assert_same_curve, curve, reference, train, train_through_kills

STEPS, SAVED_AT = 8, 2
PROMPTS, GENERATIONS = 4, 4
GAME = """
from swift.rollout.gym_env import Env, envs


class Echo(Env):
    async def reset(self, config):
        self.left = len(config.data_dict["answer"]) + 1
        return "start " + config.data_dict["answer"], {}, "be brief"

    async def step(self, messages):
        self.left -= 1
        said = messages[-1]["content"]
        return f"{self.left} more, not {len(said)}", sum(map(str.isdigit, said)) / 10, self.left <= 0, {}

    async def close(self):
        pass


envs["echo"] = Echo
"""


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A few rounds, over four windows of prompts, with an environment written for ms-swift."""
    plugin = tmp_path_factory.mktemp("plugin") / "game.py"
    plugin.write_text(GAME)
    return (
        "--rlhf_type", "grpo", "--model", "examples/tiny", "--random_init",
        "--data.dataset", "examples/sums/train.jsonl#500", "--window_rows", "8", "--temperature", "0.8",
        "--top_p", "0.9", "--top_k", "50", "--external_plugins", str(plugin), "--gym_env", "echo",
        "--completion_length_limit_scope", "per_round", "--max_length", "256", "--max_turns", "3",
        "--max_prompt_length", "64", "--max_completion_length", "24", "--num_generations", str(GENERATIONS),
        "--global_batch_size", str(PROMPTS * GENERATIONS), "--max_steps", str(STEPS), "--save_steps", str(SAVED_AT),
        "--stop", "e",
        "--learning_rate", "1e-3", "--logging_steps", "1", "--gradient_checkpointing", "false", "--report_to", "none",
        "--timeout_s", "120", "--threads_per_worker", "1", "--canary_steps", "2", "--num_workers", "1",
        "--engine_kwargs", '{"enforce_eager": true, "kv_cache_memory_bytes": 67108864}',
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole run, without kills, and without a worker that could be killed."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    train("rlhf", run_dir, *flags, *IN_PROCESS)
    return run_dir


def completions(run_dir: Path) -> list[tuple[int, str]]:
    parts = sorted((run_dir / COMPLETIONS).glob("part-*.parquet"))
    rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
    return sorted((row["ordinal"], row["completion"]) for row in rows)


def assert_same_run(run_dir: Path, undisturbed: Path) -> None:
    assert_same_curve(run_dir, undisturbed, 1e-3, keys=("loss", "grad_norm", "reward", "num_turns"))
    assert read_accounting(run_dir) == {"trained": PROMPTS * STEPS}
    assert completions(run_dir) == completions(undisturbed)


def test_episodes_are_trained_as_they_were_sampled(undisturbed: Path) -> None:
    assert max(curve(undisturbed, "num_turns").values()) > 1.5
    assert max(curve(undisturbed, "sampling_logp_difference").values()) < 1e-4
    assert read_accounting(undisturbed) == {"trained": PROMPTS * STEPS}
    assert any("[user] " in text for _, text in completions(undisturbed))


def test_killed_environments_a_killed_driver_a_killed_engine_and_a_killed_worker_change_nothing(
    flags: tuple[str, ...], run_dir: Path, undisturbed: Path
) -> None:
    """Completions that are not episodes: tests/bars/test_online_kills.py."""
    killed = {"first": "ray::EnvironmentProcess", "last": "ray::RayTrainWorker"}
    printed = train_through_kills(run_dir, *flags, **killed)
    assert "another one takes its place" in printed
    assert "continuing" in printed
    assert [event.kind for event in events.read(run_dir)].count("start") == 3, "the worker was not killed"
    assert_same_run(run_dir, undisturbed)


def test_whatever_tools_and_environments_do_is_an_answer_or_a_reason(tmp_path: Path) -> None:
    """In processes of a separate Ray, without a model."""
    folder = reference("tests.ray.tool_processes", tmp_path / "results", tmp_path / "results")
    results = json.loads((folder / "results.json").read_text())
    assert results["tools"][:2] == ["12", "{'error': 'not this one'}"]
    assert results["tools"][2].startswith("999") and "characters left out" in results["tools"][2]
    assert results["tools"][3] == "{'error': 'no answer within 2 s (rollout.tool_timeout_s)'}"
    assert results["tools"][4:] == ["{'error': 'its process ended'}", "13"]
    # What was killed and what was frozen beside them plays on elsewhere.
    assert results["games"] == [["higher", "higher", 0.0], ["higher", "right", 1.0], ["higher", "right", 1.0]]
    assert results["hangs"].startswith("wait: no answer within 2 s")
    assert results["raises"].startswith("reset raised KeyError: 'number'")
