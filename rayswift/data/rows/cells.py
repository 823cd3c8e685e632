"""Rows of csv files: every cell is text, whatever its column holds.

Numbers, labels and JSON are read from text where a family takes them. Only what could be either is told apart here:
a cell that is a list, or empty, in a column that holds lists.
"""

import ast
import json
from collections.abc import Mapping
from typing import Any


class Cells(dict[str, Any]):
    """A row whose values are texts because its file has no others."""


def typed(
    cells: Mapping[str, Any], columns: Mapping[str, str], of_texts: frozenset[str], of_messages: frozenset[str]
) -> dict[str, Any]:
    """The cells, those of columns that hold lists as what their text holds.

    Args:
        cells: Columns under the user's names.
        columns: The user's names -> ours.
        of_texts: Our names of columns that hold one text or several; an empty cell there holds none, and is left out.
        of_messages: Those that hold a text or a list of messages.
    """
    found = {}
    for key, cell in cells.items():
        name = columns.get(key, key)
        if not isinstance(cell, str) or name not in of_texts | of_messages:
            found[key] = cell
        elif name in of_messages or cell.strip():
            listed = _listed(cell)
            found[key] = listed if listed and (name in of_texts or _is_message(listed[0])) else cell
    return found


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and not value.keys().isdisjoint(("role", "from"))


def _listed(cell: str) -> list[Any] | None:
    """A list of texts or of objects as JSON or Python write it; None: the cell is a text."""
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
