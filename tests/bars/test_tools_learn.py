"""A tool and an environment, learnt by reward: products with the calculator, and the guessing game.

For each seed, on two idle cores, three minutes with the calculator and eight with the game, by hand:
pytest -s tests/bars/test_tools_learn.py
"""

import json
from pathlib import Path
from typing import Any

import pytest

from examples.demo import checkpoints, load, next_turns
from examples.tools.make import product, schema, user
from tests.ray.conftest import ROOT, curve, train

SFT = ("--config", "examples/tools_sft.yaml", "--report_to", "none")
GAME = ("--data.dataset", "examples/tools/games.jsonl", "--max_length", "160", "--max_steps", "200")
LIMIT_S = 1800
SEEDS = (1, 2, 3)
MAX_CALL_TOKENS = 24
# Of sampled episodes: some that are rewarded, and below what the success before training may be.
START_BAND = (0.04, 0.15)


def share_of_right_answers(checkpoint: Path) -> float:
    """Of products, asked at temperature 1: those that are called for and answered rightly."""
    lines = (ROOT / "examples/tools/products_test.jsonl").read_text().splitlines()
    questions = [json.loads(line)["messages"][0]["content"][:-1] for line in lines]
    model, tokenizer = load(checkpoint)
    tools = [schema("calculator", "expression", "string")]
    chats = [[user(f"{asked}=")] for asked in questions]
    calls = next_turns(model, tokenizer, chats, MAX_CALL_TOKENS, 1, tools)
    # The words around the product are one special token, which is left out of the text.
    called = [asked for asked, call in zip(questions, calls, strict=True) if asked == call]
    rows = [product(*map(int, asked.split("*")))["messages"] for asked in called]
    said = next_turns(model, tokenizer, [row[:-1] for row in rows], MAX_CALL_TOKENS, 1, tools) if rows else []
    return sum(answer == row[-1]["content"] for answer, row in zip(said, rows, strict=True)) / len(questions)


@pytest.fixture(scope="module")
def careless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows how the calculator is called, and hardly ever copies the numbers as they are.

    When a model begins to copy differs from CPU to CPU, so that the checkpoint is looked for.
    """
    run_dir = tmp_path_factory.mktemp("tools") / "run"
    often = ("--save_steps", "5", "--save_total_limit", "60", "--max_steps", "300")
    train("sft", run_dir, *SFT, *often, timeout_s=LIMIT_S)
    low, high = START_BAND
    return next(each for each in checkpoints(run_dir) if low < share_of_right_answers(each) < high)


@pytest.fixture(scope="module")
def guesser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that plays the game badly."""
    run_dir = tmp_path_factory.mktemp("game") / "run"
    train("sft", run_dir, *SFT, *GAME, timeout_s=LIMIT_S)
    return checkpoints(run_dir)[-1]


def learnt(run_dir: Path, config: str, model: Path, seed: int) -> tuple[float, float, dict[str, Any]]:
    """Success on rows that are not trained on, before and after, and the metrics of the last step."""
    flags = ("--config", config, "--model", str(model), "--random_init", "false", "--seed", str(seed))
    train("rlhf", run_dir, *flags, timeout_s=LIMIT_S)
    success = curve(run_dir, "eval_reward")
    last = {key: list(curve(run_dir, f"tools/{key}_frequency").values())[-1] for key in ("call", "failure")}
    print(f"\n{config}, seed {seed}, from {model.name}: {success}, {last}")  # noqa: T201
    return success[min(success)], success[max(success)], last


@pytest.mark.parametrize("seed", SEEDS)
def test_products_are_worked_out_by_the_calculator(seed: int, careless: Path, run_dir: Path) -> None:
    before, after, calls = learnt(run_dir, "examples/tools_grpo.yaml", careless, seed)
    assert before < 0.2
    assert after > 0.8
    assert calls["failure"] < 0.05  # well formed: the calculator could answer


@pytest.mark.parametrize("seed", SEEDS)
def test_the_game_is_won_more_often_than_by_chance(seed: int, guesser: Path, run_dir: Path) -> None:
    before, after, _ = learnt(run_dir, "examples/game_grpo.yaml", guesser, seed)
    assert after - before > 0.3
