"""Columns of a row: the user's names mapped to ours, and which column is which part of a format."""

import math
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]

MESSAGES = ("messages", "conversations", "conversation")
QUERY = ("query", "question", "problem", "prompt")
RESPONSE = ("response", "answer", "output", "target", "completion", "solution")


class BadRow(Exception):
    """A row that cannot be trained: `reason` groups it in the accounting, `detail` says what is wrong with this one."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["BadRow"], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


def renamed(row: Any, columns: Mapping[str, str]) -> dict[str, Any]:
    """The row without nulls, its columns under our names.

    Raises:
        BadRow: it is no object, or two columns are mapped to one name.
    """
    if not isinstance(row, Mapping):
        raise BadRow("not an object", f"a row is a JSON object, this is {type(row).__name__}")
    given = {key: value for key, value in row.items() if value is not None}
    if not columns:
        return given
    mapped: dict[str, str] = {}
    for key in given:
        target = columns.get(key)
        if target is not None and mapped.setdefault(target, key) != key:
            raise BadRow("ambiguous columns", f"data.columns maps {mapped[target]} and {key} both to {target}")
    # The user's own mapping wins over a column that has the name by chance.
    shadowed = {*mapped, *(MESSAGES if "messages" in mapped else ())}
    rest = {key: value for key, value in given.items() if key not in columns and key not in shadowed}
    return rest | {target: given[key] for target, key in mapped.items()}


def one_of(row: Row, names: tuple[str, ...]) -> str | None:
    """The column that is there of several names for one part; the first name is ours and always means it.

    Raises:
        BadRow: several others are there.
    """
    if names[0] in row:
        return names[0]
    found = [name for name in names if name in row]
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
    found = [name for name in MESSAGES if name in row]
    if len(found) > 1:
        raise BadRow(
            "ambiguous columns",
            f"{' and '.join(found)} could each be the conversation; say which with data.columns, as in "
            f"{{{found[0]}: messages}}",
        )
    return found[0] if found else None


def as_list(value: Any, what: str) -> list[Any]:
    """A list, tuple or array (Parquet gives them) as a list."""
    if isinstance(value, list | tuple):
        return list(value)
    if hasattr(value, "tolist") and isinstance(items := value.tolist(), list):
        return items
    raise BadRow("wrong type", f"{what} is {type(value).__name__}, expected a list")


def as_text(value: Any, what: str) -> str:
    """A text, or a number as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return str(value)
        except ValueError as error:  # an integer of thousands of digits
            raise BadRow("wrong type", f"{what}: {error}") from error
    raise BadRow("wrong type", f"{what} is {type(value).__name__}, expected text")


def as_number(value: Any, what: str) -> float:
    """A finite number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise BadRow("wrong type", f"{what} is {shown(value)}, expected a finite number")


def shown(value: Any) -> str:
    """A value for an error: short, whatever it is."""
    if isinstance(value, str):
        return repr(value[:40])
    short = value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 10**20)
    return repr(value) if short else type(value).__name__
