"""Columns of rows that play no part in what is trained."""

from collections.abc import Iterable, Mapping
from typing import Any

from rayswift.config.tasks import Family
from rayswift.data.rows.columns import BadRow, Cells, is_null
from rayswift.data.rows.formats import ABOUT
from rayswift.data.rows.parse import parse_row


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
