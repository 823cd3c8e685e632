"""The canonical rows, one type per row family."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
"""A message for a chat template: role, content, and optionally name, tool_calls, tool_call_id, reasoning_content."""

Label = int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]


@dataclass(frozen=True)
class MessageLoss:
    """The loss that a row sets for one message.

    trained: True or False overrides `data.loss_on`, None does not; weight: factor of its loss, at least 0; asked: it is
    part of a prompt, which only `data.loss_on all` trains.
    """

    trained: bool | None = None
    weight: float = 1.0
    asked: bool = False


@dataclass(frozen=True)
class Conversation:
    """Messages, a `MessageLoss` for each, the tools offered, and further variables for the chat template."""

    messages: tuple[Message, ...]
    losses: tuple[MessageLoss, ...]
    tools: tuple[Any, ...] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CausalRow:
    """For pt and sft: a conversation, a text that is trained unchanged, or segments of text, each trained or not."""

    conversation: Conversation | None = None
    text: str | None = None
    segments: tuple[tuple[str, bool], ...] | None = None


@dataclass(frozen=True)
class PreferenceRow:
    """For dpo, orpo, cpo, simpo and rm: a chosen conversation and one or more rejected ones.

    margin: difference of the rewards of chosen and rejected; None if unknown.
    """

    chosen: Conversation
    rejected: tuple[Conversation, ...]
    margin: float | None = None


@dataclass(frozen=True)
class KtoRow:
    """For kto: a conversation, or the two of a pair, each with whether its last answer is desirable."""

    judged: tuple[tuple[Conversation, bool], ...]


@dataclass(frozen=True)
class EmbeddingRow:
    """For embedding: an anchor, texts like it, texts unlike it; label: similarity of anchor and positive, or None."""

    anchor: Conversation
    positives: tuple[Conversation, ...]
    negatives: tuple[Conversation, ...] = ()
    label: float | None = None


@dataclass(frozen=True)
class RerankerRow:
    """For reranker and generative_reranker: a query, documents that fit it, documents that do not; one at least."""

    query: Conversation
    positives: tuple[Conversation, ...]
    negatives: tuple[Conversation, ...] = ()


@dataclass(frozen=True)
class ClassificationRow:
    """For seq_cls; the label is one or more classes (their numbers or names), or one or more values (float)."""

    conversation: Conversation
    label: Label


@dataclass(frozen=True)
class PromptRow:
    """For grpo, ppo and gkd: a conversation without an answer.

    answer: the answer at the end of the row's conversation, None if there is none, and reply: the whole message;
    columns: all other columns, for rewards.
    """

    prompt: Conversation
    answer: str | None
    columns: Mapping[str, Any]
    reply: Message | None = None
