"""The base class and the shared types of all sections of a config."""

import datetime
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from rayswift.config.reading.values import home


def one_or_many(value: Any) -> Any:
    """A list; a list of one item may be written as that item."""
    return [value] if isinstance(value, str) else value


def path_text(value: str) -> str:
    """A path with `~` replaced by the user's home folder; it must not be empty, like the value of an unset variable."""
    if not value.strip():
        raise ValueError("a path is not empty; `.` is the folder of the command")
    if _VARIABLE.search(value):
        raise ValueError("variables are not replaced; write the path itself")
    return home(value)


def no_url(value: str) -> str:
    if "://" in value:
        raise ValueError("a URL, wanted a file or folder of this machine; copy it from or to there")
    return value


_VARIABLE = re.compile(r"\$\{\w|^\$\w")
Strings = Annotated[list[str], BeforeValidator(one_or_many)]
# A file or folder of this machine, or a hub id, `file.py:name` or URL: `~` is the user's home folder.
PathText = Annotated[str, AfterValidator(path_text)]
# One that is no URL.
LocalPathText = Annotated[PathText, AfterValidator(no_url)]
PathTexts = Annotated[list[PathText], BeforeValidator(one_or_many)]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, docstrings under fields become their help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """A field that only changes its default keeps the description of the base class."""
        for name, field in cls.model_fields.items():
            for base in cls.__mro__[1:]:
                if field.description is None and issubclass(base, Section) and name in base.model_fields:
                    field.description = base.model_fields[name].description


def one_or_range(value: Any) -> Any:
    """Convert [2] to 2; a range is two ascending counts."""
    if not isinstance(value, list | tuple):
        return value
    if len(value) == 1:
        return value[0]
    if len(value) != 2:
        raise ValueError("give one count, or the least and the most")
    return value


def ascending(value: list[int]) -> list[int]:
    """Check that a range is ascending."""
    if not 1 <= value[0] <= value[1]:
        raise ValueError("the least comes first and is at least 1")
    return value


def iso_date(value: str | None) -> str | None:
    """A day as YYYY-MM-DD, or none."""
    if value is not None:
        try:
            datetime.datetime.strptime(value, "%Y-%m-%d")
        except ValueError as error:
            raise ValueError("a day is written YYYY-MM-DD") from error
    return value
