"""What has to be so on every host before a run starts on any: looked at there, and compared here."""

import hashlib
import importlib.metadata
import platform
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isotorus.errors import UserError

CODE = ("data_pipeline", "isotorus", "launch", "pretrain")


def look(request: Mapping[str, Any]) -> dict[str, Any]:
    """On a host: its versions, and whether the recipe, the port and the first host's name are there."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "deepspeed": _version("deepspeed"),
        "isotorus": _code(),
        "recipe": request["recipe"] is None or _digest(Path(request["recipe"])),
        "resolves": _resolves(request["meet"]),
    }
    if request["port"] is not None:
        with socket.socket() as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                bound.bind(("", request["port"]))
                found["port"] = bound.getsockname()[1]
            except OSError as error:
                found["port"] = str(error.strerror)
    return found


def compare(found: Mapping[str, Mapping[str, Any]], recipe: str | None, meet: str) -> None:
    """Raise UserError, in one line, for the first host that differs from the first of them."""
    first, expected = next(iter(found.items()))
    if isinstance(expected["port"], str):
        raise UserError(
            f"host {first}: the port to meet at: {expected['port']}; give another --port, or none"
        )
    for host, own in found.items():
        if not own["resolves"]:
            raise UserError(f"host {host} does not know {meet}; use addresses in the host file")
        if own["recipe"] is False:
            raise UserError(f"host {host} has no recipe {recipe}; put it on storage that all hosts share")
        for name, advice in {
            "python": "give the same interpreter with --python",
            "torch": "install the same version everywhere",
            "deepspeed": "install the same version everywhere",
            "isotorus": "install the same version, or use a checkout that all hosts share",
            "recipe": "put one recipe on storage that all hosts share",
        }.items():
            if own[name] != expected[name]:
                raise UserError(
                    f"host {host} has {name} {own[name]}, host {first} has {expected[name]}; {advice}"
                )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _code() -> str:
    """A digest of this program's own files."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(path for folder in CODE for path in (root / folder).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _digest(path: Path) -> str | bool:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else False


def _resolves(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False
