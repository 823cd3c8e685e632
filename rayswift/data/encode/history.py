"""Where an answer stands in a text that goes on behind it, although the template renders it otherwise there; pure.

Reasoning models' templates write an empty block of thoughts before the last answer, or a token behind it, that earlier
answers do not get. The answer itself is the same, and so is all before it: it can be trained where it stands.
"""

import re
from collections.abc import Iterator

from rayswift.data.encode.loss_scale import EMPTY_THOUGHT

EndTokens = tuple[str, ...]
"""Special tokens, of which some end a turn."""
_OPENED = re.compile(r"<think>\s*(?:</think>\s*)?\Z")
_EMPTY = re.compile(EMPTY_THOUGHT)
_THOUGHT = re.compile(r"</think>\s*")


def without_tail(text: str, end_tokens: EndTokens) -> int:
    """Where a text ends for training: white space behind an end token is never generated, so never trained."""
    stripped = text.rstrip()
    return len(stripped) if stripped.endswith(end_tokens) else len(text)


def without_end(text: str, end_tokens: EndTokens) -> int:
    """Where the words of an answer end, before the tokens that end it."""
    *_, end = _ends(text, end_tokens)
    return end


def unopened(before: str) -> int:
    """Where the turn begins that a generation prompt opens, without the thought that it opens too."""
    opened = _OPENED.search(before)
    return opened.start() if opened else len(before)


def standing(answer: str, history: str, end_tokens: EndTokens, any_thoughts: bool) -> int | None:
    """How many characters of `history` are an answer.

    Args:
        answer: The answer as it is rendered last, with what ends it.
        history: A text from where that answer begins on.
        end_tokens: Special tokens of the tokenizer.
        any_thoughts: Whether `history` may lack thoughts of the answer; else only an empty block of them.

    Returns:
        Its length, with its end token where both have the same; None if another answer stands there.
    """
    for skip in _beginnings(answer, end_tokens) if any_thoughts else _empty(answer):
        for end in _ends(answer, end_tokens):
            part = answer[skip:end]
            if end <= skip or not history.startswith(part):
                continue
            if part.endswith(end_tokens) or history[len(part) :].lstrip().startswith(end_tokens):
                return len(part)
    return None


def _empty(answer: str) -> Iterator[int]:
    yield 0
    if empty := _EMPTY.match(answer):
        yield empty.end()


def _beginnings(answer: str, end_tokens: EndTokens) -> Iterator[int]:
    """Where an answer may begin behind its thoughts."""
    yield from _empty(answer)
    yield from (match.end() for match in _THOUGHT.finditer(answer))
    for token in end_tokens:
        yield from (match.start() for match in re.finditer(re.escape(token), answer))


def _ends(answer: str, end_tokens: EndTokens) -> Iterator[int]:
    """Where an answer may end: behind the tokens that end it, and before each of these."""
    end = len(answer.rstrip())
    yield end
    while token := next((one for one in end_tokens if answer.endswith(one, 0, end)), ""):
        end = len(answer[: end - len(token)].rstrip())
        yield end
