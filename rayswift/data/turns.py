"""A conversation -> the texts to train on, and which characters of each count; pure.

Usually one text. Templates of reasoning models rewrite history: thoughts of earlier answers are left out once another
question follows, so no single text holds every answer as the model has to give it. Then an answer is trained in the
text in which it is the last, one text for each stretch of answers that render alike: each is trained once, behind
exactly what is served before it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rayswift.config.schema import LossOn
from rayswift.data.rows import BadRow, Conversation, Message
from rayswift.data.template import ChatTemplate
from rayswift.data.trace import Trace

_KEPT_PREFIXES = 4
# Up to so many messages, rendering the prefixes costs no more than the trace that spares it.
_UNTRACED_MESSAGES = 4


@dataclass(frozen=True)
class Span:
    """Characters [begin, end) of a text and the loss weight of their tokens, 0 for not trained."""

    begin: int
    end: int
    weight: float = 1.0


Numbers = tuple[tuple[str, float], ...]
"""What a row says to its loss beside tokens, as (name, value): a margin, a label; a name may come several times."""


@dataclass(frozen=True)
class Document:
    """A text to train on; where spans overlap the later counts, and outside of them nothing is trained.

    record: see `encode.EncodedRow`; framed: what the tokenizer puts around any text, as BOS, is put around this one: a
    chat template writes these tokens itself.
    """

    text: str
    spans: tuple[Span, ...]
    numbers: Numbers = ()
    record: str = ""
    framed: bool = False

    @property
    def whole(self) -> bool:
        """Whether every token is trained alike, wherever the characters lie."""
        first = self.spans[0]
        return len(self.spans) == 1 and first.begin == 0 and first.weight == 1 and first.end == len(self.text)


def documents(
    template: ChatTemplate,
    row: Conversation,
    loss_on: LossOn,
    strip_end: Callable[[str], int],
    refuse: Callable[[str, bool, int], None],
) -> list[Document]:
    """The texts of a conversation, each turn to train in exactly one of them.

    Args:
        template: Renders it.
        row: The conversation.
        loss_on: Which turns are trained where the messages themselves say nothing.
        strip_end: Text of a conversation -> where it ends for training, without white space behind an end token.
        refuse: Called with a text, whether all of it is trained alike, and its number of messages, before the turns
            in it are looked for, which takes a rendering for each; may raise.

    Raises:
        BadRow: nothing to train, as `refuse` raises, or the template cannot be trained on this conversation.
    """
    renderer = _Renderer(template, row, strip_end)
    weights = {i: w for i, w in enumerate(_weights(row, loss_on)) if w is not None}
    if loss_on == "all":
        refuse(renderer.text, not weights, len(row.messages))
        spans = (renderer.span(renderer.text, i, w) for i, w in weights.items())
        return [Document(renderer.text, (Span(0, len(renderer.text)), *_all(spans)))]
    todo = {i: w for i, w in weights.items() if w > 0}
    if not todo:
        raise BadRow("no trainable token", "the conversation has no assistant turn to train")
    made: list[Document] = []
    last = len(row.messages) - 1
    while todo:
        text = renderer.until(last)
        refuse(text, False, last + 1)
        found: dict[int, Span] = {}
        # Backwards to where history is rewritten: what is before it has a text of its own.
        for i in sorted(todo, reverse=True):
            span = renderer.span(text, i, todo[i])
            if span is None:
                break
            found[i] = span
        if found:
            made.append(Document(text, tuple(found[i] for i in sorted(found))))
        elif last in todo:
            raise BadRow(
                "chat template cannot be trained",
                f"message {last} is not rendered as a continuation of what the template gives to generate it from; set "
                f"model.chat_template to one that does",
            )
        todo = {i: weight for i, weight in todo.items() if i not in found}
        last = max(todo, default=-1)
    return made[::-1]


def ended(text: str, end: str) -> str:
    """A text with `end` behind it, once."""
    return text if text.endswith(end) else text + end


def joined(row: Conversation, loss_on: LossOn, end: str) -> Document:
    """The contents of a conversation without a chat template, one after the other, and `end` behind the last, once.

    Raises:
        BadRow: nothing to train, or something that only a template has a place for.
    """
    text, spans = "", []
    for position, (message, weight) in enumerate(zip(row.messages, _weights(row, loss_on), strict=True)):
        if "reasoning_content" in message or "tool_calls" in message:
            raise BadRow("needs the chat template", f"message {position} has thoughts or tool calls")
        is_last = position == len(row.messages) - 1
        begin, text = len(text), text + (ended(message["content"], end) if is_last else message["content"])
        spans.append(Span(begin, len(text), 1.0 if weight is None else weight))
    if all(span.weight == 1 for span in spans):
        spans = [Span(0, len(text))]
    if not any(span.weight for span in spans):
        raise BadRow("no trainable token", "the conversation has no message to train")
    return Document(text, tuple(spans), framed=True)


def _all(spans: Iterator[Span | None]) -> list[Span]:
    found = list(spans)
    if any(span is None for span in found):
        raise BadRow(
            "chat template rewrites earlier turns",
            "so messages with a loss of their own cannot be found under loss_on all",
        )
    return [span for span in found if span is not None]


def _weights(row: Conversation, loss_on: LossOn) -> list[float | None]:
    """Loss weight of each message; under `all`, None where the message itself says nothing."""
    roles = [message["role"] for message in row.messages]
    chosen = [role == "assistant" for role in roles]
    if loss_on == "last_turn" and any(chosen):
        last = len(roles) - 1 - roles[::-1].index("assistant")
        # One turn may be several messages: calls of tools, their results, the answer.
        begin = next((i + 1 for i in range(last, -1, -1) if roles[i] == "user"), 0)
        chosen = [chosen[i] and begin <= i <= last for i in range(len(roles))]
    weights: list[float | None] = []
    for own, base in zip(row.losses, chosen, strict=True):
        trained = base if own.trained is None else own.trained
        if loss_on == "all":
            silent = own.trained is None and own.weight == 1
            weights.append(None if silent else own.weight * (own.trained is not False))
        else:
            weights.append(own.weight * trained)
    return weights


class _Renderer:
    """Renders a conversation and its prefixes; the last few are kept, all would be as much as the square of it."""

    def __init__(self, template: ChatTemplate, row: Conversation, strip_end: Callable[[str], int]):
        self._template, self._row, self._strip_end = template, row, strip_end
        self._messages = template.adapted(row.messages)
        self._tools = list(row.tools) if row.tools else None
        self._kept: dict[tuple[int, bool], str] = {}
        self.text = self._render(len(self._messages), generate=False)

    def until(self, index: int) -> str:
        """The conversation up to and with a message."""
        return self.text if index == len(self._messages) - 1 else self._prefix(index + 1, generate=False)

    @cached_property
    def _trace(self) -> Trace | None:
        if len(self._messages) <= _UNTRACED_MESSAGES:
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
        return self._template.render(messages, self._tools, generate, self._row.template_kwargs)

    def span(self, text: str, index: int, weight: float) -> Span | None:
        """Where a message stands in a text that begins with it as it renders last; None if the text does not."""
        until = self.until(index)
        generate = self._row.messages[index]["role"] == "assistant"
        before = self._prefix(index, generate) if index or generate else ""
        if not text.startswith(until) or not until.startswith(before):
            return None
        self._keeps_thoughts(index, until[len(before) :])
        end = self._strip_end(until)
        return Span(len(before), end if end >= len(before) else len(until), weight)

    def _keeps_thoughts(self, index: int, rendered: str) -> None:
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
