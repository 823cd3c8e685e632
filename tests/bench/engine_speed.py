"""Rollout tokens/s through actor and pool, against the same vLLM engine that is handed everything at once.

    python -m tests.bench.engine_speed [--prompts 512] [--tokens 64] [--rounds 5]

Both sample the same requests with the same seeds, want each token's log-probability, and run in a process of their own
with one thread; `direct` is `LLM.generate`. Medians over the rounds behind the first.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rayswift.engines.engine import SamplingSettings
from rayswift.engines.pool.actors import ray_engines
from rayswift.engines.pool.patience import Limits
from rayswift.engines.pool.pool import Pool
from rayswift.engines.samples import PolicyVersion, SampleRequest
from rayswift.engines.vllm.engine import VllmEngine
from rayswift.engines.vllm.setup import EngineSetup, engine_options, prepare_environment
from rayswift.engines.weights import ObjectStore
from rayswift.train.policy.sync.publish import Publisher
from tests.bench.generated import TINY

PROMPT_TOKENS = 32
SHAPES: dict[str, dict[str, int]] = {
    "examples/tiny": {},
    "6 M parameters": {
        "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 64,
    },
}  # fmt: skip


class Direct:
    """vLLM's own offline interface, in an actor of its own."""

    def __init__(self, setup: EngineSetup):
        from rayswift.engines.vllm.build import arguments

        prepare_environment(setup)
        torch.set_num_threads(setup.num_threads)
        from vllm import LLM

        self._llm = LLM(**arguments(setup), use_tqdm_on_load=False)

    def generate(self, requests: list[SampleRequest]) -> float:
        """Seconds."""
        from vllm import SamplingParams

        params = [
            SamplingParams(temperature=1.0, seed=r.seed, max_tokens=r.max_tokens, logprobs=0, detokenize=False)
            for r in requests
        ]
        prompts = [{"prompt_token_ids": r.prompt_ids.tolist()} for r in requests]
        began = time.perf_counter()
        self._llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - began


def requests(number: int, prompts: int, tokens: int) -> list[SampleRequest]:
    """Eight samples of each prompt, as a group; lengths uneven."""
    random = np.random.default_rng(number)
    texts = random.integers(2, 500, (prompts // 8, PROMPT_TOKENS)).astype(np.int32)
    rooms = random.integers(tokens // 4, tokens + 1, prompts)
    return [SampleRequest(f"{number}:{i}", texts[i // 8], int(room), seed=i) for i, room in enumerate(rooms)]


async def measure(shape: dict[str, int], folder: Path, options: argparse.Namespace) -> tuple[float, float, float]:
    """Tokens/s of vLLM alone, through actor and pool, and their ratio; both by turns, as a machine's speed drifts."""
    config = AutoConfig.from_pretrained(TINY)
    for name, value in shape.items():
        setattr(config, name, value)
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    config.eos_token_id = None
    config.save_pretrained(folder)
    setup = EngineSetup(str(folder), SamplingSettings(1.0), PROMPT_TOKENS + options.tokens)
    direct = ray.remote(Direct).options(num_cpus=0).remote(setup)
    pool = Pool(ray_engines(VllmEngine, (setup,), engine_options({})), Limits(), resume_partial=False)
    pool.scale_to(1)
    model = AutoModelForCausalLM.from_config(config)
    published = Publisher(model, "float32", False, True, ObjectStore()).publish(PolicyVersion(0, 0))
    await pool.set_weights(PolicyVersion(0, 0), published)
    speeds: list[tuple[float, float]] = []
    for number in range(options.rounds):
        asked = requests(number, options.prompts, options.tokens)
        num_tokens = sum(request.max_tokens for request in asked)
        alone_s = await direct.generate.remote(asked)
        began = time.perf_counter()
        await asyncio.gather(*pool.sample(asked, 0))
        speeds.append((num_tokens / alone_s, num_tokens / (time.perf_counter() - began)))
    await pool.close()
    ray.kill(direct)
    warm = speeds[1:]
    ratio = statistics.median(pooled / alone for alone, pooled in warm)
    return statistics.median(s[0] for s in warm), statistics.median(s[1] for s in warm), ratio


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    lines = ["| model | vLLM alone, tokens/s | through actor and pool | ratio |", "| --- | ---: | ---: | ---: |"]
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            alone, pooled, ratio = asyncio.run(measure(shape, Path(folder), options))
        lines.append(f"| {name} | {alone:,.0f} | {pooled:,.0f} | {ratio:.2f} |")
    ray.shutdown()
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
