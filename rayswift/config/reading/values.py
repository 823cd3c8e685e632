"""The meaning of a written value, the same in YAML, in flags, and in JSON inside a flag.

A scalar without quotes is text until the type of its field is known: `no` is a word for `save_strategy` and false for
`packing`. For a field of any type, as in `engine_kwargs`, YAML 1.2 decides: `1e-4` is a number, `no` is a word.
"""

import json
import os
import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

_NUMBER = re.compile(r"[-+]?(\.\d+|\d[\d_]*(\.\d*)?)([eE][-+]?\d+)?")
_INTEGER = re.compile(r"[-+]?\d[\d_]*|0x[\da-fA-F]+|0o[0-7]+")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CONSTANTS = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "~"), None),
}
# Words for null, if the field may be null and the word is not one of its values.
_NULLS = ("null", "none", "~")


class Plain(str):
    """A scalar without quotes, from a flag or YAML."""


def plain(word: str) -> Any:
    """A scalar without quotes as YAML 1.2 reads it: null, boolean, number, or the word itself."""
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    if _INTEGER.fullmatch(word):
        return int(word, 0) if word[:2] in ("0x", "0o") else int(word)
    if _NUMBER.fullmatch(word):
        return float(word)
    return float(word.replace(".", "")) if _NOT_FINITE.fullmatch(word) else str(word)


def untyped(written: Any) -> Any:
    """The value for a field of any type, with `plain` for each scalar without quotes."""
    match written:
        case Plain():
            return plain(written)
        case dict():
            return {str(key): untyped(value) for key, value in written.items()}
        case list():
            return [untyped(item) for item in written]
    return written


def read(annotation: Any, written: Any) -> Any:
    """The value for a field of this type, not validated; raise json.JSONDecodeError for invalid JSON in a text."""
    kinds = members(annotation)
    match written:
        case Plain():
            return _scalar(kinds, written)
        case str() if _is_json(kinds, written):
            return json.loads(written)
        case dict():
            return _dict(kinds, written)
        case list():
            items = [get_args(kind) for kind in kinds if _origin(kind) is list]
            return [read(items[0][0] if items and items[0] else Any, item) for item in written]
    return written


def members(annotation: Any) -> list[Any]:
    """The types of a union, without annotations."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for member in get_args(annotation) for kind in members(member)]
    return [annotation]


def takes(annotation: Any, kind: type) -> bool:
    """Whether a field of this type may have values of `kind`."""
    return any(_origin(member) is kind for member in members(annotation))


def home(written: str) -> str:
    """The path with `~` or `~user` as first folder replaced by that home folder."""
    return os.path.expanduser(written) if written.startswith("~") and "/" in written else written


def _scalar(kinds: list[Any], word: Plain) -> Any:
    values = {str(value).lower() for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)}
    if word.lower() in _NULLS and types.NoneType in kinds and word.lower() not in values:
        return None
    if word[:1] in ("{", "[") and _opens(kinds, word):
        return json.loads(word)
    if Any in kinds:
        return plain(word)
    items = [get_args(kind) for kind in kinds if _origin(kind) is list]
    takes_scalars = any(kind in (str, int, float, bool) or get_origin(kind) is Literal for kind in kinds)
    if items and not takes_scalars:  # a list with one item, written as this item
        return read(items[0][0] if items[0] else Any, word)
    value = plain(word)
    if values or str in kinds:
        exact = type(value) in kinds or (type(value) is int and float in kinds)
        return value if exact and not isinstance(value, str) else str(word)
    if isinstance(value, bool) and bool not in kinds:
        return str(word)
    return str(word) if value is None else value


def _is_json(kinds: list[Any], quoted: str) -> bool:
    """Whether a text in quotes is JSON, by the field's type; `str` together with `dict` means JSON in TRL."""
    return (quoted.startswith("{") or (quoted.startswith("[") and str not in kinds)) and _opens(kinds, quoted)


def _opens(kinds: list[Any], word: str) -> bool:
    if word.startswith("["):
        return Any in kinds or any(_origin(kind) is list for kind in kinds)
    return Any in kinds or any(_origin(kind) is dict or _is_model(kind) for kind in kinds)


def _dict(kinds: list[Any], written: dict[Any, Any]) -> dict[str, Any]:
    for kind in kinds:
        if _is_model(kind):
            fields = kind.model_fields
            return {
                str(key): read(fields[key].annotation if key in fields else Any, value)
                for key, value in written.items()
            }
        if _origin(kind) is dict and get_args(kind):
            return {str(key): read(get_args(kind)[1], value) for key, value in written.items()}
    return {str(key): untyped(value) for key, value in written.items()}


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _origin(kind: Any) -> Any:
    return get_origin(kind) or kind
