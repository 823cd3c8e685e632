"""Columns of a row: the user's names mapped to ours, and which column is which part of a format."""

import ast
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

Row = Mapping[str, Any]

MESSAGES = ("messages", "conversations", "conversation")
QUERY = ("query", "question", "problem", "prompt", "input", "instruction")
RESPONSE = (
    *("response", "answer", "output", "target", "completion", "solution"),
    *("targets", "answers", "answer_key"),
)
LABEL = ("label", "labels")
KTO_LABEL = ("label", "kto_tag")
CHOSEN = ("chosen", "chosen_response", "chosen_messages", "preferred_output")
REJECTED = ("rejected", "rejected_response", "rejected_messages", "non_preferred_output")
ANCHOR = ("anchor", "sentence1")
POSITIVE = ("positive", "positives", "pos", "sentence2")
NEGATIVE = ("negative", "negatives", "neg")
DOCUMENT = ("document", "documents", "doc", "docs", "passage", "passages")
SCORE = ("label", "score", "similarity")
TEXT = ("text", "sentence")
TEXT_PAIR = "text_pair"

MESSAGE_KEYS = frozenset(
    {
        *("role", "content", "name", "tool_calls", "tool_call_id", "function_call", "reasoning_content"),
        *("loss", "loss_scale", "loss_weight", "weight", "train"),
    }
)
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "tool_call"})

# Names for one part of a format. If the user maps a column to one of them, the row's other columns of the group are not
# read. `input` and `instruction` are in no group, because both can belong to one question.
_GROUPS = (MESSAGES, tuple(name for name in QUERY if name not in ("input", "instruction")), RESPONSE)


# The columns that some family reads; images, videos and audio are in `media`.
READ = frozenset(
    (
        *(*MESSAGES, *QUERY, *RESPONSE, *LABEL, *KTO_LABEL, *CHOSEN, *REJECTED, *ANCHOR, *POSITIVE, *NEGATIVE),
        *(*DOCUMENT, *SCORE, *TEXT, TEXT_PAIR, "positive_messages", "negative_messages", "segments", "margin"),
        *("context", "history", "tools", "functions", "system", "system_prompt", "chat_template_kwargs"),
        *("input_ids", "completion_mask", "assistant_masks", "attention_mask"),
    )
)
# In csv files: columns with one text or several, and columns with a text or a list of messages.
_OF_TEXTS, _OF_MESSAGES = frozenset((*POSITIVE, *NEGATIVE, *DOCUMENT)), frozenset((*CHOSEN, *REJECTED))


class Cells(dict[str, Any]):
    """A row of a csv file: all its values are text."""


class BadRow(Exception):
    """A row that cannot be trained: `reason` groups rows in the accounting, `detail` is the error of this row."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["BadRow"], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True)
class MessageNames:
    """The user's names for keys of a message and for roles -> our names."""

    keys: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NamedRow:
    """A row under our names, without nulls and NaN.

    columns: its values; names: the user's names in its messages; system: the system prompt for a row without one;
    nulls: names of the columns that are null or NaN.
    """

    columns: dict[str, Any]
    names: MessageNames = MessageNames()
    system: str | None = None
    nulls: frozenset[str] = frozenset()

    @property
    def alone(self) -> "NamedRow":
        """The names alone, for further texts of the row: they get no system prompt, tools or template arguments."""
        return NamedRow({}, self.names)


_NO_NAMES = MessageNames()
_NONE: frozenset[str] = frozenset()


def named(row: Any, columns: Mapping[str, str], system: str | None = None) -> NamedRow:
    """A row under our names, without nulls.

    Args:
        row: The row as read.
        columns: `data.columns`: the user's names of columns, message keys and roles -> our names. A name with dots is
            the path to a value inside a column.
        system: The system prompt for a row without one.
    """
    if not isinstance(row, Mapping):
        raise BadRow("not an object", f"a row is a JSON object, this is {type(row).__name__}")
    given = {key: value for key, value in row.items() if not is_null(value)}
    if isinstance(row, Cells):
        given = _with_lists(given, columns)
    nulls = frozenset(columns.get(key, key) for key in row if key not in given) if len(given) < len(row) else _NONE
    if not columns:
        return NamedRow(given, _NO_NAMES, system, nulls)
    names, paths = _names(tuple(columns.items()))
    for path in paths:
        value: Any = given
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if path not in given and value is not None:
            given[path] = value
    mapped: dict[str, str] = {}
    for key in given:
        target = columns.get(key)
        if target is not None and mapped.setdefault(target, key) != key:
            raise BadRow("ambiguous columns", f"data.columns maps {mapped[target]} and {key} both to {target}")
    # A mapped column replaces columns that already have the name.
    shadowed = {*mapped, *(name for group in _GROUPS if not mapped.keys().isdisjoint(group) for name in group)}
    rest = {key: value for key, value in given.items() if key not in columns and key not in shadowed}
    return NamedRow(rest | {target: given[key] for target, key in mapped.items()}, names, system, nulls)


def is_null(value: Any) -> bool:
    """Whether a column has no value: null, or NaN, which pandas writes for a value that is missing."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _with_lists(cells: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The cells of a csv row, with lists parsed where a column may hold a list; empty cells of texts are left out."""
    found = {}
    for key, cell in cells.items():
        name = columns.get(key, key)
        if not isinstance(cell, str) or name not in _OF_TEXTS | _OF_MESSAGES:
            found[key] = cell
        elif name in _OF_MESSAGES or cell.strip():
            listed = _listed(cell)
            of_messages = listed and isinstance(listed[0], dict) and not listed[0].keys().isdisjoint(("role", "from"))
            found[key] = listed if listed and (name in _OF_TEXTS or of_messages) else cell
    return found


def _listed(cell: str) -> list[Any] | None:
    """The list of texts or objects that a cell holds in JSON or Python syntax; None for another text."""
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, list) and value and all(isinstance(one, str | dict | list) for one in value):
            return value
    return None


@lru_cache(64)
def _names(columns: tuple[tuple[str, str], ...]) -> tuple[MessageNames, tuple[str, ...]]:
    """The names for messages, and the names that are paths."""
    keys = {given: target for given, target in columns if target in MESSAGE_KEYS}
    roles = {given: target for given, target in columns if target in ROLES}
    return MessageNames(keys, roles), tuple(given for given, _ in columns if "." in given)


def lower_cased(row: NamedRow) -> NamedRow | None:
    """The row with column names in lower case; None if nothing changes or two names become equal."""
    lowered = {key.lower() if isinstance(key, str) else key: value for key, value in row.columns.items()}
    if len(lowered) < len(row.columns) or lowered.keys() == row.columns.keys():
        return None
    return NamedRow(lowered, row.names, row.system, row.nulls)


def one_of(row: Row, names: tuple[str, ...]) -> str | None:
    """The row's column among several names for one part; our own name, the first, has priority."""
    return _one_of(tuple(row), names, names[0], True)


def messages_column(row: Row) -> str | None:
    """The column that holds the conversation; no name has priority."""
    return _one_of(tuple(row), MESSAGES, "the conversation", False)


@lru_cache(1024)
def _one_of(columns: tuple[Any, ...], names: tuple[str, ...], what: str, first_wins: bool) -> str | None:
    found = [name for name in names if name in columns]
    if len(found) > 1 and not (first_wins and found[0] == names[0]):
        raise BadRow(
            "ambiguous columns",
            f"{' and '.join(found)} could each be {what}; say which with data.columns, as in "
            f"{{{found[0]}: {names[0]}}}",
        )
    return found[0] if found else None
