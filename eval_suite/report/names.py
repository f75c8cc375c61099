"""What pages and sentences call the representations; names that a user gave are shown unchanged."""

import re

HEADS = {"projector": "the projector's output", "angles": "the torus head's angles"}
"""Outputs of the pretrained model's own head. They are rows of the tables, but no baselines."""
_PHRASES = {
    "pretrained": "the pretrained encoder",
    "averaged": "the encoder with averaged weights",
    "untrained": "the untrained encoder",
    "pixels": "raw pixels",
    "handmade": "hand-made descriptors",
    **HEADS,
}
_TITLES = {
    "pretrained": "pretrained encoder",
    "averaged": "same encoder, averaged weights",
    "untrained": "same encoder, untrained",
    "projector": "projector's output",
    "angles": "torus head's angles",
}
_PLURAL = ("pixels", "handmade", "angles")


def phrase(name: str) -> str:
    """Return what a sentence calls a representation, such as "raw pixels"."""
    kind, number = _numbered(name)
    return _PHRASES.get(kind, kind) + number


def title(name: str) -> str:
    """Return the heading of a representation's row or figure."""
    kind, number = _numbered(name)
    return _TITLES.get(kind, _PHRASES.get(kind, kind)) + number


def are(name: str) -> str:
    """Return the verb that follows `phrase(name)`: "is" or "are"."""
    return "are" if name in _PLURAL else "is"


def is_untrained(name: str) -> bool:
    """Say whether a representation is the encoder at one of its initialisations: untrained, untrained-2, …"""
    return _numbered(name)[0] == "untrained"


def _numbered(name: str) -> tuple[str, str]:
    """Split the number of a further initialisation from its name: untrained-2 gives untrained and " (2)"."""
    found = re.fullmatch(r"(untrained)-(\d+)", name)
    return (found[1], f" ({found[2]})") if found else (name, "")
