"""Teach a tiny model to add two numbers below 100, and measure it before and after.

First with `rayswift sft` on sums with their answers; then what that run was at a quarter of its way, when it still
added unreliably, goes on with `rayswift rlhf`: GRPO, by reward alone. The test sums are in neither's training data.
Leaves the runs in runs/demo and runs/demo_grpo; exits 1 if one of them did not learn to add.

Run: make demo
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import logging

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "examples/tiny"
TEST_SUMS = ROOT / "examples/sums/test.jsonl"
SFT, GRPO = Path("runs/demo"), Path("runs/demo_grpo")
EARLY_STEP, GRPO_STEPS = 250, 100
WANTED_ACCURACY, WANTED_GAIN = 0.95, 0.2
NUM_SHOWN = 6


def load_sums(path: Path) -> list[tuple[str, str]]:
    """Question and right answer of each row."""
    rows = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    return [(question["content"], answer["content"]) for question, answer in rows]


def untrained_model(seed: int) -> PreTrainedModel:
    """The tiny model with random weights."""
    set_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY))


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints, oldest first: a manifest is written when all else is there."""
    complete = [manifest.parent for manifest in (ROOT / run).glob("checkpoint-*/manifest.json")]
    if not complete:
        raise FileNotFoundError(f"no complete checkpoint in {run}")
    return sorted(complete, key=lambda folder: int(folder.name.removeprefix("checkpoint-")))


@torch.inference_mode()
def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[str], sampled: bool
) -> list[str]:
    """Answers to all questions in one batch: the likeliest ones, or sampled at temperature 1."""
    chats = [[{"role": "user", "content": question}] for question in questions]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    # Three digits and the end of the turn.
    tokens = model.eval().generate(**inputs, max_new_tokens=4, do_sample=sampled, top_k=0 if sampled else None)
    return tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def accuracy(answers: list[str], sums: list[tuple[str, str]]) -> float:
    """Share of right answers."""
    return sum(given == right for given, (_, right) in zip(answers, sums, strict=True)) / len(sums)


def measure(checkpoint: Path, sums: list[tuple[str, str]]) -> tuple[list[str], float, float]:
    """Greedy answers of a checkpoint, and its greedy and sampled accuracy."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    questions = [question for question, _ in sums]
    greedy = answer(model, tokenizer, questions, sampled=False)
    return greedy, accuracy(greedy, sums), accuracy(answer(model, tokenizer, questions, sampled=True), sums)


def train(verb: str, config: str, run: Path, *more: str) -> None:
    """Run the command line as a user would, its output passed through."""
    command = ["-m", "rayswift", verb, "--config", config, "--train.output_dir", str(run), *more]
    print(f"\n$ python {' '.join(command)}\n", flush=True)
    shutil.rmtree(ROOT / run, ignore_errors=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def supervised(sums: list[tuple[str, str]], more: list[str]) -> float:
    """Train on rows, show some answers, and return the accuracy afterwards."""
    questions = [question for question, _ in sums]
    tokenizer = AutoTokenizer.from_pretrained(TINY, padding_side="left")
    before = accuracy(answer(untrained_model(seed=42), tokenizer, questions, sampled=False), sums)
    print(f"Before training: {before:.1%} of {len(sums)} test sums right.")
    train("sft", "examples/sums_sft.yaml", SFT, "--save_steps", str(EARLY_STEP), "--save_total_limit", "4", *more)
    answers, after, _ = measure(checkpoints(SFT)[-1], sums)
    print("\nTest sums, answered by the trained model:")
    for (question, right), given in list(zip(sums, answers, strict=True))[:NUM_SHOWN]:
        print(f"  {question}{given}  {'right' if given == right else f'wrong, it is {right}'}")
    print(f"\nAccuracy on {len(sums)} test sums: {before:.1%} -> {after:.1%}")
    return after


def by_reward(sums: list[tuple[str, str]], more: list[str]) -> float:
    """Go on from the early checkpoint by reward, and return the gain in sampled accuracy."""
    early = checkpoints(SFT)[0]
    _, greedy_before, before = measure(early, sums)
    print(f"\n{early.relative_to(ROOT)}, earlier: {before:.1%} right when sampled. GRPO goes on from there.")
    steps = ("--max_steps", str(GRPO_STEPS), "--eval_strategy", "no", "--save_steps", str(GRPO_STEPS))
    start = ("--model", str(early), "--random_init", "false")
    train("rlhf", "examples/sums_grpo.yaml", GRPO, *start, *steps, *more)
    _, greedy, after = measure(checkpoints(GRPO)[-1], sums)
    print(f"\nGRPO, answers sampled at temperature 1: {before:.1%} -> {after:.1%}")
    print(f"GRPO, the likeliest answers: {greedy_before:.1%} -> {greedy:.1%}")
    return after - before


def main() -> int:
    """Train in two ways, report."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, help="stop both runs so early, and ask for no accuracy")
    max_steps: int | None = parser.parse_args().max_steps
    more = ["--max_steps", str(max_steps)] if max_steps else []
    logging.disable_progress_bar()
    set_seed(42)
    sums = load_sums(TEST_SUMS)

    after = supervised(sums, more)
    gain = by_reward(sums, more)

    print(f"Reports: {SFT}/report.html, {GRPO}/report.html")
    print(f"Time: {time.monotonic() - start:.0f} s")
    print(f'Try next: .venv/bin/rayswift infer --model {SFT} --prompt "23+58="')
    return 0 if max_steps or (after >= WANTED_ACCURACY and gain >= WANTED_GAIN) else 1


if __name__ == "__main__":
    sys.exit(main())
