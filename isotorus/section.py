"""The base class of configuration sections and of other records that are checked when they are read."""

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator

from isotorus.recipe_text import plain


class Unfit(ValueError):
    """A value of a recipe that does not fit its field; the message begins with the key in its section."""


class Section(BaseModel):
    """Typed fields with defaults. The string below each field is its documentation.

    An unknown key is an error, and values cannot change after validation. A field for text takes what stands
    in a recipe as it is spelled, such as 0123.
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return plain(values)
        fields = cls.model_fields
        return {
            key: value
            if key in fields and _holds_section(fields[key].annotation)
            else _meant(cls, key, value)
            for key, value in values.items()
        }


def _meant(section: type[BaseModel], key: Any, value: Any) -> Any:
    field = section.model_fields.get(key)
    try:
        return plain(value, as_text=field is not None and _takes_text(field.annotation))
    except ValueError as error:
        raise Unfit(f"{key}: {error}") from None


def _parts(annotation: Any) -> list[Any]:
    """Return the types in a type, such as int and None in `int | None`, or str in `list[str]`."""
    if get_origin(annotation) is Literal:
        return [type(value) for value in get_args(annotation)]
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, dict):
        return [part for inner in get_args(annotation) for part in _parts(inner)]
    return [annotation]


def _holds_section(annotation: Any) -> bool:
    return any(isinstance(part, type) and issubclass(part, BaseModel) for part in _parts(annotation))


def _takes_text(annotation: Any) -> bool:
    """Return whether a field is for text or paths, and for nothing that is a number."""
    parts = _parts(annotation)
    return bool({str, Path} & set(parts)) and not {int, float, bool, Any} & set(parts)
