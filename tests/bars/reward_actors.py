"""Groups of completions through real reward workers, in a process with its own Ray; prints one JSON line of results.

python -m tests.bars.reward_actors FOLDER
"""

import asyncio
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from rayswift.config.schema import RlhfConfig
from rayswift.engines.samples import Completion, Prompt, Scored
from rayswift.rollout.rewards.runner import RewardRunner

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny"
FUNCTIONS = """
import os, time

def judge(prompts, completions, solution, **columns):
    texts = [completion[0]["content"] for completion in completions]
    if "exit" in texts:
        os._exit(3)
    if "hang" in texts:
        time.sleep(3600)
    if "raise" in texts:
        raise RuntimeError("no verdict")
    return ["much" if text == "junk" else text == wanted for text, wanted in zip(texts, solution, strict=True)]

async def length(completion_ids):
    return [None if len(ids) < 3 else len(ids) / 10 for ids in completion_ids]
"""
GROUPS = (["4", "5", "hang", "exit", "raise", "junk"], ["4", "four and more", "5"])


def reward_model(folder: Path) -> tuple[Path, Any, Any]:
    """A random reward model with its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(TINY, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for saved in (tokenizer, model):
        saved.save_pretrained(folder)
    return folder, tokenizer, model


def completions(texts: list[str], prompt: int) -> list[Completion]:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    ids = [np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32) for text in texts]
    return [Completion(f"{prompt}:{i}", one, np.zeros(len(one), np.float32), (), "stop") for i, one in enumerate(ids)]


def shown(outcome: Scored | str) -> Any:
    if isinstance(outcome, str):
        return outcome
    return [*(None if math.isnan(one) else one for one in outcome.rewards), outcome.reward]


async def scored(runner: RewardRunner) -> list[list[Any]]:
    await runner.start()
    messages = ({"role": "user", "content": "2+2"},)
    prompts = [Prompt(i, f"rows:{i}", 0, np.zeros(1, np.int32), messages, {"solution": "4"}) for i in range(2)]
    made = [completions(texts, i) for i, texts in enumerate(GROUPS)]
    found = await asyncio.gather(*(runner.score(*pair) for pair in zip(prompts, made, strict=True)))
    await runner.close()
    return [[shown(outcome) for outcome in group] for group in found]


def main(folder: Path) -> None:
    (folder / "mine.py").write_text(FUNCTIONS, encoding="utf-8")
    path, tokenizer, model = reward_model(folder / "model")
    config = RlhfConfig.model_validate(
        {
            "model": {"path": str(TINY)},
            "data": {"dataset": ["rows"]},
            "train": {"task": "grpo"},
            "rollout": {
                "reward_funcs": ["mine.py:judge", "mine.py:length"],
                "reward_models": [str(path)],
                "reward_weights": [1.0, 2.0, 0.5],
                "reward_timeout_s": 10,
            },
        }
    )
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = asyncio.run(scored(RewardRunner(config, TINY, folder / "run", folder, 2)))
    finally:
        ray.shutdown()
    question = {"role": "user", "content": "2+2"}
    expected = []
    for text in GROUPS[1]:
        answer = {"role": "assistant", "content": text}
        ids = tokenizer(tokenizer.apply_chat_template([question, answer], tokenize=False), add_special_tokens=False)
        with torch.inference_mode():
            expected.append(float(model(torch.tensor([ids["input_ids"]])).logits[0, 0]))
    print(json.dumps([found, expected]))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
