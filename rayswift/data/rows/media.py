"""Columns of images, videos and audio: a row with one is refused, because only text is trained."""

import re
from collections.abc import Mapping
from typing import Any

from rayswift.data.rows.columns import READ, BadRow, Row
from rayswift.data.rows.values import is_list

_MANY = ("images", "videos", "audios")
_ONE = ("image", "video", "audio")
_COLUMNS = frozenset(
    f"{prefix}{name}" for prefix in ("", "rejected_", "positive_", "negative_") for name in (*_MANY, *_ONE)
)
_OBJECT_MARKS = ("<ref-object>", "<bbox>")
_FILE = re.compile(
    r"^data:|\.(png|jpe?g|gif|webp|bmp|tiff?|mp4|mov|avi|mkv|webm|mp3|wav|flac|ogg|m4a)($|\?)", re.IGNORECASE
)


def is_read(column: Any, columns: Mapping[str, str]) -> bool:
    """Whether some family of rows reads a column of the user's rows; `columns` is `data.columns`."""
    if not isinstance(column, str) or any(path.startswith(f"{column}.") for path in columns):
        return True
    name = columns.get(column, column).lower()
    return name in _COLUMNS or name in READ or name.startswith("negative_")


def refuse_media(row: Row) -> None:
    """Raise if the row has images, videos or audio, or marks in its text that objects fill."""
    if isinstance(row.get("objects"), Mapping) and any(mark in str(row) for mark in _OBJECT_MARKS):
        raise BadRow(
            "unsupported content",
            "column objects holds what ms-swift writes in place of <ref-object> and <bbox>, and only text is trained: "
            "write them into the messages, or train the text as it stands: data.columns {objects: unused}",
        )
    if _COLUMNS.isdisjoint(row):
        return
    for name in sorted(_COLUMNS & row.keys()):
        if _is_media(name, row[name]):
            raise BadRow(
                "unsupported content",
                f"column {name} holds images, videos or audio, and only text is trained; leave such rows out, or train "
                f"them without the column: data.columns {{{name}: unused}}",
            )


def _is_media(name: str, value: Any) -> bool:
    if isinstance(value, bytes | Mapping):
        return True
    if is_list(value):
        return len(value) > 0
    # A column `image` may hold something else, such as the name of a container image.
    return bool(value) and (name.endswith("s") or (isinstance(value, str) and bool(_FILE.search(value))))
