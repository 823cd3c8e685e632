"""Speed of the policy trainer on completions of uneven length, beside TRL's `GRPOTrainer` on the same ones.

    python -m tests.bench.policy_packing [--prompts 16] [--rounds 5] [--threads 2]

One optimizer step on policy: forward, loss, backward; no generation, no optimizer. TRL pads every micro-batch to the
longest completion of the round; ours are of completions of like length under a token budget. Lengths are log-normal,
cut off at 512; tokens/s count prompts and completions, not padding. Prints one table of medians.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

NUM_GENERATIONS, LONGEST, PER_DEVICE = 8, 512, 8
# Name and size of the policies: 1.6 M and 6 M parameters.
MODELS = {
    "1.6 M": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 2048},
    "6 M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "vocab_size": 4096},
}


def lengths(number: int, sigma: float) -> list[int]:
    """Log-normal lengths around 64 tokens."""
    drawn = np.random.default_rng(0).lognormal(np.log(64), sigma, number)
    return [int(each) for each in np.clip(drawn, 2, LONGEST)]


def seconds(step: Callable[[], Any], times: int) -> float:
    """Median time of a step, the first one left out."""
    found = []
    for _ in range(times + 1):
        started = time.monotonic()
        step()
        found.append(time.monotonic() - started)
    return statistics.median(found[1:])


def trl_step(folder: Path, groups: Any, model: Any, number: int) -> Callable[[], Any]:
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
        use_cpu=True,
        bf16=False,
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
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([{"prompt": "a"}] * number)
    batches = split_tensor_dict(inputs, number // PER_DEVICE)

    def step() -> None:
        trainer.model.zero_grad()
        for batch in batches:
            trainer._compute_loss(trainer.model, batch).backward()

    return step


def our_step(folder: Path, groups: Any, model: Any, budget: int) -> Callable[[], Any]:
    """One optimizer step of ours."""
    from tests.policy_runs import Rounds, make_spec, make_trainer

    spec = make_spec(folder, "--micro_batch_tokens", str(budget), "--importance_sampling", "none")
    trainer = make_trainer(spec, Rounds([groups]), model)
    item = next(iter(trainer.stream))

    def step() -> None:
        trainer.model.zero_grad()
        trainer.training_step(trainer.model, item)

    return step


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    from tests.policy_runs import make_groups, tiny_model

    number = options.prompts * NUM_GENERATIONS
    line("model", "sigma", "mean / longest", "TRL tokens/s", "budget", "ours tokens/s", "fill", "ours / TRL")
    line(*["---"] * 8)
    for name, shape in MODELS.items():
        model = tiny_model(head_dim=32, num_attention_heads=4, num_key_value_heads=4, **shape)
        for sigma in (0.5, 0.8):
            of = lengths(number, sigma)
            groups = make_groups(options.prompts, NUM_GENERATIONS, lengths=of, prompt_length=32)
            total = sum(of) + sum(len(group.prompt.input_ids) for group in groups) * NUM_GENERATIONS
            with tempfile.TemporaryDirectory() as folder:
                theirs = total / seconds(trl_step(Path(folder), groups, model, number), options.rounds)
                for budget in (1024, 2048, 4096):
                    ours = total / seconds(our_step(Path(folder), groups, model, budget), options.rounds)
                    cells = (name, sigma, f"{np.mean(of):.0f} / {max(of)}", f"{theirs:,.0f}", budget, f"{ours:,.0f}")
                    line(*cells, f"{fill(groups, budget):.2f}", f"{ours / theirs:.2f}")


def line(*cells: Any) -> None:
    """A line of the table."""
    print("|", " | ".join(map(str, cells)), "|", flush=True)  # noqa: T201


def fill(groups: Any, budget: int) -> float:
    """Share of the computed tokens that is no padding."""
    from rayswift.rollout.rounds import make_table, shares
    from rayswift.rollout.samples import PolicyVersion
    from rayswift.train.policy.micro_batches import cut

    table = make_table(groups, ("f0",), PolicyVersion(0, 0))
    totals = (table.prompt_lengths + table.lengths)[shares(table, 1, 1)[0][0]]
    pieces = cut([totals], budget, "rows")[0]
    return totals.sum() / sum(len(totals[piece]) * totals[piece][0] for piece in pieces)


if __name__ == "__main__":
    main()
