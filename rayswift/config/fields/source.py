"""A source of rows as a mapping, with more settings than its string (`org/name:subset#500`) can have."""

import difflib
import json
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from rayswift.config.section import PathText, Section


class SourceConfig(Section):
    """A source of rows with settings of its own."""

    path: PathText
    """File, folder, glob, URL or hub id."""
    subset: str | None = None
    """Subset of a hub data set, or of a folder laid out like one; null: its only or default one."""
    split: str | None = None
    """Split to take; null: train, or for evaluation the validation split, else the test split."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    rows: int | None = Field(None, ge=1)
    """How many of its rows to take; null: all."""
    weight: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Its share in the training rows, as in `data.mix`."""
    columns: dict[str, str] | None = None
    """Its column names -> ours; null: `data.columns`."""
    system: str | None = None
    """System prompt for its rows without one; null: `data.system`."""
    encoding: str | None = None
    """Encoding of its text files, as Python names it; null: UTF-8, or what their first bytes say."""

    @model_serializer(mode="wrap")
    def _only_what_is_set(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialise(self).items() if value is not None}


def _sources(value: Any) -> Any:
    """A list of sources, which may be written as its only item; a mapping may be JSON text, as a flag gives it."""
    many = list(value) if isinstance(value, list | tuple) else [value]
    return [_source(each) for each in many]


def _source(given: Any) -> Any:
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ValueError(f"{given} is not valid JSON: {error}") from error
    if not isinstance(given, dict):
        return given
    try:
        return SourceConfig.model_validate(given)
    except ValidationError as error:
        raise ValueError(f"source {given}: {'; '.join(_explained(each) for each in error.errors())}") from error


def _explained(error: Any) -> str:
    name, known = ".".join(map(str, error["loc"])), list(SourceConfig.model_fields)
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, known, 1)
        return f"{name} is unknown, {f'did you mean {close[0]}?' if close else 'known are ' + ', '.join(known)}"
    return f"{name} is required" if error["type"] == "missing" else f"{name}: {error['msg'].lower()}"


Sources = Annotated[list[PathText | SourceConfig], BeforeValidator(_sources)]
