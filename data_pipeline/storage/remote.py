"""Requests to object stores through fsspec, repeated on failure: an object's version, ranges of its bytes,
writing and deleting it.

Temporary failures are repeated: timeouts, broken connections, HTTP 408, 429 and 5xx. Every other failure, and
one that lasts too long, is a `UserError` with the object, the reason and the remedy. It contains no secrets:
messages of the store, user names and queries of URLs are left out.

Retries are written here because fsspec has none with a deadline; those of the S3 library are switched off, as
nested retries would exceed the deadline. obstore (MIT) has retries with a deadline and fast small reads. It
was not adopted because its maintainers say that it is not safe after a fork (pull request 441 of
github.com/developmentseed/obstore), and the loader's workers are forked. It also supports fewer kinds of
stores than fsspec, and the messages, the check of versions and the cache would stay as they are. The speeds
have not been compared.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import fsspec

from isotorus.errors import UserError, one_line

Result = TypeVar("Result")

ONE_ATTEMPT = 60.0
"""Seconds that a store may be silent within one attempt."""
_TO_CONNECT = 10  # seconds to open a connection
_FIRST_WAIT = 0.1  # seconds
_LONGEST_WAIT = 10.0  # seconds
_SILENT_ATTEMPTS = 4  # failures before a message is printed
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
"""Keys under which fsspec's file systems report something that changes with the content."""
_NO_SUCH_RANGE = 416
_DENIED = (400, 401, 403)
_PASSING_STATUS = (408, 429)
_PASSING_CODES = {"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "ThrottlingException"}
_PASSING_ERRORS = {
    "ConnectionError", "TimeoutError", "HTTPClientError", "IncompleteRead", "IncompleteReadError",
    "ResponseParserError", "ClientConnectionError", "ClientPayloadError", "IncompleteBody",
}  # fmt: skip
"""Names of temporary exceptions or their base classes. Names are compared because the libraries behind
fsspec are optional and may not be installed."""

_filesystems: dict[tuple[str, int, int], Any] = {}
"""Open file systems by bucket, process and thread."""


Done = Literal["read", "written", "deleted"]
"""What a request was to do with an object, as its error message says it."""


class NotThere(UserError):
    """An object, bucket or folder that does not exist."""


class NoAnswer(UserError):
    """A store that did not answer, or only with temporary failures; the same request may succeed later."""


@dataclass(frozen=True)
class Version:
    """The size and the tag of an object."""

    size: int
    """Size in bytes."""
    tag: str
    """A string that changes with the content: an ETag or a time of modification."""


def version(url: str, patience: float) -> Version:
    """Ask a store for the size and tag of an object, in one request."""
    filesystem, path = _open(url)

    def ask() -> dict[str, Any]:
        try:
            return dict(filesystem.info(path))
        except Exception as error:
            if _http(error)[0] in _DENIED:
                filesystem.cat_file(path, start=0, end=1)  # its answer has a body that says why
            raise

    info = _with_retries(url, patience, ask)
    if info.get("type") == "directory":
        raise UserError(f"{shown(url)} is a folder, expected a file; check the URL")
    if not isinstance(info.get("size"), int):
        raise UserError(f"{shown(url)}: the server does not tell its size; use one that answers ranged reads")
    return Version(info["size"], " ".join(str(info[name]) for name in _TAGS if info.get(name)))


def read(url: str, ranges: list[tuple[int, int]], patience: float) -> list[bytes]:
    """Return bytes [start, stop) of an object for each of the ranges; the requests run concurrently.

    Raises `UserError` if the object was replaced by a shorter one or the server does not support ranges.
    """
    filesystem, path = _open(url)
    starts, stops = map(list, zip(*ranges, strict=True))

    def ask() -> list[bytes]:
        try:
            contents = filesystem.cat_ranges([path] * len(ranges), starts, stops, on_error="raise")
        except Exception as error:
            if _http(error)[0] == _NO_SUCH_RANGE:
                raise changed(url) from error
            raise
        return list(contents)

    parts = _with_retries(url, patience, ask)
    for part, (start, stop) in zip(parts, ranges, strict=True):
        if len(part) < stop - start:
            raise changed(url)
        if len(part) > stop - start:
            raise UserError(f"{shown(url)}: the server ignores ranges; use one that answers ranged reads")
    return parts


def list_objects(url: str, patience: float) -> dict[str, int]:
    """Return the URLs of all objects in a folder and its subfolders, with their sizes in bytes."""
    filesystem, path = _open(url)
    infos: dict[str, Any] = _with_retries(url, patience, lambda: filesystem.find(path, detail=True))
    return {filesystem.unstrip_protocol(name): int(info["size"]) for name, info in infos.items()}


def write(url: str, content: Path | bytes, patience: float) -> None:
    """Make or replace an object, with the bytes of a local file or with bytes in memory.

    Raises `UserError` if the store refuses it, and OSError if the file cannot be read.
    """
    filesystem, path = _open(url)
    if isinstance(content, bytes):
        _with_retries(url, patience, lambda: filesystem.pipe_file(path, content), "written")
        return
    content.open("rb").close()  # raises here if the local file is at fault, not the store
    _with_retries(url, patience, lambda: filesystem.put_file(str(content), path), "written")


def delete(url: str, patience: float) -> None:
    """Delete an object; one that does not exist is no error."""
    filesystem, path = _open(url)

    def remove() -> None:
        with suppress(FileNotFoundError):
            filesystem.rm_file(path)

    _with_retries(url, patience, remove, "deleted")


def changed(url: str) -> UserError:
    """Return the error for an object that was replaced while it was read."""
    return UserError(
        f"{shown(url)} was replaced by other bytes while it was read; "
        "run: isotorus verify on its set, and start again"
    )


def shown(url: str) -> str:
    """Return a URL without the parts that may be secret: user, password and query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _open(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it.

    Each process has its own file systems, so that no connection is used on both sides of a fork. Each thread
    has its own too, unless the library can be called from several threads.
    """
    root = "/".join(url.split("/", 3)[:3])
    try:
        shared = fsspec.get_filesystem_class(root.partition(":")[0]).async_impl
        key = root, os.getpid(), 0 if shared else threading.get_ident()
        if key not in _filesystems:
            _filesystems.setdefault(key, _connect(root))
        filesystem = _filesystems[key]
        return filesystem, filesystem._strip_protocol(url)
    except Exception as error:  # file systems raise all kinds for an address that they do not take
        reason = str(error).partition("\n")[0][:300]
        raise UserError(
            f"{shown(url)}: {reason}; use a URL such as s3://bucket/folder, "
            "for which pip install 'isotorus[s3]' brings the library"
        ) from error


def _connect(root: str) -> Any:
    """Connect to the bucket of a URL."""
    protocol = root.partition(":")[0]
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if protocol in ("s3", "s3a"):
        # Only `_with_retries` repeats requests: nested loops would exceed the deadline.
        configured = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
        waits = {"connect_timeout": _TO_CONNECT, "read_timeout": ONE_ATTEMPT}
        options["config_kwargs"] = {"retries": {"total_max_attempts": 1}, **waits, **configured}
    if protocol in ("file", "local"):
        options["auto_mkdir"] = True  # object stores have no folders, so nobody makes them
    filesystem, _ = fsspec.url_to_fs(root, **options)
    if protocol in ("s3", "s3a"):
        filesystem.retries = 1
    return filesystem


def _with_retries(url: str, patience: float, request: Callable[[], Result], done: Done = "read") -> Result:
    """Call `request` until it succeeds, for at most `patience` seconds; raise `UserError` when it finally
    fails, or `NoAnswer` if that failure is temporary.
    """
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
                raise _as_user_error(url, error, done) from error
            if time.monotonic() + wait > end:
                tried = f" in {patience:g} s and {attempt} attempts" if patience else ""
                raise NoAnswer(
                    f"{shown(url)} could not be {done}{tried} ({_reason(error)}); check the network and the "
                    "store, and start again"
                ) from error
            if attempt == _SILENT_ATTEMPTS:
                said = f"{shown(url)}: {_reason(error)}; trying again for {patience:g} s"
                print(one_line(said), file=sys.stderr)
            time.sleep(wait)


def _backoff(attempt: int) -> float:
    """Return the seconds to wait before the next attempt: doubled each time, and different between
    processes.
    """
    spread = (os.getpid() * 2654435761 + attempt * 40503) % 1024 / 1024
    return min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT) * (0.5 + spread / 2)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that, and so on."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _http(error: BaseException) -> tuple[int | None, str]:
    """Return the HTTP status and error code of the store's answer; (None, "") if the error is not an
    answer.
    """
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
    """Return the names of the classes and base classes of an error and of its causes."""
    return {base.__name__ for link in _chain(error) for base in type(link).__mro__}


def _is_transient(error: Exception) -> bool:
    """Return whether an error may disappear if the request is repeated."""
    status, code = _http(error)
    if status is not None:
        return status >= 500 or status in _PASSING_STATUS or code in _PASSING_CODES
    names = _names(error)
    return "SSLCertVerificationError" not in names and bool(names & _PASSING_ERRORS)


def _reason(error: Exception) -> str:
    """Describe an error in a few words without secrets."""
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


def _as_user_error(url: str, error: Exception, done: Done) -> Exception:
    """Return a `UserError` for an error that the user can correct; any other error is returned as it is."""
    status, _ = _http(error)
    names, reason = _names(error), _reason(error)
    if status in _DENIED or "PermissionError" in names or any("Credentials" in name for name in names):
        return UserError(
            f"{shown(url)}: access is denied ({reason}); check that the credentials are there, right, "
            f"not expired, and allowed to {'read' if done == 'read' else 'write'} it"
        )
    if status == 404 or (status is None and type(error) is FileNotFoundError and "SSLError" not in names):
        return NotThere(
            f"{shown(url)} is not there ({reason}); check the URL and the endpoint, or bring it back"
        )
    if status is not None or names & {"OSError", "BotoCoreError", "ClientError"}:
        return UserError(f"{shown(url)} cannot be {done} ({reason}); check the URL and the store's settings")
    return error
