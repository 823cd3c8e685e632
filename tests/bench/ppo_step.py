"""What a critic costs: seconds that a round of completions takes to train, by GRPO and by PPO with either critic.

    python -m tests.bench.ppo_step [--passes 4] [--rounds 5]

The same tokens, passes and reference for all; the median of the rounds, the first left out.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import TrainerCallback

from tests.policy_runs import Rounds, make_groups, make_spec, make_trainer, tiny_critic, tiny_model

SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "head_dim": 64}


class _Clock(TrainerCallback):
    """When each step began."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Note it."""
        self.times.append(time.perf_counter())


def seconds(kind: str, passes: int, rounds: int) -> float:
    """Of a round; kind: grpo, shared or separate."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--train.task", "grpo", "--train.beta", "0.05", "--num_iterations", str(passes)]
        if kind != "grpo":
            flags = ["--train.task", "ppo", "--train.critic", kind, "--num_ppo_epochs", str(passes)]
        if kind == "separate":
            flags += ["--model.critic_path", str(tiny_critic(Path(folder) / "critic", **SIZES))]
        flags += [
            "--learning_rate",
            "1e-5",
            "--num_generations",
            "4",
            "--max_steps",
            str(passes * rounds),
            "--micro_batch_tokens",
            "2048",
        ]
        spec = make_spec(Path(folder) / "run", *flags)
        client = Rounds([make_groups(16, 4, longest=96, seed=1, prompt_length=24)] * rounds)
        clock = _Clock()
        trainer = make_trainer(spec, client, tiny_model(**SIZES), tiny_model(1, **SIZES), callbacks=[clock])
        trainer.train()
    ends = clock.times[passes - 1 :: passes]
    return median(end - begin for begin, end in itertools.pairwise(ends))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = seconds("grpo", options.passes, options.rounds)
    for kind in ("grpo", "shared", "separate"):
        base if kind == "grpo" else seconds(kind, options.passes, options.rounds)


if __name__ == "__main__":
    main()
