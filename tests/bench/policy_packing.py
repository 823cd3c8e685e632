"""Speed of the policy trainer on completions of uneven length, beside TRL's `GRPOTrainer` on the same ones.

    python -m tests.bench.policy_packing [--prompts 16] [--rounds 5] [--threads 2] [--device cpu]

One optimizer step on policy: forward, loss, backward; no generation, no optimizer. TRL pads every micro-batch to the
longest completion of the round; ours are groups, each prompt computed once, under a token budget. Lengths are
log-normal, cut off at 512, on a GPU eight times as long; there both compute in bfloat16. Tokens/s count prompts and
completions, not padding; "computed" is the share of them that ours computes. Prints one table of medians.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

NUM_GENERATIONS, PER_DEVICE = 8, 8


@dataclass(frozen=True)
class Scale:
    """What a device is given.

    median, longest: tokens of a completion. prompt: tokens of the longest prompt. budgets: tokens of our micro-batches.
    models: shape of the policies, by their number of parameters.
    """

    median: int
    longest: int
    prompt: int
    budgets: tuple[int, ...]
    models: dict[str, dict[str, Any]]


_SMALL = {"head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 4}
_LARGE = {"head_dim": 128, "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 151936}
_LARGE |= {"initializer_range": 0.02}
SCALES = {
    "cpu": Scale(64, 512, 32, (1024, 2048, 4096), {
        "1.6 M": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 2048, **_SMALL},
        "6 M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "vocab_size": 4096, **_SMALL},
    }),
    "cuda": Scale(512, 4096, 256, (8192, 16384, 32768), {
        "0.6 B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, **_LARGE},
    }),
}  # fmt: skip


def lengths(number: int, sigma: float, scale: Scale) -> list[int]:
    """Log-normal lengths."""
    drawn = np.random.default_rng(0).lognormal(np.log(scale.median), sigma, number)
    return [int(each) for each in np.clip(drawn, 2, scale.longest)]


def seconds(step: Callable[[], Any], times: int) -> float:
    """Median time of a step, the first one left out."""
    found = []
    for _ in range(times + 1):
        started = time.monotonic()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.monotonic() - started)
    return statistics.median(found[1:])


def trl_step(folder: Path, groups: Any, model: Any, number: int, device: str) -> Callable[[], Any]:
    """One optimizer step of TRL's: micro-batches of `PER_DEVICE` completions, all padded alike."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig
    from trl.trainer.utils import split_tensor_dict

    from tests.policy_oracle import ScriptedGRPO
    from tests.policy_runs import TINY

    args = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=PER_DEVICE,
        gradient_accumulation_steps=number // PER_DEVICE,
        num_generations=NUM_GENERATIONS,
        report_to="none",
        use_cpu=device == "cpu",
        bf16=device == "cuda",
        gradient_checkpointing=False,
    )
    trainer: Any = ScriptedGRPO(
        model=model,
        args=args,
        reward_funcs=[lambda **_: []],
        train_dataset=Dataset.from_dict({"prompt": ["a"] * number}),
        processing_class=AutoTokenizer.from_pretrained(TINY),
    )
    trainer.groups = groups
    trainer.current_gradient_accumulation_steps = number // PER_DEVICE
    model = trainer.accelerator.prepare_model(trainer.model.train())
    inputs = trainer._generate_and_score_completions([{"prompt": "a"}] * number)
    batches = split_tensor_dict(inputs, number // PER_DEVICE)

    def step() -> None:
        model.zero_grad()
        for batch in batches:
            trainer._compute_loss(model, batch).backward()

    return step


def our_step(folder: Path, groups: Any, model: Any, budget: int, device: str) -> tuple[Callable[[], Any], int]:
    """One optimizer step of ours, and the tokens that it computes."""
    from tests.policy_runs import Rounds, make_spec, make_trainer

    spec = make_spec(folder, "--micro_batch_tokens", str(budget), "--importance_sampling", "none", device=device)
    trainer = make_trainer(spec, Rounds([groups]), model)
    item = next(iter(trainer.stream))
    model = trainer.accelerator.prepare_model(trainer.model)

    def step() -> None:
        model.zero_grad()
        trainer.training_step(model, item)

    return step, sum(batch.num_computed_tokens for batch in item["step"].batches)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=list(SCALES))
    options = parser.parse_args()
    scale = SCALES[options.device]
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    from tests.policy_runs import make_groups, tiny_model

    number = options.prompts * NUM_GENERATIONS
    line("model", "sigma", "mean / longest", "TRL tokens/s", "budget", "ours tokens/s", "computed", "ours / TRL")
    line(*["---"] * 8)
    device = options.device
    for name, shape in scale.models.items():
        for sigma in (0.5, 0.8):
            of = lengths(number, sigma, scale)
            groups = make_groups(options.prompts, NUM_GENERATIONS, lengths=of, prompt_length=scale.prompt)
            total = sum(of) + sum(len(group.prompt.input_ids) for group in groups) * NUM_GENERATIONS
            with tempfile.TemporaryDirectory() as folder:
                # A model of its own for each: what a trainer makes of one, another's autocast does not reach.
                step = trl_step(Path(folder), groups, tiny_model(**shape), number, device)
                theirs = total / seconds(step, options.rounds)
                for budget in scale.budgets:
                    step, computed = our_step(Path(folder), groups, tiny_model(**shape), budget, device)
                    ours = total / seconds(step, options.rounds)
                    cells = (name, sigma, f"{np.mean(of):.0f} / {max(of)}", f"{theirs:,.0f}", budget, f"{ours:,.0f}")
                    line(*cells, f"{computed / total:.2f}", f"{ours / theirs:.2f}")


def line(*cells: Any) -> None:
    """A line of the table."""
    print("|", " | ".join(map(str, cells)), "|", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
