"""The base class of configuration sections and of other records that are checked when they are read."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Typed fields with defaults. The string below each field is its documentation.

    An unknown key is an error, and values cannot change after validation.
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)
