"""Teach a tiny model to add two numbers below 100, and measure it before and after.

First, `rayswift sft` trains it on sums with their answers. Then `rayswift rlhf` continues from an early checkpoint of
that run, which adds unreliably, with GRPO, by reward alone. The test sums are not in the training data of either.
If one of the two did not learn to add, it exits with 1 and prints the expected and the measured value, and the logs.

Run: make demo
"""

import argparse
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import logging as transformers_logging

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "examples/tiny"
TEST_SUMS = ROOT / "examples/sums/test.jsonl"
WANTED_ACCURACY, WANTED_GAIN = 0.95, 0.2
# The step at which the model begins to answer depends on the CPU's arithmetic. GRPO continues from the first checkpoint
# whose sampled accuracy is in this band: it is rewarded often enough, and can still learn.
START_BAND = (0.4, 0.6)
# How fast a model learns differs by seed and by arithmetic: both train in stages until the result suffices.
SAVE_STEPS, MOST_SFT_RUNS = 40, 3
GRPO_STEPS, MOST_GRPO_STEPS = 160, 640
SAMPLES_PER_SUM = 4
MAX_ANSWER_TOKENS = 4  # three digits and the end token of the turn
NUM_SHOWN = 6


class DemoFailed(Exception):
    """The expected and the measured value, and the folder of the logs."""


def load_sums(path: Path) -> list[tuple[str, str]]:
    """Question and right answer of each row."""
    rows = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    return [(question["content"], answer["content"]) for question, answer in rows]


def untrained_model(seed: int) -> PreTrainedModel:
    """The tiny model with random weights."""
    set_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY))


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints, oldest first: a manifest is written after all other files."""
    complete = [manifest.parent for manifest in run.glob("checkpoint-*/manifest.json")]
    if not complete:
        raise DemoFailed(f"wanted a checkpoint in {run}, found none; logs in {run / 'logs'}")
    return sorted(complete, key=lambda folder: int(folder.name.removeprefix("checkpoint-")))


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[str], num_samples: int = 0
) -> list[str]:
    """The likeliest answer to each question; with `num_samples`: as many answers to each, sampled at temperature 1."""
    chats = [[{"role": "user", "content": question}] for question in questions]
    return next_turns(model, tokenizer, chats, MAX_ANSWER_TOKENS, num_samples)


@torch.inference_mode()
def next_turns(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chats: list[list[dict[str, Any]]],
    max_new_tokens: int,
    num_samples: int = 0,
    tools: list[dict[str, Any]] | None = None,
) -> list[str]:
    """The likeliest next turn of each chat; with `num_samples`: that many turns of each, sampled at temperature 1."""
    inputs = tokenizer.apply_chat_template(
        chats, tools=tools, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    how = {"do_sample": True, "top_k": 0, "num_return_sequences": num_samples} if num_samples else {"do_sample": False}
    tokens = model.eval().generate(**inputs, max_new_tokens=max_new_tokens, **how)
    return tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def accuracy(answers: list[str], sums: list[tuple[str, str]]) -> float:
    """Share of right answers, of one or several to each sum."""
    each = len(answers) // len(sums)
    return sum(given == sums[index // each][1] for index, given in enumerate(answers)) / len(answers)


def load(checkpoint: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a checkpoint."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
    return AutoModelForCausalLM.from_pretrained(checkpoint), tokenizer


def greedy_answers(checkpoint: Path, sums: list[tuple[str, str]]) -> list[str]:
    """The likeliest answer to each sum."""
    return answer(*load(checkpoint), [question for question, _ in sums])


def sampled_accuracy(checkpoint: Path, sums: list[tuple[str, str]]) -> float:
    """Share of right answers at temperature 1."""
    return accuracy(answer(*load(checkpoint), [question for question, _ in sums], SAMPLES_PER_SUM), sums)


def train(verb: str, config: str, run: Path, *more: str) -> None:
    """Run the command line as a user would, and pass its output through; without `--resume` the run begins anew."""
    command = ["-m", "rayswift", verb, "--config", config, "--train.output_dir", str(run), *more]
    print(f"\n$ python {' '.join(command)}\n", flush=True)
    if "--resume" not in more:
        shutil.rmtree(run, ignore_errors=True)
    code, _ = run_child([sys.executable, *command])
    if code:
        raise DemoFailed(
            f"wanted `rayswift {verb}` to end with exit code 0, got {code}; its error is above, "
            f"its logs in {run / 'logs'}"
        )


def run_child(line: list[str], stdout: int | None = None) -> tuple[int, str]:
    """Run a command, and return its exit code and what it printed, if `stdout` is a pipe.

    A signal that is to end this process ends the command first; this process then exits as the command does.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard: list[int] = []
    started: list[subprocess.Popen[str]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        for child in started:
            child.send_signal(number)

    # Before the command starts: a signal in between would end this process alone.
    before = {number: signal.signal(number, pass_on) for number in numbers}
    with subprocess.Popen(line, cwd=ROOT, stdout=stdout, text=True) as child:
        early = tuple(heard)
        started.append(child)
        for number in early:
            child.send_signal(number)
        printed, _ = child.communicate()
    for number, handler in before.items():
        signal.signal(number, handler)
    if heard:
        sys.exit(128 + heard[0])
    return child.returncode, printed or ""


def supervised(run: Path, sums: list[tuple[str, str]], more: list[str]) -> tuple[float, list[Path]]:
    """Train on rows until the accuracy suffices, show some answers, and return it with the folders of all runs.

    A run whose learning rate has ended at 0 cannot become longer: another one begins with its weights.
    """
    questions = [question for question, _ in sums]
    tokenizer = AutoTokenizer.from_pretrained(TINY, padding_side="left")
    before = accuracy(answer(untrained_model(seed=42), tokenizer, questions), sums)
    print(f"Before training: {before:.1%} of {len(sums)} test sums right.")
    saves = ("--save_steps", str(SAVE_STEPS), "--save_total_limit", "1000")
    trained, begin = [run], list[str]()
    for number in range(1, MOST_SFT_RUNS + 1):
        train("sft", "examples/sums_sft.yaml", trained[-1], *saves, *begin, *more)
        last = checkpoints(trained[-1])[-1]
        answers = greedy_answers(last, sums)
        after = accuracy(answers, sums)
        if after >= WANTED_ACCURACY or "--max_steps" in more or number == MOST_SFT_RUNS:
            break
        print(f"\n{after:.1%} of the test sums right, {WANTED_ACCURACY:.0%} wanted.")
        begin = ["--model", str(last), "--random_init", "false"]
        trained.append(run.with_name(f"{run.name}_{number + 1}"))
    print("\nTest sums, answered by the trained model:")
    for (question, right), given in list(zip(sums, answers, strict=True))[:NUM_SHOWN]:
        print(f"  {question}{given}  {'right' if given == right else f'wrong, it is {right}'}")
    print(f"\nAccuracy on {len(sums)} test sums: {before:.1%} -> {after:.1%}")
    return after, trained


def choose_start(
    trained: list[Path], sums: list[tuple[str, str]], band: tuple[float, float] = START_BAND
) -> tuple[Path, float]:
    """The first checkpoint of these runs whose sampled accuracy is in the band, and that accuracy.

    If no checkpoint is in the band, the one nearest to it is taken.
    """
    low, high = band
    before: tuple[Path, float] | None = None
    for checkpoint in (each for run in trained for each in checkpoints(run)):
        found = checkpoint, sampled_accuracy(checkpoint, sums)
        if found[1] >= low:
            over = found[1] - high
            return before if before and over > 0 and low - before[1] < over else found
        before = found
    assert before
    return before


def by_reward(start: Path, before: float, run: Path, sums: list[tuple[str, str]], more: list[str]) -> float:
    """Continue from an early checkpoint by reward until the gain suffices; return the gain in sampled accuracy."""
    greedy_before = accuracy(greedy_answers(start, sums), sums)
    print(f"\n{start}, earlier: {before:.1%} right when sampled. GRPO goes on from there.")
    flags = ("--model", str(start), "--random_init", "false", "--eval_strategy", "no", "--learning_rate", "3e-4")
    flags += ("--save_steps", str(GRPO_STEPS))
    for num_steps in range(GRPO_STEPS, MOST_GRPO_STEPS + 1, GRPO_STEPS):
        resumed = ("--resume", "auto") if num_steps > GRPO_STEPS else ()
        train("rlhf", "examples/sums_grpo.yaml", run, *flags, "--max_steps", str(num_steps), *resumed, *more)
        last = checkpoints(run)[-1]
        after = sampled_accuracy(last, sums)
        print(f"\nGRPO, answers sampled at temperature 1: {before:.1%} -> {after:.1%} after {last.name}")
        if after - before >= WANTED_GAIN or "--max_steps" in more:
            break
    print(f"GRPO, the likeliest answers: {greedy_before:.1%} -> {accuracy(greedy_answers(last, sums), sums):.1%}")
    return after - before


def demo(runs: Path, sums: list[tuple[str, str]], more: list[str], measured: bool) -> None:
    """Train in two ways and report; `measured`: also compare the results with the expected ones.

    Raises:
        DemoFailed: one of the two did not learn to add.
    """
    sft, grpo = runs / "demo", runs / "demo_grpo"
    after, trained = supervised(sft, sums, more)
    last = trained[-1]
    if measured and after < WANTED_ACCURACY:
        raise DemoFailed(
            f"wanted at least {WANTED_ACCURACY:.0%} of the test sums right after {MOST_SFT_RUNS} runs of "
            f"`rayswift sft`, got {after:.1%}; curves in {last / 'report.html'}, logs in {last / 'logs'}"
        )
    start, before = choose_start(trained, sums)
    gain = by_reward(start, before, grpo, sums, more)
    if measured and gain < WANTED_GAIN:
        raise DemoFailed(
            f"wanted GRPO to gain {100 * WANTED_GAIN:.0f} points of sampled accuracy in {MOST_GRPO_STEPS} steps, "
            f"got {100 * gain:.1f} from {before:.1%} at {start}; curves in {grpo / 'report.html'}, "
            f"logs in {grpo / 'logs'}"
        )
    print(f"Reports: {sft}/report.html, {grpo}/report.html")
    print(f'Try next: .venv/bin/rayswift infer --model {last} --prompt "23+58="')


def main() -> int:
    """Parse, run, and print the reason of a failure in one line."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, help="stop both runs so early, and ask for no accuracy")
    parser.add_argument("--seed", type=int, default=42, help="of both runs")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the two run folders")
    options = parser.parse_args()
    more = ["--seed", str(options.seed)]
    if options.max_steps:
        more += ["--max_steps", str(options.max_steps)]
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    set_seed(options.seed)
    try:
        demo(options.runs, load_sums(TEST_SUMS), more, measured=not options.max_steps)
    except DemoFailed as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        print(f"Time: {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
