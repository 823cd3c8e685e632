"""Calls are parsed like by the parsers of vLLM's server for the same chat templates."""

import json
from typing import Any

import pytest

from rayswift.rollout.episodes.calls import CallFormat, parse

TEXTS: list[tuple[CallFormat, str]] = [
    ("hermes", "12"),
    ("hermes", '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, "x"]}}\n</tool_call>'),
    ("hermes", 'I add.<tool_call>{"name": "add", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "a", "arguments": {}}</tool_call>\n<tool_call>{"name": "b", "arguments": {}}'),
    ("llama3_json", "12"),
    ("llama3_json", '{"name": "add", "parameters": {"a": 1}}'),
    ("llama3_json", '{"name": "add", "parameters": {"a": {"b": 2}}}; {"name": "b", "parameters": {}}'),
    ("llama3_json", '<|python_tag|>{"name": "add", "parameters": {"a": "é"}}'),
    ("mistral", "12"),
    # Its parser takes the older list from Mistral's own tokenizers alone.
    ("mistral", '[TOOL_CALLS]add{"a": 1}[TOOL_CALLS]b{}'),
]


class Tokenizer:
    """As much of one as parsers ask for; all of their marks are tokens."""

    def get_vocab(self) -> dict[str, int]:
        marks = "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]"
        return {mark: number for number, mark in enumerate(marks)}


def vllms(call_format: CallFormat) -> Any:
    from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser
    from vllm.tool_parsers.llama_tool_parser import Llama3JsonToolParser
    from vllm.tool_parsers.mistral_tool_parser import MistralToolParser

    kinds: dict[CallFormat, Any] = {
        "hermes": Hermes2ProToolParser,
        "llama3_json": Llama3JsonToolParser,
        "mistral": MistralToolParser,
    }
    return kinds[call_format](Tokenizer())


@pytest.mark.parametrize(("call_format", "text"), TEXTS)
def test_calls_are_those_that_vllm_finds(call_format: CallFormat, text: str) -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    request = ChatCompletionRequest(messages=[], model="m")
    wanted = vllms(call_format).extract_tool_calls(text, request)
    found = parse(text, call_format)
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in wanted.tool_calls]
    assert [(call.name, dict(call.arguments or {})) for call in found.calls] == calls
    if not calls:
        assert found.content == wanted.content == text
