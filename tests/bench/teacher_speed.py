"""How fast a teacher pool scores, beside vLLM alone on the same tokens: tokens per second, and their ratio.

    python -m tests.bench.teacher_speed --model FOLDER [--rows 512] [--length 128] [--top 16] [--rounds 3]

Both score the second half of each text behind its first, with the `top` likeliest tokens; the best round counts.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]


def texts(args: argparse.Namespace, round_number: int) -> list[Any]:
    """Random tokens, others in each round: nothing is in a cache."""
    rng = np.random.default_rng(round_number)
    return [rng.integers(6, 500, args.length).astype(np.int32) for _ in range(args.rows)]


def settings(args: argparse.Namespace) -> Any:
    """Of the engine."""
    from rayswift.engines.engine import SamplingSettings
    from rayswift.engines.vllm.setup import EngineSetup

    kwargs = {"max_logprobs": args.top}
    return EngineSetup(
        args.model, SamplingSettings(1.0), args.length + 2, load_format="auto", num_threads=args.threads,
        engine_kwargs=kwargs,
    )  # fmt: skip


def alone(args: argparse.Namespace) -> float:
    """Seconds of the fastest round of vLLM in this process, with the arguments that our engine gives it."""
    from rayswift.engines.vllm.build import arguments
    from rayswift.engines.vllm.setup import prepare_environment

    setup = settings(args)
    prepare_environment(setup)
    import torch
    from vllm import LLM, SamplingParams

    torch.set_num_threads(args.threads)
    torch.compiler.set_stance("force_eager")
    given = arguments(setup) | {"logprobs_mode": "raw_logprobs"}
    del given["worker_extension_cls"]
    llm = LLM(**given)
    params = SamplingParams(max_tokens=1, prompt_logprobs=args.top, flat_logprobs=True, detokenize=False)
    taken = []
    for number in range(args.rounds):
        prompts: Any = [{"prompt_token_ids": text.tolist()} for text in texts(args, number)]
        began = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        taken.append(time.perf_counter() - began)
    return min(taken)


def no_request(prompt: Any) -> Any:
    """Nothing is written."""
    raise NotImplementedError


async def pooled(args: argparse.Namespace) -> float:
    """Seconds of the fastest round of a pool of one engine in an actor."""
    from rayswift.engines.pool.actors import ray_engines
    from rayswift.engines.pool.patience import Limits
    from rayswift.engines.pool.pool import Pool
    from rayswift.engines.samples import Completion, Prompt
    from rayswift.engines.vllm.engine import VllmEngine
    from rayswift.rollout.teachers.pool import PoolTeacher

    engines = ray_engines(VllmEngine, (settings(args),), {"num_cpus": 0})
    teacher = PoolTeacher(Pool(engines, Limits(), resume_partial=False, prefix="teacher"), 1, args.top, no_request)
    await teacher.start()
    taken, half = [], args.length // 2
    for number in range(args.rounds + 1):  # the first waits for the engine
        rows = texts(args, number)
        asked = [
            (
                Prompt(i, "", 0, row[:half], (), {}),
                Completion(f"{number}:{i}", row[half:], np.zeros(len(row) - half, np.float32), (), "stop"),
            )
            for i, row in enumerate(rows)
        ]
        began = time.perf_counter()
        found = await asyncio.gather(*(teacher.score(prompt, [one]) for prompt, one in asked))
        taken.append(time.perf_counter() - began)
        assert all(isinstance(one, Completion) for each in found for one in each)
    await teacher.close()
    return min(taken[1:])


def main() -> None:
    """Each in a process of its own, one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--top", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", choices=["alone", "pooled"])
    args = parser.parse_args()
    if args.part:
        if args.part == "pooled":
            import ray

            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        taken_s = alone(args) if args.part == "alone" else asyncio.run(pooled(args))
        print(json.dumps({"tokens_per_s": args.rows * args.length / taken_s}))  # noqa: T201
        return
    found = {}
    for part in ("alone", "pooled"):
        command = [sys.executable, "-m", "tests.bench.teacher_speed", *sys.argv[1:], "--part", part]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[part] = json.loads(done.stdout.splitlines()[-1])["tokens_per_s"]
    rate = found["pooled"] / found["alone"]
    print(f"tokens/s: vLLM alone {found['alone']:,.0f}, a pool {found['pooled']:,.0f}: {rate:.2f}")  # noqa: T201


if __name__ == "__main__":
    main()
