"""Recognise passwords, keys and tokens, and replace them by *** wherever text is printed or written."""

import os
import re
from collections.abc import Mapping

MASK = "***"
_NAMES = "KEY|TOKEN|SECRET|PASSW|CREDENTIAL|SIGNATURE"
_NAME = re.compile(_NAMES, re.IGNORECASE)
_SUSPICIOUS_NAMES = f"{_NAMES}|PASS|AUTH|COOKIE"
"""A longer list than `_NAMES`, for variables that are sent to other hosts, where a false alarm does no harm.
`masked` uses the shorter list, so that the value of a variable such as AUTHOR stays readable in any text."""
_SUSPICIOUS_NAME = re.compile(_SUSPICIOUS_NAMES, re.IGNORECASE)
# user:password@ in a URL of any kind. In an HTTP URL also user@ alone, because the user can be a token.
_USER = re.compile(r"(https?://|[A-Za-z][\w+.-]*://(?=[^/\s'\"@]*:))[^/\s'\"]+@", re.IGNORECASE)
_QUERY = re.compile(rf"([?&](?:[\w.-]*(?:{_NAMES})[\w.-]*|sig)=)[^&\s'\"]+", re.IGNORECASE)
_ASSIGNMENT = re.compile(
    rf"((?:--?)?[\w.-]*(?:{_SUSPICIOUS_NAMES})[\w.-]*=|--[\w.-]*(?:{_SUSPICIOUS_NAMES})[\w.-]*\s+)"
    r"('[^']*'|\"[^\"]*\"|[^\s'\"]+)",
    re.IGNORECASE,
)
_SHORTEST = 8
"""Length in characters below which a variable's value is not masked: short values occur in ordinary text."""


def may_be_secret(name: str) -> bool:
    """Return whether the name of a variable or of a dotted key suggests that its value is a secret."""
    return bool(_SUSPICIOUS_NAME.search(name))


def holds_password(text: str) -> bool:
    """Return whether the text contains a URL with a password, a token or a signature."""
    return bool(_USER.search(text) or _QUERY.search(text))


def masked(text: str) -> str:
    """Return the text with *** for secrets in URLs and for the values of this process's secret variables."""
    text = _QUERY.sub(rf"\1{MASK}", _USER.sub(rf"\1{MASK}@", text))
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _NAME.search(name):
            text = text.replace(value, MASK)
    return text


def masked_command(text: str) -> str:
    """Return a command as `masked` does, with *** also for the values of `NAME=value` and `--name value`."""
    return _ASSIGNMENT.sub(lambda assignment: assignment[1] + MASK, masked(text))


def holds_secret(text: str) -> bool:
    """Return whether `masked_command` would change the text."""
    return masked_command(text) != text


def masked_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables as they may be printed: *** for secrets, and `masked_command` of other values."""
    return {
        name: MASK if may_be_secret(name) else masked_command(value) for name, value in environment.items()
    }
