"""Teach a tiny model to add two numbers below 100 with `rayswift sft`, and measure it before and after.

The test sums are not in the training data. Leaves the run in runs/demo; exits 1 if it did not learn to add.

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
CONFIG = Path("examples/sums_sft.yaml")
TEST_SUMS = ROOT / "examples/sums/test.jsonl"
RUN = Path("runs/demo")
WANTED_ACCURACY = 0.95
NUM_SHOWN = 6


def load_sums(path: Path) -> list[tuple[str, str]]:
    """Question and right answer of each row."""
    rows = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    return [(question["content"], answer["content"]) for question, answer in rows]


def untrained_model(seed: int) -> PreTrainedModel:
    """The tiny model with random weights."""
    set_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY))


def newest_checkpoint(run: Path) -> Path:
    """The last complete checkpoint: its manifest is written when all else is there."""
    complete = [manifest.parent for manifest in run.glob("checkpoint-*/manifest.json")]
    if not complete:
        raise FileNotFoundError(f"no complete checkpoint in {run}")
    return max(complete, key=lambda folder: int(folder.name.removeprefix("checkpoint-")))


@torch.inference_mode()
def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[str]) -> list[str]:
    """Greedy answers, all questions in one batch."""
    chats = [[{"role": "user", "content": question}] for question in questions]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    # Three digits and the end of the turn.
    tokens = model.eval().generate(**inputs, max_new_tokens=4, do_sample=False)
    return tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def accuracy(answers: list[str], sums: list[tuple[str, str]]) -> float:
    """Share of right answers."""
    return sum(given == right for given, (_, right) in zip(answers, sums, strict=True)) / len(sums)


def train(more: list[str]) -> None:
    """Run the command line as a user would, its output passed through."""
    command = ["-m", "rayswift", "sft", "--config", str(CONFIG), "--train.output_dir", str(RUN), *more]
    print(f"\n$ python {' '.join(command)}\n", flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def main() -> int:
    """Measure, train, measure again, report."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, help="stop so early, and ask for no accuracy")
    max_steps: int | None = parser.parse_args().max_steps
    logging.disable_progress_bar()
    shutil.rmtree(ROOT / RUN, ignore_errors=True)
    sums = load_sums(TEST_SUMS)
    questions = [question for question, _ in sums]

    tokenizer = AutoTokenizer.from_pretrained(TINY, padding_side="left")
    before = accuracy(answer(untrained_model(seed=42), tokenizer, questions), sums)
    print(f"Before training: {before:.1%} of {len(sums)} test sums right.")

    train(["--max_steps", str(max_steps)] if max_steps else [])

    checkpoint = newest_checkpoint(ROOT / RUN)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
    answers = answer(AutoModelForCausalLM.from_pretrained(checkpoint), tokenizer, questions)
    after = accuracy(answers, sums)

    print("\nTest sums, answered by the trained model:")
    for (question, right), given in list(zip(sums, answers, strict=True))[:NUM_SHOWN]:
        print(f"  {question}{given}  {'right' if given == right else f'wrong, it is {right}'}")
    print(f"\nAccuracy on {len(sums)} test sums: {before:.1%} -> {after:.1%}")
    print(f"Checkpoint: {checkpoint.relative_to(ROOT)}")
    print(f"Report: {RUN}/report.html")
    print(f"Time: {time.monotonic() - start:.0f} s")
    print(f'Try next: .venv/bin/rayswift infer --model {RUN} --prompt "23+58="')
    return 0 if max_steps or after >= WANTED_ACCURACY else 1


if __name__ == "__main__":
    sys.exit(main())
