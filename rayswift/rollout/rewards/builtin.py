"""The built-in rewards, pure: one number for each completion, called as any reward function (see README.md).

A completion is its text, or a list of messages, the last of which is judged. Names and parameters are ms-swift's.
Formulas are those of TRL's `trl.rewards`, except where a policy could earn reward without a right answer.
"""

import functools
import logging
import math
import re
import threading
import time
from collections.abc import Sequence
from typing import Any

from rayswift.rollout.rewards.stated_numbers import answers, boxes, is_answer, reference_number

Completions = Sequence[Any]
Ids = Sequence[Sequence[int]]

# Something that is not blank, with none of the tags in it.
_SOMETHING = r"(?!\s*</)(?:(?!</?think>|</?answer>).)*"
_FORMAT = re.compile(rf"<think>{_SOMETHING}</think>\s*<answer>{_SOMETHING}</answer>\s*", re.DOTALL)
_THINK_FORMAT = re.compile(
    r"<think>(?!\s*</)(?:(?!</?think>).)*</think>\s*(?!</?think>)\S(?:(?!</?think>).)*", re.DOTALL
)
_TAGS = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")
_PARSE_S, _VERIFY_S = 10, 5
# Marks that distinguish mathematics from words.
_DOLLARS = re.compile(r"\$|\\[(\[]")
_MARK = re.compile(r"\$|\\[a-zA-Z(\[]")
_COMMAND = re.compile(r"\\[a-zA-Z]+(?:\{[a-zA-Z ]*\})?")
_WORD = re.compile(r"[^\W\d_]{3,}")
_FUNCTIONS = {"sin", "cos", "tan", "log", "exp", "sqrt"}
# math-verify takes milliseconds an answer. What is kept of it, in each process: some megabytes.
_SLOW_S = 1.0
_MOST_KEPT, _MOST_CHARS_KEPT = 8192, 2048


def text_of(completion: Any) -> str:
    """The text of a completion."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def accuracy(
    completions: Completions, solution: Sequence[Any] | None = None, answer: Sequence[Any] | None = None
) -> list[float]:
    r"""1 if the completion's answer is the row's `solution` (or, without that column, its `answer`), else 0.

    If the solution is a number, the answer must be one: the boxed number, or else the last stated one, without an
    expression to evaluate or numbers to choose from (see `stated_numbers.is_answer`). An expression is compared by
    math-verify: each box, or else the last expression after the thoughts, inside `<answer>` or after `####`. Any other
    solution must be the same text, as a whole or in every box.

    Raises:
        ValueError: a row has neither column.
    """
    golds = _golds(len(completions), solution, answer)
    return [float(_is_right(text_of(one), gold)) for one, gold in zip(completions, golds, strict=True)]


def format(completions: Completions) -> list[float]:
    """1 for `<think>...</think> <answer>...</answer>` and nothing else, each tag once and neither part blank."""
    return [float(bool(_FORMAT.fullmatch(text_of(one)))) for one in completions]


def think_format(completions: Completions) -> list[float]:
    """1 for one `<think>...</think>` and an answer after it, neither of them blank."""
    return [float(bool(_THINK_FORMAT.fullmatch(text_of(one)))) for one in completions]


def tag_count(completions: Completions) -> list[float]:
    """A quarter for each of the four tags of `format` that is there exactly once, on its own line, as in Open-R1.

    Tags count in their order; a closing tag counts only if its element is not blank.
    """
    return [_tag_count(text_of(one)) for one in completions]


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
        min_len_value_wrong: Reward of a wrong answer of length 0.
        max_len_value_wrong: Reward of a wrong answer of full length.
        min_len_value_correct: Reward of a right answer of length 0.
        max_len_value_correct: Reward of a right answer of full length.
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


def _tag_count(text: str) -> float:
    count, end = 0, 0
    for tag in _TAGS:
        at = text.find(tag)
        if text.count(tag) != 1 or at + 1 < end:  # a line's end may belong to two tags
            continue
        is_closing = "/" in tag
        opening = text.rfind(tag.strip().replace("/", ""), 0, at) if is_closing else -1
        if is_closing and (opening < 0 or not text[opening + len(tag.strip()) - 1 : at].strip()):
            continue
        count, end = count + 1, at + len(tag)
    return count / len(_TAGS)


def _is_right(text: str, gold: str) -> bool:
    number = reference_number(gold)
    if number is not None:
        return is_answer(text, number)
    wanted = answers(gold)[-1]
    wanted = (boxes(wanted) or [wanted])[-1]
    given = [one for part in answers(text) for one in boxes(part) or [part]]
    return all(_is_met(one, wanted) for one in dict.fromkeys(given))


def _is_met(given: str, wanted: str) -> bool:
    return given == wanted or (_is_mathematics(wanted) and _is_equal_mathematics(_marked(given), _marked(wanted)))


def _is_mathematics(text: str) -> bool:
    return _MARK.search(text) is not None or not (set(_WORD.findall(text.lower())) - _FUNCTIONS)


def _marked(text: str) -> str:
    """Put bare LaTeX between dollars; otherwise math-verify finds only its last number."""
    return text if _DOLLARS.search(text) or _WORD.search(_COMMAND.sub("", text)) else f"${text}$"


class _Slow(Exception):
    """A judgement that took so long that a deadline may have ended it; it is not cached."""

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
    """Judge an answer; cached, because short answers repeat within a group and in later epochs."""
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
        normalization_config=NormalizationConfig(units=True), boxed_match_priority=0, try_extract_without_anchor=True
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
