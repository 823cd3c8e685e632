"""What scoring a round costs through reward workers, beside calling the function here.

    python -m tests.bench.reward_speed [--prompts 128] [--generations 8] [--rounds 5] [--workers 1]

Sums as short as those of the examples; groups arrive all at once, and one after the other. The best of all rounds. Then
what an answer in LaTeX costs behind 800 characters of thought: seen for the first time, its reference too, and again.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import ray
from tokenizers import Tokenizer

from rayswift.config.schema import RlhfConfig
from rayswift.engines.samples import Completion, Prompt
from rayswift.rollout.rewards import builtin
from rayswift.rollout.rewards.runner import RewardRunner
from tests.bench.counting import start_ray

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny"
Groups = list[tuple[Prompt, list[Completion]]]


def made(num_prompts: int, num_generations: int) -> Groups:
    """Sums with answers of which every other is right."""
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    groups = []
    for n in range(num_prompts):
        messages = ({"role": "user", "content": f"{n}+{n}"},)
        prompt = Prompt(n, f"rows:{n}", 0, np.zeros(1, np.int32), messages, {"solution": str(2 * n)})
        ids = [np.array(tokenizer.encode(str(2 * n + i % 2)).ids, np.int32) for i in range(num_generations)]
        completions = [
            Completion(f"{n}:{i}", one, np.zeros(len(one), np.float32), (), "stop") for i, one in enumerate(ids)
        ]
        groups.append((prompt, completions))
    return groups


async def times(runner: RewardRunner, groups: Groups, num_rounds: int) -> list[float]:
    """Seconds a round, all groups at once and one after the other."""

    async def at_once() -> None:
        await asyncio.gather(*(runner.score(*group) for group in groups))

    async def one_by_one() -> None:
        for group in groups:
            await runner.score(*group)

    await runner.start()
    found = [await best(way, num_rounds) for way in (at_once, one_by_one)]
    await runner.close()
    return found


async def best(way: Callable[[], Coroutine[Any, Any, None]], num_rounds: int) -> float:
    """The shortest of so many."""
    seconds = []
    for _ in range(num_rounds):
        began = time.perf_counter()
        await way()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def latex(num_prompts: int, num_generations: int) -> tuple[float, float, float]:
    """Seconds an answer: the first of its reference, a further one, and one that was judged before."""
    thought = "We set $x^2 + {n}x = \\frac{{1}}{{3}}$, and simplify to $y = \\sqrt{{2}}$. " * 14
    golds = [rf"\frac{{{n + 1} \sqrt{{7}}}}{{{n + 2}}}" for n in range(num_prompts)]  # a number needs no math-verify

    def answers(i: int) -> list[str]:
        return [
            rf"{thought.format(n=i)} so $\frac{{{n + 1 + i % 2} \sqrt{{7}}}}{{{n + 2}}}$" for n in range(num_prompts)
        ]

    def seconds(numbers: range) -> float:
        texts = [text for i in numbers for text in answers(i)]
        began = time.perf_counter()
        found = builtin.accuracy(texts, golds * len(numbers))
        took = time.perf_counter() - began
        assert sum(found) == num_prompts * sum(i % 2 == 0 for i in numbers)
        return took / len(texts)

    builtin.accuracy([r"\boxed{\frac{1}{2}}"], [r"\frac{2}{3}"])  # imports
    return seconds(range(1)), seconds(range(1, num_generations)), seconds(range(num_generations))


def here(groups: Groups, num_rounds: int) -> float:
    """Seconds a round of the function itself."""
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    texts = [tokenizer.decode(one.token_ids.tolist()) for _, completions in groups for one in completions]
    solutions = [prompt.columns["solution"] for prompt, completions in groups for _ in completions]
    seconds = []
    for _ in range(num_rounds):
        began = time.perf_counter()
        builtin.accuracy(texts, solutions)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("prompts", 128), ("generations", 8), ("rounds", 5), ("workers", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    tree = {"model": {"path": str(TINY)}, "data": {"dataset": ["rows"]}, "train": {"task": "grpo"}}
    config = RlhfConfig.model_validate(tree | {"rollout": {"reward_funcs": ["accuracy"]}})
    groups = made(given.prompts, given.generations)
    with tempfile.TemporaryDirectory() as temporary:
        start_ray(2)
        runner = RewardRunner(config, TINY, Path(temporary), Path.cwd(), given.workers)
        at_once, one_by_one = asyncio.run(times(runner, groups, given.rounds))
        ray.shutdown()
    print(f"{given.prompts} prompts x {given.generations} completions, reward accuracy, ms a round")  # noqa: T201
    for name, seconds in (
        ("the function alone, here", here(groups, given.rounds)),
        ("a worker, all groups at once", at_once),
        ("a worker, group after group", one_by_one),
    ):
        print(f"  {name:32} {1000 * seconds:9.1f}")  # noqa: T201
    print("reward accuracy of answers in LaTeX, ms an answer")  # noqa: T201
    for name, seconds in zip(
        ("the first of its reference", "a further one", "judged before"),
        latex(given.prompts, given.generations),
        strict=True,
    ):
        print(f"  {name:32} {1000 * seconds:9.2f}")  # noqa: T201


if __name__ == "__main__":
    main()
