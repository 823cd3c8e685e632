"""A conversation -> the texts to train on, and the trained characters of each; pure.

Usually there is one text. Templates of reasoning models rewrite history: they remove the thoughts of earlier answers,
so no single text holds every answer as the model has to generate it. Then an answer is trained in the text in which it
is the last one. Each answer is trained once, after exactly the text that precedes it when it is generated. An answer
without thoughts is trained in the later text if it differs there only in what the template writes around it
(`history`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rayswift.config.schema import LossOn, LossScale
from rayswift.data.encode.history import EndTokens, standing, unopened, without_end, without_space
from rayswift.data.encode.loss_scale import scaled
from rayswift.data.encode.message_ends import Trace
from rayswift.data.encode.template import ChatTemplate, merged_turns
from rayswift.data.rows import BadRow, Conversation, Message

_KEPT_PREFIXES = 4
# Up to this number of messages, rendering the prefixes costs no more than tracing.
_UNTRACED_MESSAGES = 4


@dataclass(frozen=True)
class Span:
    """Characters [begin, end) of a text and the loss weight of their tokens; 0: not trained."""

    begin: int
    end: int
    weight: float = 1.0


Numbers = tuple[tuple[str, float], ...]
"""Further inputs of the loss as (name, value), such as a margin or a label; a name may occur several times."""


@dataclass(frozen=True)
class Tokens:
    """ids [T] int32; trained [T] bool."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]


@dataclass(frozen=True)
class Document:
    """A text to train on; where spans overlap the later one counts, and text outside of spans is not trained.

    record: as in `EncodedRow`; framed: whether the tokenizer adds its frame, such as BOS; a chat template writes these
    tokens itself. tokens: the tokens of a row that has tokens and no text. closing: the end of a rendered text, after
    its last content.
    """

    text: str
    spans: tuple[Span, ...]
    numbers: Numbers = ()
    record: str = ""
    framed: bool = False
    tokens: Tokens | None = None
    closing: str = ""

    @property
    def whole(self) -> bool:
        """Whether all tokens are trained with weight 1."""
        if self.tokens is not None:
            return bool(self.tokens.trained[1:].all())
        first = self.spans[0]
        return len(self.spans) == 1 and first.begin == 0 and first.weight == 1 and first.end == len(self.text)


@dataclass(frozen=True)
class Marking:
    """What is trained of a conversation.

    loss_on: the trained turns, unless a message says otherwise; loss_scale: rules for parts of answers; keep_history:
    train all answers in one text, earlier ones as the template renders them there; end_tokens: special tokens of the
    tokenizer.
    """

    loss_on: LossOn
    loss_scale: tuple[LossScale, ...] = ()
    keep_history: bool = False
    end_tokens: EndTokens = ()


def documents(
    template: ChatTemplate,
    row: Conversation,
    marking: Marking,
    refuse: Callable[[str, bool, int], None],
) -> list[Document]:
    """The texts of a conversation; each trained turn is trained in exactly one of them.

    `refuse` is called with a text, whether all of it is trained, and its number of messages. It may raise, before the
    turns of the text are located, which costs a rendering each.

    Raises:
        BadRow: nothing is trained, `refuse` raises, or the template cannot be trained on this conversation.
    """
    try:
        renderer = _Renderer(template, row, marking)
    except BadRow as bad:
        row = merged_turns(row, bad)
        renderer = _Renderer(template, row, marking)
    weights = {i: w for i, w in enumerate(_weights(row, marking)) if w is not None}
    if marking.loss_on == "all":
        refuse(renderer.text, not weights, len(row.messages))
        marked = [renderer.spans(renderer.text, i, w) for i, w in weights.items()]
        return [Document(renderer.text, (Span(0, len(renderer.text)), *_all(marked)))]
    todo = {i: w for i, w in weights.items() if w > 0}
    if not todo:
        raise BadRow("no trainable token", "the conversation has no assistant turn to train")
    made: list[Document] = []
    last = len(row.messages) - 1
    while todo:
        text = renderer.until(last)
        refuse(text, False, last + 1)
        found: dict[int, tuple[Span, ...]] = {}
        # Backwards to the turn where history is rewritten; earlier turns get a text of their own.
        for i in sorted(todo, reverse=True):
            spans = renderer.spans(text, i, todo[i])
            if spans is None:
                break
            found[i] = spans
        if found:
            made.append(Document(text, tuple(span for i in sorted(found) for span in found[i])))
        elif last in todo:
            raise BadRow(
                "chat template cannot be trained",
                f"the rendering of message {last} does not begin with the generation prompt before it; set "
                f"model.chat_template to a template where it does",
            )
        todo = {i: weight for i, weight in todo.items() if i not in found}
        last = max(todo, default=-1)
    return made[::-1]


def ended(text: str, end: str) -> str:
    """A text that ends with `end`."""
    return text if text.endswith(end) else text + end


def joined(row: Conversation, marking: Marking, end: str) -> Document:
    """The contents of a conversation end to end, without a chat template; the text ends with `end`."""
    text, spans = "", []
    for position, (message, weight) in enumerate(zip(row.messages, _weights(row, marking), strict=True)):
        if "reasoning_content" in message or "tool_calls" in message:
            raise BadRow("needs the chat template", f"message {position} has thoughts or tool calls")
        is_last = position == len(row.messages) - 1
        begin, text = len(text), text + (ended(message["content"], end) if is_last else message["content"])
        spans.append(Span(begin, len(text), 1.0 if weight is None else weight))
        if _is_scaled(row, position, marking) and weight != 0:
            spans += _scaled(row, position, marking, message["content"], spans[-1])
    if all(span.weight == 1 for span in spans):
        spans = [Span(0, len(text))]
    if not any(span.weight for span in spans):
        raise BadRow("no trainable token", "the conversation has no message to train")
    return Document(text, tuple(spans), framed=True)


def _all(marked: Sequence[tuple[Span, ...] | None]) -> list[Span]:
    if any(spans is None for spans in marked):
        raise BadRow(
            "chat template rewrites earlier turns",
            "so messages with a loss of their own cannot be located with data.loss_on all",
        )
    return [span for spans in marked for span in spans or ()]


def _weights(row: Conversation, marking: Marking) -> list[float | None]:
    """Loss weight of each message; with loss_on `all`, None for messages without a loss of their own or a rule."""
    roles = [message["role"] for message in row.messages]
    chosen = [role == "assistant" and not loss.asked for role, loss in zip(roles, row.losses, strict=True)]
    if marking.loss_on == "last_turn" and any(chosen):
        last = len(roles) - 1 - roles[::-1].index("assistant")
        # A turn may be several messages: tool calls, their results, the answer.
        begin = next((i + 1 for i in range(last, -1, -1) if roles[i] == "user"), 0)
        chosen = [chosen[i] and begin <= i <= last for i in range(len(roles))]
    weights: list[float | None] = []
    for position, (own, base) in enumerate(zip(row.losses, chosen, strict=True)):
        trained = base if own.trained is None else own.trained
        if marking.loss_on == "all":
            silent = own.trained is None and own.weight == 1 and not _is_scaled(row, position, marking)
            weights.append(None if silent else own.weight * (own.trained is not False))
        else:
            weights.append(own.weight * trained)
    return weights


def _is_scaled(row: Conversation, position: int, marking: Marking) -> bool:
    """Whether loss_scale applies to a message: an answer without a loss of its own."""
    own = row.losses[position]
    is_silent = own.trained is None and own.weight == 1
    return bool(marking.loss_scale) and is_silent and row.messages[position]["role"] == "assistant"


def _scaled(row: Conversation, position: int, marking: Marking, answer: str, whole: Span) -> list[Span]:
    """The parts of an answer that differ in weight from `whole`, its span."""
    asked = (m["content"] for m in reversed(row.messages[:position]) if m["role"] == "user")
    parts = scaled(marking.loss_scale, answer, next(asked, ""))
    return [Span(whole.begin + begin, whole.begin + end, whole.weight * weight) for begin, end, weight in parts]


class _Renderer:
    """Renders a conversation and its prefixes; only the last few texts are kept, to bound memory."""

    def __init__(self, template: ChatTemplate, row: Conversation, marking: Marking):
        self._template, self._row, self._marking = template, row, marking
        self._messages = template.adapted(row.messages)
        self._tools = list(row.tools) if row.tools else None
        self._kept: dict[tuple[int, bool], str] = {}
        self.text = self._render(len(self._messages), generate=False)
        template.check([message for message in row.messages if message["role"] == "user"], self.text)

    def until(self, index: int) -> str:
        """The text up to and with a message; an answer follows its generation prompt, if it can be found."""
        text = self.text if index == len(self._messages) - 1 else self._prefix(index + 1, generate=False)
        if index < 2 or self._row.messages[index]["role"] != "assistant":
            return text
        before = self._prefix(index, generate=True)
        return text if text.startswith(before[: unopened(before)]) else self._served(index, text, before)

    def _served(self, index: int, text: str, before: str) -> str:
        """The text of an answer because of which the template leaves out what it has shown before, as gpt-oss does with
        the thoughts of calls: the answer behind the generation prompt that it is generated from."""
        asked, earlier = self._prefix(index, generate=False), self._prefix(index - 1, generate=False)
        if not (asked.startswith(earlier) and before.startswith(asked)):
            return text
        _, found, answer = text.rpartition(before[len(earlier) :])
        return before + answer if found else text

    @cached_property
    def _trace(self) -> Trace | None:
        if len(self._messages) <= _UNTRACED_MESSAGES or self._template.cuts(self._messages):
            return None
        trace = self._template.trace(self._messages, self._tools, self._row.template_kwargs)
        return trace if trace and trace.text == self.text else None

    def _prefix(self, length: int, generate: bool) -> str:
        if self._trace and (end := self._trace.ends[length]) is not None:
            return self.text[:end] + (self._trace.generation if generate else "")
        key = length, generate
        if key not in self._kept:
            if len(self._kept) == _KEPT_PREFIXES:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = self._render(length, generate)
        return self._kept[key]

    def _render(self, length: int, generate: bool) -> str:
        messages: Sequence[Message] = self._messages[:length]
        if not generate:
            return self._template.render_answer(messages, self._tools, self._row.template_kwargs)
        return self._template.render(messages, self._tools, True, self._row.template_kwargs)

    def spans(self, text: str, index: int, weight: float) -> tuple[Span, ...] | None:
        """The span of a message in a text, and those of its parts with another weight; None if the text lacks it."""
        span = self._span(text, index, weight)
        if span is None:
            return None
        if not _is_scaled(self._row, index, self._marking):
            return (span,)
        answer = text[span.begin : span.end]
        words = answer[: without_end(answer, self._marking.end_tokens)]
        return span, *_scaled(self._row, index, self._marking, words, span)

    def _span(self, text: str, index: int, weight: float) -> Span | None:
        is_answer = self._row.messages[index]["role"] == "assistant"
        if not index and is_answer and not self._renders_opening:
            return self._opening(text, weight)
        until = self.until(index)
        before = self._prefix(index, generate=is_answer) if index or is_answer else ""
        begin = len(before)
        if is_answer and not (until.startswith(before) and text.startswith(until)):
            begin = unopened(before)
        if not until.startswith(before[:begin]):
            return None
        if text.startswith(until):
            self._keeps_words(index, until[begin:])
            end = without_space(until, self._marking.end_tokens)
            return Span(begin, end if end >= begin else len(until), weight)
        if not is_answer or not text.startswith(before[:begin]):
            return None
        answer, history = until[begin:], text[begin:]
        length = standing(answer, history, self._marking.end_tokens, self._marking.keep_history)
        return None if length is None else Span(begin, begin + length, weight)

    @cached_property
    def _renders_opening(self) -> bool:
        """Whether the first message alone is rendered as what follows the rendering of no message.

        Many templates read the first message, or ask for a question, whatever they are given.
        """
        try:
            return self.until(0).startswith(self._prefix(0, generate=True))
        except BadRow:
            return False

    def _opening(self, text: str, weight: float) -> Span | None:
        """The span of an answer that begins the conversation, found by what opens any answer, and by its words."""
        message = self._row.messages[0]
        header = self._template.opening(self._tools, self._row.template_kwargs)
        header, words = header[: unopened(header)], message["content"].strip()
        begin = text.find(header) + len(header)
        at = text.find(words, begin)
        is_found = header and words and len(header) <= begin <= at and header not in text[begin:at]
        if not is_found or not {"tool_calls", "reasoning_content"}.isdisjoint(message):
            return None
        end = at + len(words)
        behind = text[end:].lstrip()
        token = next((one for one in self._marking.end_tokens if behind.startswith(one)), "")
        return Span(begin, len(text) - len(behind) + len(token) if token else end, weight)

    def _keeps_words(self, index: int, rendered: str) -> None:
        """Raise if the template does not render all of an answer even if it is the last message."""
        message = self._row.messages[index]
        thoughts = [message["reasoning_content"]] if "reasoning_content" in message else []
        if "</think>" in message["content"]:
            thoughts.append(message["content"].partition("</think>")[0].rpartition("<think>")[2])
        if any(thought.strip() not in rendered for thought in thoughts):
            raise BadRow(
                "chat template drops thoughts",
                f"those of message {index} are not rendered even when it is the last; set model.chat_template to one "
                f"that keeps them, or take them out of the rows",
            )
        self._template.check([message], rendered, index)
