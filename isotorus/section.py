"""The base of every configuration section and of every record that is checked when it is read."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Fields with a type, a default and, in the string below each, its documentation.

    Unknown keys are refused, values cannot be changed after validation.
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)
