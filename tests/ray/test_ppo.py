"""PPO on the real stack, with either critic: it runs, continues exactly from a checkpoint, and is saved."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from tests import policy_curve
from tests.conftest import TINY
from tests.policy_runs import tiny_critic
from tests.ray.conftest import IN_PROCESS, assert_same_end, curve, train
from tests.support.model_folders import with_tokenizer

STEPS, SAVED_AT = 8, 4
REWARDS = """
def digits(completions):
    return [sum(letter.isdigit() for letter in each[0]["content"]) / 10 for each in completions]
"""
KEYS = (
    "loss", "grad_norm", "critic/grad_norm", "critic/vf_explained_var", "loss/value_avg", "objective/kl",
    "objective/kl_coef", "objective/scores", "reward",
)  # fmt: skip


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> tuple[str, ...]:
    """Four rounds of one completion a prompt, in two passes each."""
    rewards = tmp_path_factory.mktemp("rewards") / "rewards.py"
    rewards.write_text(REWARDS)
    return (
        "--rlhf_type", "ppo", "--model", str(tiny_model_dir), "--data.dataset", "examples/sums/train.jsonl#500",
        "--reward_funcs", f"{rewards}:digits", "--max_prompt_length", "32", "--max_completion_length", "12",
        "--num_generations", "1", "--num_ppo_epochs", "2", "--missing_eos_penalty", "0.2",
        "--global_batch_size", "32", "--max_steps", str(STEPS), "--save_steps", str(SAVED_AT),
        "--learning_rate", "1e-3", "--logging_steps", "1", "--gradient_checkpointing", "false", "--report_to", "none",
        "--timeout_s", "120", "--threads_per_worker", "1", "--canary_steps", "2", "--num_workers", "1",
        "--engine_kwargs", '{"enforce_eager": true, "kv_cache_memory_bytes": 67108864}',
    )  # fmt: skip


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As task rm leaves it."""
    folder = tmp_path_factory.mktemp("reward-model")
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(TINY, num_labels=1, pad_token_id=0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return with_tokenizer(folder)


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_a_run_goes_on_exactly(
    kind: str, flags: tuple[str, ...], run_dir: Path, tmp_path: Path, reward_model: Path
) -> None:
    """Both kinds of reward, in this process and in a worker; the critic's weights, its optimizer and the weight of the
    KL come back.
    """
    own: tuple[str, ...] = ("--kl_control", "adaptive", "--kl_target", "0.1", "--kl_horizon", "100", *IN_PROCESS)
    if kind == "separate":
        own = ("--train.critic", "separate", "--reward_models", str(reward_model), "--zero_stage", "2")
    train("rlhf", run_dir, *flags, *own)
    assert set(curve(run_dir)) == set(range(1, STEPS + 1))
    assert set(curve(run_dir, "critic/vf_explained_var")) == set(range(1, STEPS + 1, 2))
    again = tmp_path / "again"
    train("rlhf", again, *flags, *own, "--resume", str(run_dir / f"checkpoint-{SAVED_AT}"))
    assert_same_end(again, run_dir, SAVED_AT, 1e-3, keys=KEYS)
    folder = again / f"checkpoint-{STEPS}"
    saved = [(AutoModelForCausalLM, folder)]
    if kind == "separate":
        saved.append((AutoModelForSequenceClassification, folder / "critic"))
    for model, where in saved:
        _, found = model.from_pretrained(where, output_loading_info=True)
        assert not any(found.values())
    assert (folder / "critic" / "value_head.safetensors").exists() == (kind == "shared")


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_two_ranks_of_zero_3_train_as_one_process_does(kind: str, tmp_path: Path) -> None:
    """All of it: tests/bars/test_policy_matrix.py. Clipping changes every step."""
    flags: tuple[str, ...] = ("ppo", "--train.critic", kind, "--num_mini_batches", "2", "--max_grad_norm", "0.05")
    if kind == "separate":
        flags += ("--model.critic_path", str(tiny_critic(tmp_path / "critic")))
    one = policy_curve.curve(tmp_path / "one", 1, *flags)
    two = policy_curve.curve(tmp_path / "two", 2, *flags, "--zero_stage", "3")
    assert len(one) == 12
    for step, (ours, theirs) in enumerate(zip(two, one, strict=True)):
        assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-5), step  # as the bar of all layouts has it
