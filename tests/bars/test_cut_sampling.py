"""GRPO whose engines cut the distribution (top_p, top_k) learns as one without cuts: sums, three seeds.

Some 15 minutes, by hand: pytest -s tests/bars/test_cut_sampling.py; it prints a table.
"""

from pathlib import Path
from statistics import mean

from examples.demo import TEST_SUMS, accuracy, choose_start, greedy_answers, load_sums, sampled_accuracy
from tests.ray.conftest import start

SEEDS = (1, 2, 3)
CUTS = {"whole": (), "cut": ("--top_p", "0.9", "--top_k", "50")}
STEPS = 160
# Two answers of 500 that differ by chance: a standard error of sqrt(0.25 / 500) is 2.2 points.
CHANCE = 0.05
TIMEOUT_S = 1800


def train(verb: str, run: Path, *flags: str) -> None:
    code, out = start(verb, run, *flags).wait(TIMEOUT_S)
    assert code == 0, out


def test_cut_distributions_learn_as_whole_ones(tmp_path: Path) -> None:
    sums = load_sums(TEST_SUMS)
    sft = tmp_path / "sft"
    train("sft", sft, "--config", "examples/sums_sft.yaml", "--save_steps", "40", "--save_total_limit", "1000")
    begin, sampled_before = choose_start([sft], sums)
    greedy_before = accuracy(greedy_answers(begin, sums), sums)
    print(f"\nstart: {greedy_before:.1%} greedy, {sampled_before:.1%} sampled")  # noqa: T201
    print("sampling | seed | greedy | sampled")  # noqa: T201
    greedy: dict[str, list[float]] = {name: [] for name in CUTS}
    for seed in SEEDS:
        for name, cuts in CUTS.items():
            run = tmp_path / f"{name}-{seed}"
            steps = ("--max_steps", str(STEPS), "--save_steps", str(STEPS), "--eval_strategy", "no")
            model = ("--model", str(begin), "--random_init", "false", "--learning_rate", "3e-4")
            train("rlhf", run, "--config", "examples/sums_grpo.yaml", *model, *steps, *cuts, "--seed", str(seed))
            last = run / f"checkpoint-{STEPS}"
            greedy[name].append(accuracy(greedy_answers(last, sums), sums))
            sampled = sampled_accuracy(last, sums)
            print(f"{name} | {seed} | {greedy[name][-1]:.1%} | {sampled:.1%}", flush=True)  # noqa: T201
    assert min(greedy["cut"]) > greedy_before + CHANCE
    assert mean(greedy["cut"]) > min(greedy["whole"]) - CHANCE
