"""Join names for a sentence, and find the known name that a mistyped name was probably meant to be."""

import difflib
from collections.abc import Iterable, Sequence


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name most similar to `name`, or None.

    Similarity is difflib's ratio, 0 to 1; a name below `cutoff` is not returned.
    """
    near = difflib.get_close_matches(name, list(known), 1, cutoff)
    return near[0] if near else None


def listed(names: Sequence[str]) -> str:
    """Join names as in "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
