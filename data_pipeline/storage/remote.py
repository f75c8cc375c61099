"""Objects in a store that fsspec reads: their version and ranges of their bytes, tried again with patience.

What is tried again is what may pass: timeouts, broken connections, 408, 429 and 5xx. Everything else,
and what does not pass in time, is a `UserError` that names the object, the reason and the remedy, and
holds no secret: neither messages of the store nor user names and queries of a URL are repeated.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec

from isotorus.errors import UserError

Result = TypeVar("Result")

ONE_ATTEMPT = 60.0
"""Seconds that a store may be silent in one attempt."""
_TO_CONNECT = 10
_FIRST_WAIT = 0.1
_LONGEST_WAIT = 10.0
_SILENT_ATTEMPTS = 4
_TAGS = (
    "ETag",
    "etag",
    "md5Hash",
    "Content-MD5",
    "mtime",
    "LastModified",
    "last_modified",
    "Last-Modified",
    "created",
)
"""Where fsspec's file systems say what changes with the content."""
_NO_SUCH_RANGE = 416
_DENIED = (400, 401, 403)
_PASSING_STATUS = (408, 429)
_PASSING_CODES = {"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "ThrottlingException"}
_PASSING_ERRORS = {
    "ConnectionError", "TimeoutError", "HTTPClientError", "IncompleteRead", "IncompleteReadError",
    "ResponseParserError", "ClientConnectionError", "ClientPayloadError", "IncompleteBody",
}  # fmt: skip
"""Names of exceptions and their bases: the libraries behind fsspec need not be there to be known."""

_filesystems: dict[tuple[str, int, int], Any] = {}
"""By bucket, process and thread."""


@dataclass(frozen=True)
class Version:
    size: int
    """Bytes."""
    tag: str
    """Changes with the content: an ETag, a time of modification."""


def version(url: str, patience: float) -> Version:
    """Ask for an object's size and tag: one request."""
    filesystem, path = _open(url)

    def ask() -> dict[str, Any]:
        try:
            return dict(filesystem.info(path))
        except Exception as error:
            if _http(error)[0] in _DENIED:
                filesystem.cat_file(path, start=0, end=1)  # says why, which an answer without body cannot
            raise

    info = _with_retries(url, patience, ask)
    if info.get("type") == "directory":
        raise UserError(f"{shown(url)} is a folder, expected a file; check the URL")
    if not isinstance(info.get("size"), int):
        raise UserError(f"{shown(url)}: the server does not tell its size; use one that answers ranged reads")
    return Version(info["size"], " ".join(str(info[name]) for name in _TAGS if info.get(name)))


def read(url: str, ranges: list[tuple[int, int]], patience: float) -> list[bytes]:
    """Bytes [start, stop) of an object for each of the ranges: a request each, all at once."""
    filesystem, path = _open(url)
    starts, stops = map(list, zip(*ranges, strict=True))

    def ask() -> list[bytes]:
        try:
            found = filesystem.cat_ranges([path] * len(ranges), starts, stops, on_error="raise")
        except Exception as error:
            if _http(error)[0] == _NO_SUCH_RANGE:
                raise changed(url) from error
            raise
        return list(found)

    parts = _with_retries(url, patience, ask)
    for part, (start, stop) in zip(parts, ranges, strict=True):
        if len(part) < stop - start:
            raise changed(url)
        if len(part) > stop - start:
            raise UserError(f"{shown(url)}: the server ignores ranges; use one that answers ranged reads")
    return parts


def list_objects(url: str, patience: float) -> dict[str, int]:
    """URLs and sizes in bytes of all objects below a folder."""
    filesystem, path = _open(url)
    infos: dict[str, Any] = _with_retries(url, patience, lambda: filesystem.find(path, detail=True))
    return {filesystem.unstrip_protocol(name): int(info["size"]) for name, info in infos.items()}


def changed(url: str) -> UserError:
    return UserError(
        f"{shown(url)} was replaced by other bytes while it was read; "
        "run: python -m data_pipeline verify on its set, and start again"
    )


def shown(url: str) -> str:
    """A URL without what may be secret in it: user, password and query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    There is one a process and bucket, so that no connection is used on both sides of a fork; also one
    a thread, unless the library takes calls from many.
    """
    root = "/".join(url.split("/", 3)[:3])
    try:
        shared = fsspec.get_filesystem_class(root.partition(":")[0]).async_impl
        key = root, os.getpid(), 0 if shared else threading.get_ident()
        if key not in _filesystems:
            _filesystems.setdefault(key, _connect(root))
    except (ImportError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{shown(url)}: {reason}; use a URL such as s3://bucket/folder, "
            "for which pip install 'isotorus[s3]' brings the library"
        ) from error
    filesystem = _filesystems[key]
    return filesystem, filesystem._strip_protocol(url)


def _connect(root: str) -> Any:
    protocol = root.partition(":")[0]
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if protocol in ("s3", "s3a"):
        # Tried again here alone: three nested loops of retries know no deadline.
        given = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
        waits = {"connect_timeout": _TO_CONNECT, "read_timeout": ONE_ATTEMPT}
        options["config_kwargs"] = {"retries": {"total_max_attempts": 1}, **waits, **given}
    filesystem, _ = fsspec.url_to_fs(root, **options)
    if protocol in ("s3", "s3a"):
        filesystem.retries = 1
    return filesystem


def _with_retries(url: str, patience: float, request: Callable[[], Result]) -> Result:
    end = time.monotonic() + patience
    attempt = 0
    while True:
        try:
            return request()
        except UserError:
            raise
        except Exception as error:
            attempt += 1
            wait = _backoff(attempt)
            if not _is_transient(error):
                raise _as_user_error(url, error) from error
            if time.monotonic() + wait > end:
                raise UserError(
                    f"{shown(url)} could not be read in {patience:g} s and {attempt} attempts "
                    f"({_reason(error)}); check the network and the store, and start again"
                ) from error
            if attempt == _SILENT_ATTEMPTS:
                print(f"{shown(url)}: {_reason(error)}; trying again for {patience:g} s", file=sys.stderr)
            time.sleep(wait)


def _backoff(attempt: int) -> float:
    """Seconds before the next attempt: doubled each time, and not the same for all processes."""
    spread = (os.getpid() * 2654435761 + attempt * 40503) % 1024 / 1024
    return min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT) * (0.5 + spread / 2)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _http(error: BaseException) -> tuple[int | None, str]:
    """Status and code of the store's answer, if it was one."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, str(response.get("Error", {}).get("Code", ""))
        status = getattr(link, "status", None)
        if isinstance(status, int):  # aiohttp
            return status, ""
    return None, ""


def _names(error: BaseException) -> set[str]:
    """Names of an error's class and bases, and of those that it came from."""
    return {base.__name__ for link in _chain(error) for base in type(link).__mro__}


def _is_transient(error: Exception) -> bool:
    status, code = _http(error)
    if status is not None:
        return status >= 500 or status in _PASSING_STATUS or code in _PASSING_CODES
    names = _names(error)
    return "SSLCertVerificationError" not in names and bool(names & _PASSING_ERRORS)


def _reason(error: Exception) -> str:
    status, code = _http(error)
    if status is not None:
        return f"HTTP {status}" if code in ("", str(status)) else f"HTTP {status} {code}"
    if "SSLCertVerificationError" in _names(error):
        return "its certificate is not trusted"
    for link in _chain(error):
        if isinstance(link, socket.gaierror):
            return str(link.strerror)
        if isinstance(link, OSError) and (link.errno or 0) > 0:
            return os.strerror(link.errno or 0)
    return type(error).__name__


def _as_user_error(url: str, error: Exception) -> Exception:
    """A `UserError` for what the user can mend; any other error as it is."""
    status, _ = _http(error)
    names, reason = _names(error), _reason(error)
    if status in _DENIED or "PermissionError" in names or any("Credentials" in name for name in names):
        return UserError(
            f"{shown(url)}: access is denied ({reason}); check that the credentials are there, right, "
            "not expired, and allowed to read it"
        )
    if status == 404 or (status is None and type(error) is FileNotFoundError and "SSLError" not in names):
        return UserError(
            f"{shown(url)} is not there ({reason}); check the URL and the endpoint, or bring it back"
        )
    if status is not None or names & {"OSError", "BotoCoreError", "ClientError"}:
        return UserError(f"{shown(url)} cannot be read ({reason}); check the URL and the store's settings")
    return error
