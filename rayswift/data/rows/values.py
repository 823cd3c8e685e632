"""Values of a row -> lists, texts, numbers and parsed JSON; a value of another type raises BadRow."""

import ast
import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any

from rayswift.data.rows.columns import BadRow


def as_list(value: Any, what: str) -> list[Any]:
    """A list, tuple or array (as Parquet returns them) as a list."""
    if isinstance(value, list | tuple):
        return list(value)
    if hasattr(value, "tolist") and isinstance(items := value.tolist(), list):
        return items
    raise BadRow("wrong type", f"{what} is {type(value).__name__}, expected a list")


def is_list(value: Any) -> bool:
    """Whether `as_list` takes it."""
    return isinstance(value, list | tuple) or (hasattr(value, "tolist") and isinstance(value.tolist(), list))


def as_text(value: Any, what: str) -> str:
    """A text, or a finite number as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow("wrong type", f"{what} is {value}, expected text")
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


def as_cell_number(value: Any, what: str) -> float:
    """A finite number, or the text of one: cells of csv files are texts."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    return as_number(value, what)


def parsed(value: Any, what: str) -> Any:
    """The value, parsed if it is JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRow("malformed JSON", f"{what}: {error}") from error


def parsed_list(value: Any, what: str) -> list[Any]:
    """A list, or a list that is text in JSON or Python syntax, as in csv files."""
    if not isinstance(value, str):
        return as_list(value, what)
    text = value.strip()
    if not text.startswith("["):
        raise BadRow("wrong type", f"{what} is a text, expected a list, or JSON text of one")
    try:
        return as_list(json.loads(text), what)
    except (ValueError, RecursionError) as error:
        try:
            return as_list(ast.literal_eval(text), what)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise BadRow("malformed JSON", f"{what}: {error}") from error


def without_nulls(value: Any, what: str) -> Any:
    """A value without null fields, at any depth: tables fill the fields that only other rows have with nulls."""
    try:
        return _without_nulls(value)
    except RecursionError as error:
        raise BadRow("nested too deeply", f"{what}: no template renders it") from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(one) for one in value]
    return value


def shown(value: Any) -> str:
    """A short form of a value for an error."""
    if isinstance(value, str):
        return repr(value[:40])
    short = value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 10**20)
    return repr(value) if short else type(value).__name__
