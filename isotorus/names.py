"""The nearest known name to a mistyped one."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name most like `name`; None where their likeness (0 to 1, by difflib) is below `cutoff`."""
    near = difflib.get_close_matches(name, list(known), 1, cutoff)
    return near[0] if near else None
