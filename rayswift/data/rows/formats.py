"""The format of a row, by its columns."""

from collections.abc import Mapping
from typing import Any

from rayswift.data.rows.columns import (
    ANCHOR,
    DOCUMENT,
    LABEL,
    NEGATIVE,
    POSITIVE,
    QUERY,
    REJECTED,
    RESPONSE,
    BadRow,
    NamedRow,
    Row,
    lower_cased,
    messages_column,
    named,
    one_of,
)
from rayswift.data.rows.messages import role_of, turns

CAUSAL_WANTED = (
    "messages; conversations; prompt + completion; instruction (+ input | context) + output | response; "
    "query | question | input + response | answer | output (+ history, system); segments; text"
)
_QUESTIONS = tuple(name for name in QUERY if name not in ("input", "instruction"))
# A row with a response and only these other columns is a text.
ABOUT = frozenset({"id", "idx", "index", "source", "channel", "dataset", "lang", "language", "url", "meta", "metadata"})


def causal_format(row: Row) -> str | None:
    """The first of these formats of which the row has all columns: messages | sharegpt | prompt_completion | alpaca |
    query_response | segments | text | response."""
    if column := messages_column(row):
        first = next(iter(row[column]), None) if isinstance(row[column], list | tuple) else None
        return "sharegpt" if isinstance(first, Mapping) and "from" in first else "messages"
    if "prompt" in row and "completion" in row:
        return "prompt_completion"
    if is_instruction(row) and answer_column(row):
        return "alpaca"
    if one_of(row, QUERY) and one_of(row, RESPONSE):
        return "query_response"
    if "segments" in row:
        return "segments"
    if "text" in row:
        return "text"
    response = one_of(row, RESPONSE)
    return "response" if response and all(name == response or name in ABOUT for name in row) else None


def is_instruction(row: Row) -> bool:
    """Whether the question is the column `instruction`, with `input` if there is one.

    Beside an output, a `prompt` is the question as rendered for another model. Another question may only stand there
    with an answer of its own.
    """
    others = {name for name in _QUESTIONS if name in row}
    if "instruction" not in row or "output" not in row:
        return "instruction" in row and not others
    return others <= {"prompt"} or any(name in row for name in RESPONSE if name != "output")


def answer_column(row: Row) -> str | None:
    """The column of the answer."""
    return "output" if is_instruction(row) and "output" in row else one_of(row, RESPONSE)


def format_of(row: Any, columns: Mapping[str, str] | None = None) -> str:
    """The name of a row's format for a report: a causal format, preference, kto, embedding, reranker, classification,
    prompt, ambiguous or unknown. It looks at columns, does not check values, and never raises."""
    try:
        given = named(row, columns or {})
        found = _format_of(given)
        if found == "unknown" and (lowered := lower_cased(given)):
            found = _format_of(lowered)
    except BadRow as bad:
        return "ambiguous" if bad.reason == "ambiguous columns" else "unknown"
    return found


def _format_of(given: NamedRow) -> str:
    row = given.columns
    if "input_ids" in row:
        return "tokens"
    if "kto_tag" in row:
        return "kto"
    if any(name in row for name in REJECTED):
        return "preference"
    if "positive_messages" in row or "negative_messages" in row:
        documents = _first(_first(row.get("positive_messages", row.get("negative_messages"))))
        return "reranker" if role_of(documents, given.names) == "assistant" else "embedding"
    if any(name in row for name in (*ANCHOR, *POSITIVE, *NEGATIVE)):
        listed = any(isinstance(row.get(name), list | tuple) for name in POSITIVE)
        return "reranker" if listed and not any(name in row for name in ANCHOR) else "embedding"
    for name in LABEL:
        if name in row:
            if any(document in row for document in DOCUMENT) and one_of(row, QUERY):
                return "reranker"
            return "kto" if isinstance(row[name], bool) else "classification"
    found = causal_format(row)
    if found in ("messages", "sharegpt"):
        messages = turns(row[messages_column(row) or ""], given.names)
        if not any(role_of(message, given.names) in ("assistant", "tool_call") for message in messages):
            return "prompt"
    return found or ("prompt" if one_of(row, QUERY) else "unknown")


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) and value else None
