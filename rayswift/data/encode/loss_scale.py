"""`data.loss_scale`: weights of parts of an answer, by ms-swift's names and values; pure.

A rule gives weights to the words or patterns of an answer. Weights of several rules multiply. Other text has weight 1.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rayswift.config.schema import LossScale

EMPTY_THOUGHT = r"\s*(?:<think>\s*</think>\s*|<\|channel>thought\n<channel\|>)"
"""An empty block of thoughts, as templates write it before an answer."""


@dataclass(frozen=True)
class _Rule:
    """The weights of one rule.

    words: word -> the weights of the word and of the text from it to the next word; patterns: regular expression ->
    the weight of each match; questions: part of a question -> the weight of the whole answer.
    """

    words: dict[str, tuple[float, float]] = field(default_factory=dict)
    patterns: dict[str, float] = field(default_factory=dict)
    questions: dict[str, float] = field(default_factory=dict)


_REACT = {
    "Action:": (2.0, 2.0),
    "Action Input:": (2.0, 2.0),
    "Thought:": (1.0, 1.0),
    "Final Answer:": (1.0, 1.0),
    "Observation:": (2.0, 0.0),
}
_AGENTFLAN_WORDS = (
    "Name:", "Action:", "ACTION:", "Tool:", "Command", "Arguments:", "action input", "ACTION_INPUT:", "Action Input:",
)  # fmt: skip
_AGENTFLAN_QUESTIONS = (
    "What is the tool you want to use",
    "What are the required parameter names",
    "What is the value of",
    "What are the required parameter names for this tool",
)
_RULES: dict[LossScale, _Rule] = {
    "ignore_empty_think": _Rule(patterns={rf"\A{EMPTY_THOUGHT}": 0.0, r"\A\s*</think>\s*": 0.0}),
    "ignore_think_prefix": _Rule(patterns={r"\A\s*<think>\n?": 0.0}),
    "react": _Rule(words=_REACT),
    "alpha_umi": _Rule(words={**_REACT, "Next:": (2.0, 2.0)}),
    "hermes": _Rule(patterns={r"<tool_call>.+?</tool_call>": 2.0}),
    "qwen": _Rule(
        words={"✿FUNCTION✿:": (2.0, 2.0), "✿ARGS✿:": (2.0, 2.0), "✿RETURN✿:": (1.0, 1.0), "✿RESULT✿:": (2.0, 0.0)}
    ),
    "agentflan": _Rule(
        words={
            **dict.fromkeys(_AGENTFLAN_WORDS, (1.0, 3.0)),
            "Thought:": (1.0, 1.0),
            "Final Answer:": (1.0, 1.0),
            "Observation:": (2.0, 0.0),
        },
        questions=dict.fromkeys(_AGENTFLAN_QUESTIONS, 3.0),
    ),
}
Part = tuple[int, int, float]
"""Characters [begin, end) of an answer, and their weight."""


def scaled(names: Sequence[LossScale], answer: str, question: str) -> list[Part]:
    """The parts of a rendered answer, without its end token, whose weight is not 1, in order.

    names: names of the rules; question: the user's message before the answer.
    """
    found = [_parts(_RULES[name], answer, question) for name in names]
    borders = sorted({border for parts in found for begin, end, _ in parts for border in (begin, end)})
    made = []
    for begin, end in itertools.pairwise(borders):
        weight = 1.0
        for parts in found:
            weight *= next((w for b, e, w in parts if b <= begin and end <= e), 1.0)
        if weight != 1:
            made.append((begin, end, weight))
    return made


def _parts(rule: _Rule, answer: str, question: str) -> list[Part]:
    for words, weight in rule.questions.items():
        if words in question:
            return [(0, len(answer), weight)]
    return list(_by_words(rule, answer) if rule.words else _by_patterns(rule, answer))


def _by_words(rule: _Rule, answer: str) -> Iterator[Part]:
    longest_first = sorted(rule.words, key=len, reverse=True)
    matches = list(re.finditer("|".join(map(re.escape, longest_first)), answer))
    ends = [match.start() for match in matches[1:]] + [len(answer)]
    for match, end in zip(matches, ends, strict=True):
        own, behind = rule.words[match.group()]
        yield match.start(), match.end(), own
        yield match.end(), end, behind


def _by_patterns(rule: _Rule, answer: str) -> Iterator[Part]:
    for pattern, weight in rule.patterns.items():
        for match in re.finditer(pattern, answer, re.DOTALL):
            yield match.start(), match.end(), weight
