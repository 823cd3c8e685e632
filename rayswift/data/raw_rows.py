"""Raw rows -> encoded rows, through the user's function and with the columns of each source; pure.

First `{{NAME}}` and `{{AUTHOR}}` are replaced by `data.model_name` and `data.model_author`. Then `data.map` is called
with the row, before `data.columns` applies. It returns

    a row (a dict)          which is encoded instead
    rows (a list of dicts)  which are encoded and counted each; an empty list leaves the row out
    None                    the row is left out
    None, "reason"          the row is left out, and counted under the reason

If it raises or returns something else, the raw row goes to quarantine.
"""

import hashlib
import json
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from rayswift.config.reading.paths import in_a_jobs_folder
from rayswift.config.user_code import load, split
from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoder import EncodedRow, LeftOut
from rayswift.data.encode.encoders import cached_encoder
from rayswift.data.rows import BadRow
from rayswift.data.sources import RawRow
from rayswift.log import UserError

FIELD = "data.map"
_REASON_CHARS = 80
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
Result = list[EncodedRow] | BadRow


@dataclass(frozen=True)
class MadeRow:
    """A row to encode: its `value`, or the error; `id` and `text` as in `RawRow`."""

    id: str
    value: Any
    error: BadRow | None
    text: str


def encode_raw(config: EncodeConfig, raw: Sequence[RawRow]) -> list[list[tuple[MadeRow, Result]]]:
    """For each raw row the rows made of it, one without `data.map`, each with its documents or its error."""
    made = made_rows(config, raw)
    rows = [row for of_raw in made for row in of_raw]
    by_reading: dict[int, list[int]] = {}
    sources = (row.source for row, of_raw in zip(raw, made, strict=True) for _ in of_raw)
    for i, (row, source) in enumerate(zip(rows, sources, strict=True)):
        if row.error is None:
            by_reading.setdefault(source if config.readings else 0, []).append(i)
    encoder = cached_encoder(json.dumps(asdict(config)))
    results: list[Result | None] = [row.error for row in rows]
    for source, own in by_reading.items():
        reader = encoder.reading(*config.readings[source]) if config.readings else encoder
        for i, result in zip(own, reader.encode([rows[i].value for i in own]), strict=True):
            results[i] = result
    pairs = iter(zip(rows, (result for result in results if result is not None), strict=True))
    return [list(islice(pairs, len(of_raw))) for of_raw in made]


def made_rows(config: EncodeConfig, raw: Sequence[RawRow]) -> list[list[MadeRow]]:
    """For each raw row the rows made of it, before they are encoded."""
    if config.names:
        raw = [_named(config.names, row) for row in raw]
    if config.map is None:
        return [[MadeRow(row.id, row.value, row.error, row.text)] for row in raw]
    return [_mapped(_function(config.map), row) for row in raw]


def readable(config: EncodeConfig, raw: Sequence[RawRow]) -> Iterator[tuple[Any, Mapping[str, str]]]:
    """The rows made of raw rows, without those in error, each with the `data.columns` of its source."""
    made = made_rows(config, raw)
    for of_raw, source in zip(made, (row.source for row in raw), strict=True):
        columns = config.readings[source][0] if config.readings else config.columns
        yield from ((row.value, columns) for row in of_raw if row.error is None)


def map_hash(name: str) -> str:
    """The identity of a function of `data.map`: the hash of its file, or the name of its module."""
    place, _ = split(FIELD, name)
    if not place.endswith(".py"):
        return place
    try:
        return hashlib.sha256(Path(place).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{FIELD} = {name!r}: {error.strerror}") from error


def placed(name: str) -> str:
    """The name with the absolute path of its file, because data tasks start in other folders. Tasks of a submitted job
    start in a copy of its folder, so there the name is unchanged."""
    place, attribute = split(FIELD, name)
    if not place.endswith(".py") or in_a_jobs_folder(Path.cwd()):
        return name
    return f"{Path(place).absolute()}:{attribute}"


def _named(names: Mapping[str, Sequence[str]], row: RawRow) -> RawRow:
    """The row with its marks replaced, in Chinese rows by the first text of each."""
    texts = list(_texts(row.value))
    if row.error is not None or not any(mark in text for mark in names for text in texts):
        return row
    tag = row.value.get("tag") if isinstance(row.value, Mapping) else None
    chinese = tag == "zh" if tag in ("zh", "en") else any(_CHINESE.search(text) for text in texts)
    words = {mark: given[0] if chinese else given[-1] for mark, given in names.items()}
    return replace(row, value=_with(words, row.value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _with(words: Mapping[str, str], value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with(words, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with(words, inner) for inner in value]
    if isinstance(value, str):
        for mark, word in words.items():
            value = value.replace(mark, word)
    return value


@cache
def _function(name: str) -> Callable[[Any], Any]:
    return load(FIELD, name)


def _mapped(function: Callable[[Any], Any], row: RawRow) -> list[MadeRow]:
    if row.error is not None:
        return [MadeRow(row.id, None, row.error, row.text)]
    text = row.text or json.dumps(row.value, ensure_ascii=False, default=str)  # before the function may change the row
    try:
        given = function(row.value)
    except Exception as error:  # whatever the user's function raises is about this row
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        return [MadeRow(row.id, None, BadRow(f"{FIELD} failed", f"{type(error).__name__}: {error} ({where})"), text)]
    reason = None
    if isinstance(given, tuple) and len(given) == 2 and given[0] is None and isinstance(given[1], str):
        given, reason = given
    if given is None or (isinstance(given, list) and not given):
        why = f"{FIELD}: {reason[:_REASON_CHARS]}" if reason else f"{FIELD} gave no row"
        return [MadeRow(row.id, None, LeftOut(why, why), text)]
    if isinstance(given, Mapping):
        return [MadeRow(row.id, given, None, "" if given is not row.value else row.text)]
    if isinstance(given, list) and all(isinstance(each, Mapping) for each in given):
        return [MadeRow(f"{row.id}.{number}", each, None, "") for number, each in enumerate(given, 1)]
    wanted = "a row, a list of rows, None, or None with a reason"
    return [
        MadeRow(row.id, None, BadRow(f"{FIELD} failed", f"it returned {type(given).__name__}, expected {wanted}"), text)
    ]
