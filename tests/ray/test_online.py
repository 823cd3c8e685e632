"""GRPO on the real stack. With kills: test_episodes.py, and tests/bars/test_online_kills.py."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rayswift.rollout.completions import newest
from rayswift.run.accounting import read_accounting
from rayswift.run.folder import COMPLETIONS
from tests.ray.conftest import IN_PROCESS, curve, train

STEPS, SAVED_AT = 8, 2
WINDOWS, ONE_WINDOW = ("--window_rows", "16"), ("--window_rows", "500")
REWARDS = """
def digits(completions):
    return [sum(letter.isdigit() for letter in each[0]["content"]) / 10 for each in completions]
"""


def grpo_flags(folder: Path) -> tuple[str, ...]:
    """A few rounds of a tiny model that is rewarded for digits; on-policy, over four windows of prompts."""
    rewards = folder / "rewards.py"
    rewards.write_text(REWARDS)
    return (
        "--rlhf_type", "grpo", "--model", "examples/tiny", "--random_init",
        "--data.dataset", "examples/sums/train.jsonl#500", *WINDOWS, "--reward_funcs", f"{rewards}:digits",
        "--max_prompt_length", "32", "--max_completion_length", "12", "--num_generations", "4",
        "--temperature", "0.8", "--top_p", "0.9", "--top_k", "50",
        "--global_batch_size", "32", "--max_steps", str(STEPS), "--save_steps", str(SAVED_AT),
        "--learning_rate", "1e-3", "--logging_steps", "1", "--gradient_checkpointing", "false", "--report_to", "none",
        "--timeout_s", "120", "--threads_per_worker", "1", "--canary_steps", "2", "--num_workers", "1",
        "--engine_kwargs", '{"enforce_eager": true, "kv_cache_memory_bytes": 67108864}',
    )  # fmt: skip


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return grpo_flags(tmp_path_factory.mktemp("rewards"))


@pytest.fixture(scope="module")
def undisturbed(flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole run, without kills, and without a worker that could be killed."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    train("rlhf", run_dir, *flags, *IN_PROCESS)
    return run_dir


def assert_every_completion_is_kept(run_dir: Path) -> None:
    """Those of each round once, whenever the driver was killed."""
    parts = sorted((run_dir / COMPLETIONS).glob("part-*.parquet"))
    rows = [row for part in parts for row in pq.read_table(part, columns=["round", "ordinal"]).to_pylist()]
    assert Counter(row["round"] for row in rows) == dict.fromkeys(range(STEPS), 32)
    assert Counter(row["ordinal"] for row in rows) == dict.fromkeys(range(8 * STEPS), 4)


def test_every_prompt_is_trained_and_kept(undisturbed: Path) -> None:
    assert set(curve(undisturbed, "reward")) == set(range(1, STEPS + 1))
    assert max(curve(undisturbed, "sampling_logp_difference").values()) < 1e-4
    # Whatever top_p and top_k leave out, engine and trainer tell of one distribution: no token loses weight.
    weights = curve(undisturbed, "importance_sampling_ratio").values()
    assert 1 - 1e-4 < min(weights) <= max(weights) < 1 + 1e-4
    assert read_accounting(undisturbed) == {"trained": 8 * STEPS}
    assert len(newest(undisturbed, 5)) == 5
    assert_every_completion_is_kept(undisturbed)


def earlier_adapter(base: Path, folder: Path) -> Path:
    """A LoRA of another rank than `model.lora_rank`, which moves the model's weights by some 15 %."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=12, lora_alpha=24, target_modules="all-linear")
    tuned: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in tuned.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.01)
    tuned.save_pretrained(folder)
    return folder


def test_engines_serve_the_adapter_that_is_trained_further_also_for_evaluations_by_name(
    flags: tuple[str, ...], run_dir: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """The canary holds engines and trainer against each other at every other version, the first one too, with a bound
    of float32's rounding. The reference is the model with the adapter as it was, so the first step has no KL. Greedy
    completions of a prompt are one; sampled ones are not; training samples as before.
    """
    begin = flags.index("--model")
    model, others = ("--model", str(tiny_model_dir)), (*flags[:begin], *flags[begin + 3 :])
    adapter = ("--tuner", "lora", "--adapters", str(earlier_adapter(tiny_model_dir, tmp_path / "earlier")))
    adapter += ("--lora_sync", "adapter", "--max_logprob_drift", "2e-6", "--train.beta", "0.01")
    sets = '{"greedy": {"temperature": 0, "num_generations": 2}, "hot": {"temperature": 1.2, "num_generations": 4}}'
    evaluation = ("--data.eval", "examples/sums/test.jsonl#8", "--eval_steps", str(STEPS), "--rollout.eval", sets)
    sampling = ("--dynamic_sampling", "true", "--oversampling", "0.5")
    train("rlhf", run_dir, *model, *others, *adapter, *ONE_WINDOW, *evaluation, *sampling, *IN_PROCESS)
    assert set(curve(run_dir)) == set(range(1, STEPS + 1))
    weights = curve(run_dir, "importance_sampling_ratio").values()
    assert 1 - 1e-4 < min(weights) <= max(weights) < 1 + 1e-4
    kl = curve(run_dir, "kl")
    assert abs(kl[1]) < 1e-6 < kl[STEPS]  # exp(x) - x - 1 of float32 is rounded to 1e-7
    saved = run_dir / f"checkpoint-{STEPS}"
    assert json.loads((saved / "adapter_config.json").read_text())["r"] == 12
    assert not (saved / "ref").exists()
    rows = pq.read_table(run_dir / COMPLETIONS / f"eval/round-{STEPS:08d}.parquet").to_pylist()
    said: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        said.setdefault((row["outcome"], row["ordinal"]), []).append(row["completion"])
    assert {(name, len(texts)) for (name, _), texts in said.items()} == {("greedy", 2), ("hot", 4)}
    assert len(said) == 16
    assert all(len(set(texts)) == 1 for (name, _), texts in said.items() if name == "greedy")
    assert all(len(set(texts)) > 1 for (name, _), texts in said.items() if name == "hot")
    rewards = [row["reward"] for row in rows if row["outcome"] == "greedy"]
    assert curve(run_dir, "eval_greedy_avg@2")[STEPS] == pytest.approx(sum(rewards) / len(rewards))
    assert curve(run_dir, "eval_reward") == curve(run_dir, "eval_greedy_reward")
    assert set(curve(run_dir, "eval_hot_pass@4")) == {STEPS}
    assert "Evaluated completions" in (run_dir / "report.html").read_text(encoding="utf-8")
