"""Reward models with a plugin: its input and output, and a judge that writes its reward."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rayswift.rollout.rewards import judges
from rayswift.rollout.rewards.functions import Item, RewardSpec, call
from rayswift.rollout.rewards.models import ModelProcess

TINY = Path(__file__).parents[3] / "examples/tiny"
PLUGIN = '''
import torch


class Likelihood:
    """The mean log-probability of a conversation, less the row's cost."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    def __call__(self, inputs):
        found = []
        for row in inputs:
            text = self.tokenizer.apply_chat_template(row["messages"], tokenize=False)
            ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                found.append(-float(self.model(ids, labels=ids).loss) - row["cost"])
        return found
'''
ITEMS = [
    Item([{"role": "user", "content": "What is 3 + 4?"}], {"cost": 0.5}, "7", [1]),
    Item([{"role": "user", "content": "What is 30 + 4?"}], {"cost": 1.0}, "34", [2]),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY)).save_pretrained(tmp_path / "judge")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "judge")
    return tmp_path / "judge"


def test_a_plugin_of_ones_own_reads_conversations_and_columns(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN, encoding="utf-8")
    plugin = f"{tmp_path}/mine.py:Likelihood"
    process = ModelProcess(str(folder), "judge", plugin, True, False, tmp_path / "none", tmp_path)
    process.load()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    expected = []
    for item in ITEMS:
        messages = [*item.messages, {"role": "assistant", "content": item.text}]
        ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), return_tensors="pt")["input_ids"]
        logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        expected.append(logprobs.mean().item() - item.columns["cost"])
    assert process.score(0, ITEMS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("It is right.\nReward: 1", 1.0),
        ("Reward: 0.2, no:\nReward: 0.85", 0.85),
        ("Reward: 1.5", None),
        ("of ten points:\nReward: 10", None),
        ("Reward: 0.5, or rather:\nReward: 8", None),
        ("Reward: high", None),
        ("right", None),
    ],
)
def test_the_reward_that_a_judge_writes(text: str, reward: float | None) -> None:
    assert judges.reward_in(text) == reward


def test_a_judge_is_asked_and_its_answer_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    seen: list[str] = []
    answers = ["Good.\nReward: 0.5", "no idea"]

    def generate(input_ids: Any, **kwargs: Any) -> torch.Tensor:
        """What a model that judges would write."""
        seen.extend(tokenizer.batch_decode(input_ids))
        written = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
        padded = tokenizer.pad({"input_ids": written}, padding_side="right", return_tensors="pt")["input_ids"]
        return torch.cat([input_ids, padded], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    judge = judges.as_function(judges.load(judges.GENERATIVE, model, tokenizer))
    values = call(RewardSpec("judge", "genrm"), judge, ITEMS, True, asyncio.new_event_loop())
    assert values == [0.5, None]
    assert "What is 3 + 4?" in seen[0] and "assistant:\n7" in seen[0]
    assert "assistant:\n34" in seen[1]


def test_a_judge_reads_bounded_batches_and_writes_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it writes of a conversation is what it writes of it alone, also where its positions leave less room."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.generation_config.max_length = None
    judge = judges.GenerativeJudge(model, tokenizer)
    base = len(tokenizer(judge._question([{"role": "user", "content": ""}]), add_special_tokens=False)["input_ids"])
    most_tokens = 4 * (base + 40)
    model.config.max_position_embeddings = base + 40
    monkeypatch.setattr(judges, "_MOST_NEW_TOKENS", 16)
    monkeypatch.setattr(judges, "_MOST_TOKENS", most_tokens)
    answers: list[str] = []
    monkeypatch.setattr(judges, "reward_in", lambda text: answers.append(text) or float(len(answers)))
    shapes: list[tuple[int, int]] = []
    generate = model.generate

    def noted(input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        written: torch.Tensor = generate(input_ids, **kwargs)
        shapes.append((len(written), written.shape[1]))
        return written

    monkeypatch.setattr(model, "generate", noted)
    asked = [{"messages": [{"role": "user", "content": "1" * (7 * number % 30)}]} for number in range(12)]
    # The reward is the number of the answer, so this says which answer is whose.
    together = [answers[int(number or 0) - 1] for number in judge(asked)]
    assert len(shapes) > 3 and max(shapes)[0] > 1
    assert all(rows * tokens <= most_tokens for rows, tokens in shapes)
    answers.clear()
    for each in asked:
        judge([each])
    assert together == answers


def test_a_judge_really_generates(folder: Path) -> None:
    """Random weights write no reward, so there is no opinion; a conversation beyond its positions is an error."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.generation_config.max_length = None
    judge = judges.GenerativeJudge(model, tokenizer)
    model.config.max_position_embeddings = 200
    assert judge([{"messages": [{"role": "user", "content": "-"}]}]) in ([None], [0.0], [1.0])
    with pytest.raises(ValueError, match="the judge has 200 positions"):
        judge([{"messages": [{"role": "user", "content": "1 " * 200}]}])
