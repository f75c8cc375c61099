"""Recognise passwords, keys and tokens, and replace them by *** wherever text is printed or written."""

import os
import re
from collections.abc import Mapping
from urllib.parse import unquote, unquote_plus

MASK = "***"
_NAMES = "KEY|TOKEN|SECRET|PASSW|CREDENTIAL|SIGNATURE"
_NAME = re.compile(_NAMES, re.IGNORECASE)
_SUSPICIOUS_NAMES = f"{_NAMES}|PASS|AUTH|COOKIE"
"""A longer list than `_NAMES`, for variables that are sent to other hosts, where a false alarm does no harm.
`masked` uses the shorter list, so that the value of a variable such as AUTHOR stays readable in any text."""
_SUSPICIOUS_NAME = re.compile(_SUSPICIOUS_NAMES, re.IGNORECASE)
_SHORT_NAMES = {
    *("bearer", "code", "hmac", "jsessionid", "jwt", "otp", "pass", "pat", "pw", "sas", "session"),
    *("sessionid", "sid", "sig", "sign", "ticket"),
}
"""Words that name a secret in the query of a URL, where they stand alone."""
_QUERY_NAME = re.compile(rf"{_NAMES}|PWD|PASSPHRASE|AUTH(?!OR(?!I))", re.IGNORECASE)
# Each of these expressions matches a text in one way only, so that its time is proportional to the length.
_URL = re.compile(r":/+[^\s'\"]*")
_SLASHES = re.compile(r":/{1,2}")
_AUTHORITY = re.compile(r"[^/?#]*")
_BRACKETS = re.compile(r"\[[^\[\]]*\]")  # around an IPv6 address
_QUOTE_IN_PASSWORD = re.compile(r"(:/{1,2})[^/?#\s@:]*+:(?!\d*['\"])(?=[^/?#\s@'\"]*['\"])[^/?#\s@]*+@")
_QUERY = re.compile(r"((?i:^(?=(?:Account|SharedAccess)Key=))|[?&;#])([^=&;#?\s'\"]++)=([^&;#\s'\"]+)")
_ASSIGNED = re.compile(r"(?<![\w.-])([\w.-]++)(=|\s++)")
_VALUE = re.compile(r"'[^']*'|\"[^\"]*\"|[^\s'\"]+")
_REGISTRY_PASSWORD = re.compile(r"(?:\w+://)?[^/@\s:]+:[^@\s]*@(?!sha\d+:)")
_SHORTEST = 8
"""Length in characters below which a variable's value is not masked: short values occur in ordinary text."""


def may_be_secret(name: str) -> bool:
    """Return whether the name of a variable or of a dotted key suggests that its value is a secret."""
    return bool(_SUSPICIOUS_NAME.search(name))


def holds_password(text: str) -> bool:
    """Return whether the text contains a URL with a password, a token or a signature."""
    return _masked_urls(text) != text


def holds_registry_password(image: str) -> bool:
    """Return whether the name of a container image has a password, as user:password@registry/image has."""
    return bool(_REGISTRY_PASSWORD.match(image)) or holds_password(image)


def masked(text: str) -> str:
    """Return the text with *** for secrets in URLs and for the values of this process's secret variables.

    Its time is proportional to the length of the text.
    """
    text = _masked_urls(text)
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _NAME.search(name):
            text = text.replace(value, MASK)
    return text


def masked_command(text: str) -> str:
    """Return a command as `masked` does, with *** also for the values of `NAME=value` and `--name value`."""
    text, parts, at = masked(text), [], 0
    while found := _ASSIGNED.search(text, at):
        value = None
        if may_be_secret(found[1]) and (found[2] == "=" or found[1].startswith("--")):
            value = _VALUE.match(text, found.end())
        parts += [text[at : found.end()], MASK if value else ""]
        at = value.end() if value else found.end()
    return "".join([*parts, text[at:]])


def holds_secret(text: str) -> bool:
    """Return whether `masked_command` would change the text."""
    return masked_command(text) != text


def masked_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables as they may be printed: *** for secrets, and `masked_command` of other values."""
    return {
        name: MASK if may_be_secret(name) else masked_command(value) for name, value in environment.items()
    }


def _masked_urls(text: str) -> str:
    text, parts, at = _QUOTE_IN_PASSWORD.sub(rf"\1{MASK}@", text), [], 0
    for url in _URL.finditer(text):
        scheme = text[max(at, url.start() - len("https")) : url.start()]
        parts += [text[at : url.start()], _without_user(scheme, url[0])]
        at = url.end()
    return _QUERY.sub(_masked_query, "".join([*parts, text[at:]]))


def _without_user(scheme: str, rest: str) -> str:
    """Return what follows the scheme of a URL with *** for user:password@; `rest` begins with "://".

    In an HTTP URL a user alone is masked too, because the user can be a token. A "/" in a password makes
    everything before it look like host and port, and the password like the port. One URL may contain another,
    as in simplecache::https://host/x.
    """
    last = rest.rfind("@")
    for slashes in _SLASHES.finditer(rest):
        if slashes.end() > last:
            break
        authority = _AUTHORITY.match(rest, slashes.end())
        assert authority
        before = rest[max(0, slashes.start() - len("https")) : slashes.start()] or scheme
        http = before.lower().endswith(("http", "https"))
        user, signed, _ = authority[0].rpartition("@")
        port = _BRACKETS.sub("", authority[0]).partition(":")[2]
        password = ":" in unquote(user) or http if signed else bool(port) and not (http and port.isdigit())
        if password:
            return f"{rest[: slashes.end()]}{MASK}{rest[last:]}"
    return rest


def _masked_query(query: re.Match[str]) -> str:
    separator, name, value = query.groups()
    return f"{separator}{name}={MASK}" if _query_is_secret(name, value) else query[0]


def _query_is_secret(name: str, value: str) -> bool:
    """Return whether a pair of a query holds a secret, also as ?odbc_connect=Pwd%3D… does in its value."""
    name, inner = unquote(name), unquote_plus(value)
    if _QUERY_NAME.search(name) or _SHORT_NAMES & set(re.split(r"[^a-z0-9]+", name.lower())):
        return True
    pairs = (part.partition("=") for part in re.split(r"[;&?{}\s]+", inner))
    return any(equals and _QUERY_NAME.search(name) for name, equals, _ in pairs) or (
        inner != value and any(_without_user("", url[0]) != url[0] for url in _URL.finditer(inner))
    )
