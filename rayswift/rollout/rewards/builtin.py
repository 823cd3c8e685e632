"""The built-in rewards, pure: one number for each completion, called as any reward function (see README.md).

A completion is its text, or a list of messages of which the last is it. Names and parameters are ms-swift's; formulas
are those of TRL's `trl.rewards`, where it has them.
"""

import functools
import logging
import math
import re
import threading
import time
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

Completions = Sequence[Any]
Ids = Sequence[Sequence[int]]

_FORMAT = re.compile(r"^<think>.*?</think>\s*<answer>.*?</answer>(?![\s\S])", re.DOTALL | re.MULTILINE)
_THINK_FORMAT = re.compile(r"^<think>(?!.*<think>)(.*?)</think>.*$", re.DOTALL | re.MULTILINE)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?")
_TAGS = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")
_PARSE_S, _VERIFY_S = 10, 5
# math-verify takes milliseconds an answer. What is kept of it, in each process: some megabytes.
_SLOW_S = 1.0
_MOST_KEPT, _MOST_CHARS_KEPT = 8192, 2048


def text_of(completion: Any) -> str:
    """The text of a completion."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def accuracy(
    completions: Completions, solution: Sequence[Any] | None = None, answer: Sequence[Any] | None = None
) -> list[float]:
    """1 if the completion's answer is the row's `solution` (or, without that column, its `answer`), else 0.

    Compared is what stands behind the thoughts, inside `<answer>` tags and behind `####`, where there are any: as
    text, as a number, then by math-verify, the last boxed or otherwise marked expression first. A solution that is no
    mathematics must be met to the letter.

    Raises:
        ValueError: a row has neither column.
    """
    golds = _golds(len(completions), solution, answer)
    return [float(_is_right(_final(text_of(one)), _final(gold))) for one, gold in zip(completions, golds, strict=True)]


def format(completions: Completions) -> list[float]:
    """1 for `<think>...</think> <answer>...</answer>` and nothing else, as ms-swift's."""
    return [float(bool(_FORMAT.match(text_of(one)))) for one in completions]


def think_format(completions: Completions) -> list[float]:
    """1 for one `<think>...</think>` and an answer behind it, as TRL's `think_format_reward`."""
    return [float(bool(_THINK_FORMAT.match(text_of(one)))) for one in completions]


def tag_count(completions: Completions) -> list[float]:
    """A quarter for each of the four tags of `format` that stands exactly once, on its own line, as Open-R1's."""
    return [sum(0.25 for tag in _TAGS if text_of(one).count(tag) == 1) for one in completions]


def cosine(
    completions: Completions,
    completion_ids: Ids,
    solution: Sequence[Any] | None = None,
    answer: Sequence[Any] | None = None,
    *,
    max_len: int,
    min_len_value_wrong: float = -0.5,
    max_len_value_wrong: float = 0.0,
    min_len_value_correct: float = 1.0,
    max_len_value_correct: float = 0.5,
) -> list[float]:
    """Accuracy that falls with length for right answers and rises for wrong ones (arXiv 2502.03373, appendix C.1).

    Args:
        completions: See module.
        completion_ids: Their tokens.
        solution: See `accuracy`.
        answer: See `accuracy`.
        max_len: Tokens at which the `max_len_...` values are reached; beyond it they stay.
        min_len_value_wrong: Of a wrong answer of no length.
        max_len_value_wrong: Of a wrong answer of full length.
        min_len_value_correct: Of a right answer of no length.
        max_len_value_correct: Of a right answer of full length.
    """
    found = []
    for right, ids in zip(accuracy(completions, solution, answer), completion_ids, strict=True):
        shortest, longest = (
            (min_len_value_correct, max_len_value_correct) if right else (min_len_value_wrong, max_len_value_wrong)
        )
        share = min(len(ids) / max_len, 1.0)
        found.append(longest + 0.5 * (shortest - longest) * (1 + math.cos(math.pi * share)))
    return found


def repetition(completion_ids: Ids, *, n_grams: int = 3, max_penalty: float = -1.0) -> list[float]:
    """`max_penalty` times the share of n-grams of tokens that repeat an earlier one (arXiv 2502.03373, C.2)."""
    found = []
    for ids in completion_ids:
        grams = list(zip(*(ids[i:] for i in range(n_grams)), strict=False))
        found.append(max_penalty * (1 - len(set(grams)) / len(grams)) if grams else 0.0)
    return found


def soft_overlong(completion_ids: Ids, *, max_length: int, cache_length: int) -> list[float]:
    """0 up to `max_length - cache_length` tokens, then falling to -1 at `max_length` (arXiv 2503.14476, eq. 13)."""
    free = max_length - cache_length
    return [max(-1.0, min(0.0, (free - len(ids)) / cache_length)) for ids in completion_ids]


BUILT_IN = {
    "accuracy": accuracy,
    "format": format,
    "think_format": think_format,
    "tag_count": tag_count,
    "cosine": cosine,
    "repetition": repetition,
    "soft_overlong": soft_overlong,
}


def _golds(number: int, solution: Sequence[Any] | None, answer: Sequence[Any] | None) -> list[str]:
    nothing: Sequence[Any] = [None] * number
    found = [a if s is None else s for s, a in zip(solution or nothing, answer or nothing, strict=True)]
    if any(gold is None for gold in found):
        raise ValueError("a row has neither a column `solution` nor `answer`; map yours with data.columns")
    return [str(gold) for gold in found]


def _final(text: str) -> str:
    """What of a text is its answer."""
    text = text.rpartition("</think>")[2]
    tagged = _ANSWER.findall(text)
    return (tagged[-1] if tagged else text).rpartition("####")[2].strip()


def _is_right(given: str, gold: str) -> bool:
    if given == gold:
        return True
    numbers = _number(given), _number(gold)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return _is_equal_mathematics(given, gold)


def _number(text: str) -> Decimal | None:
    if not _NUMBER.fullmatch(text):
        return None
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None


class _Slow(Exception):
    """What took so long that a deadline may have cut it off: it is not kept for the next time."""

    def __init__(self, found: Any):
        super().__init__()
        self.found = found


def _is_equal_mathematics(given: str, gold: str) -> bool:
    # Its deadlines are signals, which only the main thread gets; elsewhere it has none, and says so each time.
    in_main = threading.current_thread() is threading.main_thread()
    for name in () if in_main else ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
    is_equal = _verdict if len(given) <= _MOST_CHARS_KEPT else _verdict.__wrapped__
    try:
        return is_equal(given, gold, in_main)
    except _Slow as slow:
        return bool(slow.found)


@functools.lru_cache(_MOST_KEPT)
def _verdict(given: str, gold: str, has_deadlines: bool) -> bool:
    """Short answers come again and again: of a group, and of a prompt in the next epoch."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    began = time.monotonic()
    try:
        wanted = _parsed_gold(gold, has_deadlines)
    except _Slow as slow:
        wanted = slow.found
    if not wanted:
        return _unless_slow(began, False)
    latex = LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True), boxed_match_priority=0, try_extract_without_anchor=False
    )
    found = parse(
        given,
        extraction_config=[latex, ExprExtractionConfig()],
        extraction_mode="first_match",
        parsing_timeout=_PARSE_S if has_deadlines else None,
    )
    return _unless_slow(began, bool(verify(wanted, found, timeout_seconds=_VERIFY_S if has_deadlines else None)))


@functools.lru_cache(_MOST_KEPT)
def _parsed_gold(gold: str, has_deadlines: bool) -> Any:
    from math_verify import parse

    began = time.monotonic()
    return _unless_slow(began, parse(gold, parsing_timeout=_PARSE_S if has_deadlines else None))


def _unless_slow(began: float, found: Any) -> Any:
    if time.monotonic() - began > _SLOW_S:
        raise _Slow(found)
    return found
