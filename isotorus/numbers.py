"""Read whole numbers that a user wrote."""

_DIGITS = 18
"""More digits than this are not read: Python refuses a number of thousands, and 64 bits hold no more."""


def whole_number(text: str) -> int | None:
    """Return the number in a text of up to 18 digits 0 to 9, or None for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else None
