"""Passwords and keys: where they are told from other text, so that none is written or printed."""

import os
import re

MASK = "***"
_NAMES = "KEY|TOKEN|SECRET|PASSW|CREDENTIAL|SIGNATURE"
_NAME = re.compile(_NAMES, re.IGNORECASE)
# user:password@ of any URL, and whatever stands there in one of HTTP: a token is a user of its own.
_USER = re.compile(r"(https?://|[A-Za-z][\w+.-]*://(?=[^/\s'\"@]*:))[^/\s'\"]+@", re.IGNORECASE)
_QUERY = re.compile(rf"([?&](?:[\w.-]*(?:{_NAMES})[\w.-]*|sig)=)[^&\s'\"]+", re.IGNORECASE)
_SHORTEST = 8
"""Characters of a variable's value that is looked for: a shorter one is found in any text."""


def hidden(name: str) -> bool:
    """Whether the value of a variable or a field is a secret by its name."""
    return bool(_NAME.search(name))


def holds_password(text: str) -> bool:
    """Whether there is a URL in it with a password, a token or a signature."""
    return bool(_USER.search(text) or _QUERY.search(text))


def masked(text: str) -> str:
    """Text with *** for what is secret in URLs, and for the values of this process's secret variables."""
    text = _QUERY.sub(rf"\1{MASK}", _USER.sub(rf"\1{MASK}@", text))
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and hidden(name):
            text = text.replace(value, MASK)
    return text
