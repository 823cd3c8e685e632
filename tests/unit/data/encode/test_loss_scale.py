"""Rules for the loss weight of parts of answers, with ms-swift's names and values."""

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from rayswift.config.checks.task import task_problems
from rayswift.config.load import load
from rayswift.config.schema import LossScale
from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoders import encoder_of
from rayswift.data.encode.loss_scale import scaled
from rayswift.data.rows import BadRow
from tests.support.streams import TINY

TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))
REACT = "Thought: look\nAction: search\nAction Input: x\nObservation: found\nFinal Answer: y"


@pytest.mark.parametrize(
    ("names", "answer", "expected"),
    [
        (["ignore_empty_think"], "<think>\n\n</think>\n\nyes", [("<think>\n\n</think>\n\n", 0.0)]),
        (["ignore_empty_think"], "<think>why</think>yes", []),
        (["ignore_empty_think"], "yes <think></think>", []),
        (["ignore_think_prefix"], "<think>\nwhy</think>yes", [("<think>\n", 0.0)]),
        (["hermes"], "so <tool_call>{}</tool_call> and <tool_call>\n1</tool_call>", [
            ("<tool_call>{}</tool_call>", 2.0),
            ("<tool_call>\n1</tool_call>", 2.0),
        ]),
        (["react"], REACT, [
            ("Action:", 2.0), (" search\n", 2.0), ("Action Input:", 2.0), (" x\n", 2.0), ("Observation:", 2.0),
            (" found\n", 0.0),
        ]),
        (["alpha_umi"], "Next: caller", [("Next:", 2.0), (" caller", 2.0)]),
        (["qwen"], "a✿FUNCTION✿: f\n✿RESULT✿: r", [
            ("✿FUNCTION✿:", 2.0), (" f\n", 2.0), ("✿RESULT✿:", 2.0), (" r", 0.0),
        ]),
        (["agentflan"], "Name: f", [(" f", 3.0)]),
        (["hermes", "react"], "Action: <tool_call>1</tool_call>", [
            ("Action:", 2.0), (" ", 2.0), ("<tool_call>1</tool_call>", 4.0),
        ]),
    ],
)  # fmt: skip
def test_parts(names: list[LossScale], answer: str, expected: list[tuple[str, float]]) -> None:
    assert [(answer[begin:end], weight) for begin, end, weight in scaled(names, answer, "")] == expected


def test_a_question_may_weigh_its_whole_answer() -> None:
    assert scaled(["agentflan"], "search", "What is the tool you want to use?") == [(0, 6, 3.0)]


def encode(messages: list[dict[str, Any]], **options: Any) -> Any:
    family = options.pop("family", "causal")
    (result,) = encoder_of(EncodeConfig(str(TINY), "", 512, family=family, **options)).encode([{"messages": messages}])
    assert not isinstance(result, BadRow), result
    return result[0]


def test_weights_of_tokens() -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "abc Action: def"}]
    document = encode(messages, loss_scale=("react",))
    assert document.weights is not None
    heavy = TOKENIZER.decode(document.input_ids[document.weights == 2].tolist(), skip_special_tokens=False)
    # A token across the border belongs to what is before it.
    assert "Action: def".endswith(heavy)
    assert heavy.endswith("ction: def")
    assert document.weights[-1] == 1  # the end token is no part of the answer
    assert document.trained[-1]


def test_what_a_message_says_itself_counts() -> None:
    for own in ({"loss_scale": 0.5}, {"loss": True}):
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Action: def", **own}]
        document = encode(messages, loss_scale=("react",))
        weights = np.ones(1) if document.weights is None else np.unique(document.weights[document.trained])
        assert weights.tolist() == [own.get("loss_scale", 1.0)]


def test_every_token_and_contents_without_a_template() -> None:
    messages = [{"role": "user", "content": "Action: q"}, {"role": "assistant", "content": "Action: def"}]
    for options in ({"loss_on": "all"}, {"loss_on": "all", "use_chat_template": False}):
        document = encode(messages, loss_scale=("react",), **options)
        assert document.weights is not None
        assert document.trained[1:].all()
        assert (document.weights == 2).sum() < len(document.weights) // 2 + 2  # not the question's


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["sft", "--loss_scale", "react", "--loss_type", "dft"], "weighs tokens, which train.loss_type = dft does not"),
        (["rlhf", "--rlhf_type", "dpo", "--data.loss_scale", "hermes"], "task dpo counts whole answers"),
        (["sft", "--task_type", "embedding", "--ignore_empty_think", "true"], "data.ignore_empty_think has no meaning"),
    ],
)
def test_what_a_loss_cannot_take_is_refused(argv: list[str], wanted: str) -> None:
    verb, *flags = argv
    config = load(verb, ["--model", "m", "--data.dataset", "d.jsonl", *flags]).config
    assert any(wanted in problem for problem in task_problems(config))


def test_preferences_take_what_leaves_out() -> None:
    flags = [
        "--rlhf_type",
        "dpo",
        "--data.loss_scale",
        "ignore_empty_think",
        "--model",
        "m",
        "--data.dataset",
        "d.jsonl",
    ]
    assert task_problems(load("rlhf", flags).config) == []
