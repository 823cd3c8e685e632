"""Find an earlier answer in a longer text, although the template renders it differently there; pure.

Templates of reasoning models write an empty block of thoughts before the last answer, or a token after it, but not for
earlier answers. The answer itself is the same, and so is the text before it, so it can be trained in the longer text.
"""

import re
from collections.abc import Iterator

from rayswift.data.encode.loss_scale import EMPTY_THOUGHT

EndTokens = tuple[str, ...]
"""Special tokens of the tokenizer; some of them end a turn."""
_OPENED = re.compile(r"<think>\s*(?:</think>\s*)?\Z")
_EMPTY = re.compile(EMPTY_THOUGHT)
_THOUGHT = re.compile(r"</think>\s*")


def without_space(text: str, end_tokens: EndTokens) -> int:
    """The end of the trained text: white space after an end token is never generated, so it is not trained."""
    stripped = text.rstrip()
    return len(stripped) if stripped.endswith(end_tokens) else len(text)


def without_end(text: str, end_tokens: EndTokens) -> int:
    """The end of an answer without its end tokens."""
    *_, end = _ends(text, end_tokens)
    return end


def unopened(before: str) -> int:
    """The end of a generation prompt without the block of thoughts that it may open."""
    opened = _OPENED.search(before)
    return opened.start() if opened else len(before)


def standing(answer: str, history: str, end_tokens: EndTokens, any_thoughts: bool) -> int | None:
    """The length of an answer at the begin of `history`, with its end token if both have it; None if it is not there.

    Args:
        answer: The answer as rendered at the end of a conversation, with its end tokens.
        history: A longer text from the begin of that answer on.
        end_tokens: Special tokens of the tokenizer.
        any_thoughts: Whether `history` may lack the answer's thoughts; otherwise only an empty block may be missing.
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
    """Where an answer may begin, after its thoughts."""
    yield from _empty(answer)
    yield from (match.end() for match in _THOUGHT.finditer(answer))
    for token in end_tokens:
        yield from (match.start() for match in re.finditer(re.escape(token), answer))


def _ends(answer: str, end_tokens: EndTokens) -> Iterator[int]:
    """Where an answer may end: after its end tokens, and before each of them."""
    end = len(answer.rstrip())
    yield end
    while token := next((one for one in end_tokens if answer.endswith(one, 0, end)), ""):
        end = len(answer[: end - len(token)].rstrip())
        yield end
