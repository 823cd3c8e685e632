"""Columns of a row: the user's names mapped to ours, and which column is which part of a format."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from rayswift.data.rows.cells import Cells, typed

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

MESSAGE_KEYS = frozenset(
    {
        *("role", "content", "name", "tool_calls", "tool_call_id", "function_call", "reasoning_content"),
        *("loss", "loss_scale", "loss_weight", "weight", "train"),
    }
)
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "tool_call"})

# A name that stands for another column is never taken for one part of a format beside it. An `input` or `instruction`
# may be the other half of a question.
_GROUPS = (MESSAGES, tuple(name for name in QUERY if name not in ("input", "instruction")), RESPONSE)


# All that a family looks at, but for columns of images and the like.
READ = frozenset(
    (
        *(*MESSAGES, *QUERY, *RESPONSE, *LABEL, *KTO_LABEL, *CHOSEN, *REJECTED, *ANCHOR, *POSITIVE, *NEGATIVE),
        *(*DOCUMENT, *SCORE, *TEXT, "positive_messages", "negative_messages", "segments", "margin"),
        *("history", "tools", "functions", "system", "system_prompt", "chat_template_kwargs"),
        *("input_ids", "completion_mask", "assistant_masks", "attention_mask"),
    )
)
_OF_TEXTS, _OF_MESSAGES = frozenset((*POSITIVE, *NEGATIVE, *DOCUMENT)), frozenset((*CHOSEN, *REJECTED))


class BadRow(Exception):
    """A row that cannot be trained: `reason` groups it in the accounting, `detail` says what is wrong with this one."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["BadRow"], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True)
class MessageNames:
    """What the user's rows call the keys of a message, and the roles: theirs -> ours."""

    keys: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NamedRow:
    """A row without nulls under our names.

    columns: its values; names: for its messages; system: the system prompt of rows that bring none; nulls: names of
    the columns that are null.
    """

    columns: dict[str, Any]
    names: MessageNames = MessageNames()
    system: str | None = None
    nulls: frozenset[str] = frozenset()

    @property
    def alone(self) -> "NamedRow":
        """What texts beside a row's first are read as: without its system prompt, tools and the like."""
        return NamedRow({}, self.names)


_NO_NAMES = MessageNames()
_NONE: frozenset[str] = frozenset()


def named(row: Any, columns: Mapping[str, str], system: str | None = None) -> NamedRow:
    """A row without nulls, its columns under our names.

    Args:
        row: As it was read.
        columns: `data.columns`: names of columns, of keys of a message and of roles -> ours. A name with dots is the
            path to a value inside a column.
        system: The system prompt of rows that bring none.

    Raises:
        BadRow: it is no object, or two columns are mapped to one name.
    """
    if not isinstance(row, Mapping):
        raise BadRow("not an object", f"a row is a JSON object, this is {type(row).__name__}")
    given = {key: value for key, value in row.items() if value is not None}
    if isinstance(row, Cells):
        given = typed(given, columns, _OF_TEXTS, _OF_MESSAGES)
    nulls = frozenset(columns.get(key, key) for key in row if key not in given) if len(given) < len(row) else _NONE
    if not columns:
        return NamedRow(given, _NO_NAMES, system, nulls)
    names, paths = _names(tuple(columns.items()))
    for path in paths:
        if path not in given and (value := _inside(given, path.split("."))) is not None:
            given[path] = value
    mapped: dict[str, str] = {}
    for key in given:
        target = columns.get(key)
        if target is not None and mapped.setdefault(target, key) != key:
            raise BadRow("ambiguous columns", f"data.columns maps {mapped[target]} and {key} both to {target}")
    # The user's own mapping wins over a column that has the name by chance.
    shadowed = {*mapped, *(name for group in _GROUPS if not mapped.keys().isdisjoint(group) for name in group)}
    rest = {key: value for key, value in given.items() if key not in columns and key not in shadowed}
    return NamedRow(rest | {target: given[key] for target, key in mapped.items()}, names, system, nulls)


@lru_cache(64)
def _names(columns: tuple[tuple[str, str], ...]) -> tuple[MessageNames, tuple[str, ...]]:
    """Names for messages, and those that are paths."""
    keys = {given: target for given, target in columns if target in MESSAGE_KEYS}
    roles = {given: target for given, target in columns if target in ROLES}
    return MessageNames(keys, roles), tuple(given for given, _ in columns if "." in given)


def _inside(value: Any, path: list[str]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def lower_cased(row: NamedRow) -> NamedRow | None:
    """The row with its columns in lower case, as `Question` and `INSTRUCTION`; None if that changes nothing, or makes
    one of two."""
    lowered = {key.lower() if isinstance(key, str) else key: value for key, value in row.columns.items()}
    if len(lowered) < len(row.columns) or lowered.keys() == row.columns.keys():
        return None
    return NamedRow(lowered, row.names, row.system, row.nulls)


def one_of(row: Row, names: tuple[str, ...]) -> str | None:
    """The column that is there of several names for one part; the first name is ours and always means it.

    Raises:
        BadRow: several others are there.
    """
    return _one_of(tuple(row), names)


@lru_cache(1024)
def _one_of(columns: tuple[Any, ...], names: tuple[str, ...]) -> str | None:
    if names[0] in columns:
        return names[0]
    found = [name for name in names if name in columns]
    if len(found) > 1:
        raise BadRow(
            "ambiguous columns",
            f"{' and '.join(found)} could each be {names[0]}; say which with data.columns, as in "
            f"{{{found[0]}: {names[0]}}}",
        )
    return found[0] if found else None


def messages_column(row: Row) -> str | None:
    """The column that holds the conversation.

    Raises:
        BadRow: several do.
    """
    return _messages_column(tuple(row))


@lru_cache(1024)
def _messages_column(columns: tuple[Any, ...]) -> str | None:
    found = [name for name in MESSAGES if name in columns]
    if len(found) > 1:
        raise BadRow(
            "ambiguous columns",
            f"{' and '.join(found)} could each be the conversation; say which with data.columns, as in "
            f"{{{found[0]}: messages}}",
        )
    return found[0] if found else None
