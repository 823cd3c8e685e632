"""Raw rows -> what the encoder makes of them: through the user's own function, and as each source is to be read; pure.

`{{NAME}}` and `{{AUTHOR}}` become `data.model_name` and `data.model_author` first. Then `data.map` is called with the
row, before `data.columns`, and gives back

    a row (a dict)          it is encoded in its place
    rows (a list of dicts)  each is, and is counted by itself; an empty list leaves the row out
    None                    the row is left out
    None, "reason"          the row is left out, and counted under the reason

What it raises, or gives back else, puts the raw row into quarantine.
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
    """A row to encode: its `value`, or why there is none; `id` and `text` as a `RawRow` has them."""

    id: str
    value: Any
    error: BadRow | None
    text: str


def encode_raw(config: EncodeConfig, raw: Sequence[RawRow]) -> list[list[tuple[MadeRow, Result]]]:
    """For each raw row the rows that it makes, one without `data.map`, each with its documents or why it has none.

    Raises:
        UserError: the function of `data.map` cannot be loaded.
    """
    made = made_rows(config, raw)
    rows = [row for of_raw in made for row in of_raw]
    by_reading: dict[int, list[int]] = {}
    for i, (row, source) in enumerate(zip(rows, _sources(raw, made), strict=True)):
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


def _sources(raw: Sequence[RawRow], made: Sequence[Sequence[MadeRow]]) -> Iterator[int]:
    return (row.source for row, of_raw in zip(raw, made, strict=True) for _ in of_raw)


def made_rows(config: EncodeConfig, raw: Sequence[RawRow]) -> list[list[MadeRow]]:
    """The rows that each raw row makes; none of them is encoded yet."""
    if config.names:
        raw = [_named(config.names, row) for row in raw]
    if config.map is None:
        return [[MadeRow(row.id, row.value, row.error, row.text)] for row in raw]
    function = _function(config.map)
    return [_mapped(function, row) for row in raw]


def readable(config: EncodeConfig, raw: Sequence[RawRow]) -> Iterator[tuple[Any, Mapping[str, str]]]:
    """The rows that raw rows make, but for those in error, each with the columns that it is read by."""
    made = made_rows(config, raw)
    for of_raw, source in zip(made, (row.source for row in raw), strict=True):
        columns = config.readings[source][0] if config.readings else config.columns
        yield from ((row.value, columns) for row in of_raw if row.error is None)


def map_hash(name: str) -> str:
    """What tells a function of `data.map` from another: the hash of its file; of a module, its name."""
    place, _ = split(FIELD, name)
    if not place.endswith(".py"):
        return place
    try:
        return hashlib.sha256(Path(place).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{FIELD} = {name!r}: {error.strerror}") from error


def placed(name: str) -> str:
    """The name with its file's whole path: data tasks begin in folders of their own; those of a submitted job in their
    node's copy of its folder, where a relative path is right as it is."""
    place, attribute = split(FIELD, name)
    if not place.endswith(".py") or in_a_jobs_folder(Path.cwd()):
        return name
    return f"{Path(place).absolute()}:{attribute}"


def _named(names: Mapping[str, Sequence[str]], row: RawRow) -> RawRow:
    """The row with the names that its marks stand for, in its own language."""
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
    function: Callable[[Any], Any] = load(FIELD, name)
    return function


def _mapped(function: Callable[[Any], Any], row: RawRow) -> list[MadeRow]:
    if row.error is not None:
        return [MadeRow(row.id, None, row.error, row.text)]
    text = row.text or json.dumps(row.value, ensure_ascii=False, default=str)  # before it may be changed in place
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
    return [MadeRow(row.id, None, BadRow(f"{FIELD} failed", f"it gave {type(given).__name__}, wanted {wanted}"), text)]
