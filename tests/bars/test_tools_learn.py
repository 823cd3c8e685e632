"""A tool and an environment, learnt by reward: products through the calculator, a number that is guessed.

Ten minutes for each seed on two idle cores, by hand: pytest -s tests/bars/test_tools_learn.py
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from examples.demo import answer, checkpoints, load
from examples.tools.make import schema
from tests.ray.conftest import ROOT, curve, train

SFT = ("--config", "examples/tools_sft.yaml", "--report_to", "none")
GAME = ("--data.dataset", "examples/tools/games.jsonl", "--max_length", "160", "--max_steps", "200")
LIMIT_S = 1800
SEEDS = (1, 2, 3)
# Sampled calls that are right: below what the success before training may be, which is measured on other samples.
FEW = 0.12


def share_of_right_calls(checkpoint: Path) -> float:
    """Of the first turns, sampled at temperature 1: those that call the calculator with the product that is asked."""
    rows = [json.loads(line) for line in (ROOT / "examples/tools/products_test.jsonl").read_text().splitlines()]
    questions = [row["messages"][0]["content"] for row in rows]
    model, tokenizer = load(checkpoint)
    tools = [schema("calculator", "expression", "string")]
    turns = answer(model, tokenizer, questions, 1, tools=tools, max_new_tokens=24)
    # The words around the product are one special token, which is left out of the text.
    return sum(turn == asked[:-1] for turn, asked in zip(turns, questions, strict=True)) / len(turns)


@pytest.fixture(scope="module")
def careless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows how the calculator is called, and hardly ever copies both numbers into the call.

    When a model begins to copy differs from CPU to CPU: the checkpoint is the last before one that does it often.
    """
    run_dir = tmp_path_factory.mktemp("tools") / "run"
    often = ("--save_steps", "5", "--save_total_limit", "60", "--max_steps", "300")
    train("sft", run_dir, *SFT, *often, timeout_s=LIMIT_S)
    return next(before for before, after in pairwise(checkpoints(run_dir)) if share_of_right_calls(after) > FEW)


@pytest.fixture(scope="module")
def guesser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that plays badly."""
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
