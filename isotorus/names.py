"""Find the known name that a mistyped name was probably meant to be."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name most similar to `name`, or None.

    Similarity is difflib's ratio, 0 to 1; a name below `cutoff` is not returned.
    """
    near = difflib.get_close_matches(name, list(known), 1, cutoff)
    return near[0] if near else None
