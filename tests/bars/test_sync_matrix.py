"""Trainer and engine agree after every sync: embeddings tied or not, full or LoRA, workers, ZeRO stages.

The run's own canary compares them, at every version of the weights, with a bound of float32's rounding: a run that
ends well is the proof. Half a minute per run, so not part of the suite: pytest tests/bars/test_sync_matrix.py
"""

import json
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.ray.conftest import train

ROUNDS = 4
# Mean difference in nats per token; a stale weight gives some 0.1.
DRIFT = "2e-6"
TUNERS = {
    "full": (),
    "merged": ("--tuner", "lora", "--lora_sync", "merged"),
    "adapter": ("--tuner", "lora", "--lora_sync", "adapter"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder with tied embeddings, and one without."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    found = {}
    for name in ("tied", "untied"):
        folder = found[name] = tmp_path_factory.mktemp(name)
        config = AutoConfig.from_pretrained(TINY)
        config.tie_word_embeddings = name == "tied"
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return found


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts of additions."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"{n}+{n + 1}="}], "solution": str(2 * n + 1)} for n in range(64)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reward that differs between completions, so that every step moves the weights."""
    path = tmp_path_factory.mktemp("reward") / "lengths.py"
    path.write_text("def length(completions, **columns):\n    return [float(len(str(c))) for c in completions]\n")
    return f"{path}:length"


@pytest.mark.parametrize(("workers", "stage"), [(0, 0), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3)])
@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("embeddings", ["tied", "untied"])
def test_engines_hold_the_trainers_weights_after_every_sync(
    embeddings: str,
    tuner: str,
    workers: int,
    stage: int,
    models: dict[str, Path],
    prompts: Path,
    reward: str,
    run_dir: Path,
) -> None:
    train(
        "rlhf", run_dir, "--rlhf_type", "grpo", "--model", str(models[embeddings]), "--data.dataset", str(prompts),
        "--reward_funcs", reward, "--max_completion_length", "16", "--num_generations", "4", "--global_batch_size", "8",
        "--max_steps", str(ROUNDS), "--learning_rate", "1e-2", "--num_workers", str(workers),
        "--zero_stage", str(stage), "--canary_steps", "1", "--max_logprob_drift", DRIFT, "--logging_steps", "1",
        "--save_strategy", "no", "--report_to", "none", "--data.max_bad_fraction", "1", "--threads_per_worker", "1",
        *TUNERS[tuner],
    )  # fmt: skip
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert sum("loss" in line for line in lines) == ROUNDS
    assert all(line["grad_norm"] > 0 for line in lines if "loss" in line)
