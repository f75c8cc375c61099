"""Whole numbers that a user wrote, and durations that a user reads."""

import argparse

_DIGITS = 18
"""More digits than this are not read: Python refuses a number of thousands, and 64 bits hold no more."""


def whole_number(text: str) -> int | None:
    """Return the number in a text of up to 18 digits 0 to 9, or None for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else None


def positive(text: str) -> int:
    """Return a whole number from 1; for argparse's `type`."""
    if not (number := whole_number(text)):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return number


def duration(seconds: float) -> str:
    """Return a time in the largest unit of which there are two or more, such as "90 s" or "2.5 h"."""
    for unit, name in ((86400, "days"), (3600, "h")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
