"""Values of a recipe that remember how they were spelled, so that the name 0123 does not become 83."""

import datetime
import math
from typing import Any


class SpelledInt(int):
    text: str


class SpelledFloat(float):
    text: str


class SpelledBool(int):
    """A truth value; Python's own cannot remember anything."""

    text: str


def spelled(value: Any, text: str) -> Any:
    """Return a number or truth value that remembers its text. A date becomes text: no field takes one."""
    made: Any
    if isinstance(value, datetime.date):
        return text
    made = SpelledBool(value) if isinstance(value, bool) else None
    if made is None:
        made = SpelledInt(value) if isinstance(value, int) else SpelledFloat(value)
    made.text = text
    return made


def plain(value: Any, as_text: bool = False) -> Any:
    """Return a value without its spelling, or with `as_text` as it was spelled, in lists and mappings too.

    Raises ValueError for a number that is not finite or needs more than 64 bits.
    """
    if isinstance(value, dict):
        return {plain(key, as_text=True): plain(inner, as_text) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner, as_text) for inner in value]
    if not isinstance(value, SpelledInt | SpelledFloat | SpelledBool):
        return value
    if as_text:
        return value.text
    if isinstance(value, SpelledBool):
        return bool(value)
    if isinstance(value, SpelledFloat):
        if not math.isfinite(value):
            raise ValueError(f"{value.text[:40]} is no finite number")
        return float(value)
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"{value.text[:40]} has more than 64 bits")
    return int(value)
