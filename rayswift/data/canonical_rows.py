"""The canonical rows, one type per family of tasks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
"""As chat templates take it: role, content, and where they apply name, tool_calls, tool_call_id, reasoning_content."""


Label = int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]


@dataclass(frozen=True)
class MessageLoss:
    """What a row says about the loss of one message.

    trained: True or False overrides `data.loss_on`, None leaves it the choice; weight: multiplies the loss of its
    tokens, 0 or more.
    """

    trained: bool | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Conversation:
    """Messages, one `MessageLoss` for each, the tools that are offered, and what else the chat template is given."""

    messages: tuple[Message, ...]
    losses: tuple[MessageLoss, ...]
    tools: tuple[Any, ...] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CausalRow:
    """For pt and sft: a conversation, text that is trained as it stands, or segments of text, each trained or not."""

    conversation: Conversation | None = None
    text: str | None = None
    segments: tuple[tuple[str, bool], ...] | None = None


@dataclass(frozen=True)
class PreferenceRow:
    """For dpo, orpo, cpo, simpo and rm: a conversation, and one or more that are worse, each differing from it.

    margin: by how much the chosen one is better, in units of reward; None if unknown.
    """

    chosen: Conversation
    rejected: tuple[Conversation, ...]
    margin: float | None = None


@dataclass(frozen=True)
class KtoRow:
    """For kto: conversations, each with whether its last answer is wanted: one, or the two of a pair."""

    judged: tuple[tuple[Conversation, bool], ...]


@dataclass(frozen=True)
class EmbeddingRow:
    """For embedding: an anchor, what is like it, what is not; label: similarity of anchor and positive, or None."""

    anchor: Conversation
    positives: tuple[Conversation, ...]
    negatives: tuple[Conversation, ...] = ()
    label: float | None = None


@dataclass(frozen=True)
class RerankerRow:
    """For reranker and generative_reranker: a query, documents that answer it, documents that do not; one at least."""

    query: Conversation
    positives: tuple[Conversation, ...]
    negatives: tuple[Conversation, ...] = ()


@dataclass(frozen=True)
class ClassificationRow:
    """For seq_cls: a class (its number or its name), several, a value (float) or several."""

    conversation: Conversation
    label: Label


@dataclass(frozen=True)
class PromptRow:
    """For grpo, ppo and gkd: a conversation that awaits an answer.

    answer: the one that the row had behind it, None if it ended there, and reply: the whole message; columns: all other
    columns under their own names, for rewards.
    """

    prompt: Conversation
    answer: str | None
    columns: Mapping[str, Any]
    reply: Message | None = None
