"""What a row looks like, by its columns."""

from collections.abc import Mapping
from typing import Any

from rayswift.data.rows.columns import QUERY, RESPONSE, BadRow, Row, as_list, messages_column, one_of, renamed

WANTED = (
    "messages; conversations; prompt + completion; instruction (+ input) + output; "
    "query | question + response | answer (+ history, system); text"
)
REJECTED = ("rejected", "rejected_response", "rejected_messages")
ANCHOR = ("anchor", "sentence1")
POSITIVE = ("positive", "positives", "sentence2")
NEGATIVE = ("negative", "negatives")


def causal_format(row: Row) -> str | None:
    """messages | sharegpt | prompt_completion | alpaca | query_response | text: the first that `row` has all of.

    Raises:
        BadRow: two columns could be one part of it.
    """
    if column := messages_column(row):
        first = next(iter(row[column]), None) if isinstance(row[column], list | tuple) else None
        return "sharegpt" if isinstance(first, Mapping) and "from" in first else "messages"
    if "prompt" in row and "completion" in row:
        return "prompt_completion"
    if "instruction" in row and "output" in row:
        return "alpaca"
    if one_of(row, QUERY) and one_of(row, RESPONSE):
        return "query_response"
    return "text" if "text" in row else None


def format_of(row: Any, columns: Mapping[str, str] | None = None) -> str:
    """The name of a row's format, for people: a causal one, preference, kto, embedding, reranker, classification,
    prompt, ambiguous or unknown; it says nothing on whether the values are right. Never raises."""
    try:
        return _format_of(renamed(row, columns or {}))
    except BadRow as bad:
        return "ambiguous" if bad.reason == "ambiguous columns" else "unknown"


def _format_of(row: Row) -> str:
    if "input_ids" in row:
        return "tokens"
    if any(name in row for name in REJECTED):
        return "preference"
    if "positive_messages" in row or "negative_messages" in row:
        return "reranker" if _holds_answers(row.get("positive_messages", row.get("negative_messages"))) else "embedding"
    if any(name in row for name in (*ANCHOR, *POSITIVE, *NEGATIVE)):
        listed = any(isinstance(row.get(name), list | tuple) for name in POSITIVE)
        return "reranker" if listed and not any(name in row for name in ANCHOR) else "embedding"
    if "label" in row:
        return "kto" if isinstance(row["label"], bool) else "classification"
    found = causal_format(row)
    if found in ("messages", "sharegpt") and _is_prompt(row):
        return "prompt"
    return found or ("prompt" if one_of(row, QUERY) else "unknown")


def _holds_answers(conversations: Any) -> bool:
    """Whether ms-swift's `positive_messages` are documents (by the assistant) rather than sentences."""
    return _role(_first(_first(conversations))) in ("assistant", "gpt")


def _is_prompt(row: Row) -> bool:
    messages = as_list(row[messages_column(row) or ""], "the list of messages")
    return not any(_role(m) in ("assistant", "gpt", "bot", "model", "tool_call", "function_call") for m in messages)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) and value else None


def _role(message: Any) -> Any:
    return message.get("role", message.get("from")) if isinstance(message, Mapping) else None
