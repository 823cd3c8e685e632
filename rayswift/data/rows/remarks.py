"""What the first rows of a data set show: columns without effect, names that no row has, marks of images."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rayswift.config.tasks import Family
from rayswift.data.rows.columns import MESSAGE_KEYS, ROLES, BadRow, Cells, is_null
from rayswift.data.rows.formats import ABOUT
from rayswift.data.rows.parse import parse_row
from rayswift.data.rows.values import is_list

_MEDIA_MARKS = ("<image>", "<video>", "<audio>")


def unused_columns(rows: Iterable[tuple[Any, Mapping[str, str]]], family: Family) -> list[str]:
    """The columns without which each of the rows would be the same canonical row, in alphabetical order.

    Ids, sources and the like are not named, nor are columns that `data.columns` maps. rows: each with its
    `data.columns`.
    """
    has_effect: dict[str, bool] = {}
    for row, columns in rows:
        if not isinstance(row, Mapping) or "input_ids" in row:
            continue
        try:
            whole = parse_row(row, family, columns)
        except BadRow:
            continue
        mapped = {name.partition(".")[0] for name in columns}
        for name, value in row.items():
            if name in mapped or str(name).lower() in ABOUT or is_null(value) or value == "" or has_effect.get(name):
                continue
            try:
                rest = {key: each for key, each in row.items() if key != name}
                alike = Cells(rest) if isinstance(row, Cells) else rest
                has_effect[name] = parse_row(alike, family, columns) != whole
            except BadRow:
                has_effect[name] = True
    return sorted(str(name) for name, has in has_effect.items() if not has)


def absent_names(rows: Iterable[tuple[Any, Mapping[str, str]]]) -> list[str]:
    """The user's names in `data.columns` that none of its rows has, in alphabetical order.

    A name is a column or a path to a value. It may also be a key of a message or a role if it is mapped to one. rows:
    each with its `data.columns`.
    """
    absent: dict[tuple[tuple[str, str], ...], set[str]] = {}
    for row, columns in rows:
        left = absent.setdefault(tuple(columns.items()), set(columns))
        if left and isinstance(row, Mapping):
            left -= {name for name in left if name in row or _is_path(row, name)}
            left -= {name for name in left if columns[name] in MESSAGE_KEYS | ROLES and _is_inside(row, name)}
    return sorted(set().union(*absent.values()))


def _is_path(row: Mapping[str, Any], name: str) -> bool:
    """Whether a name with dots is the path to a value of a row."""
    value: Any = row
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return True


def _is_inside(value: Any, name: str) -> bool:
    """Whether a name is a key or a value of an object inside a value, or of the JSON text of one."""
    if isinstance(value, Mapping):
        return name in value or any(_is_inside(inner, name) for inner in value.values())
    if is_list(value):
        return any(_is_inside(inner, name) for inner in value)
    return isinstance(value, str) and (value == name or (value[:1] in ("[", "{") and f'"{name}"' in value))


def media_marks(rows: Iterable[tuple[Any, Mapping[str, str]]], family: Family) -> dict[str, int]:
    """Marks of images, videos and audio in texts that are trained -> number of rows with it; as in `unused_columns`."""
    counts: Counter[str] = Counter()
    for row, columns in rows:
        try:
            text = str(parse_row(row, family, columns))
        except BadRow:
            continue
        counts.update(mark for mark in _MEDIA_MARKS if mark in text)
    return dict(counts)
