"""Check that all hosts have the same versions, code and recipe before a run starts on any of them."""

import hashlib
import importlib.metadata
import platform
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import isotorus
from isotorus.errors import UserError

PACKAGES = ("configs", "data_pipeline", "isotorus", "launch", "pretrain")


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the properties of this host that a run depends on.

    They are versions, digests of code and recipe, whether the address "meet" resolves, and a port where hosts
    can meet, or an error message if no port is free.
    """
    properties: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": installed("torch") or "none",
        "deepspeed": installed("deepspeed") or "none",
        "isotorus": code_digest(),
        "recipe": request["recipe"] is None or _digest(Path(request["recipe"])),
        "resolves": _resolves(request["meet"]),
    }
    if request["port"] is not None:
        with socket.socket() as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                bound.bind(("", request["port"]))
                properties["port"] = bound.getsockname()[1]
            except OSError as error:
                properties["port"] = str(error.strerror)
    return properties


def compare(properties: Mapping[str, Mapping[str, Any]], recipe: str | None, meet: str) -> None:
    """Raise UserError for the first host whose properties differ from those of the first host.

    `properties` holds the result of `measure` for each host; all hosts meet at the address `meet`.
    """
    first, expected = next(iter(properties.items()))
    if isinstance(expected["port"], str):
        raise UserError(
            f"host {first}: the port to meet at: {expected['port']}; give another --port, or none"
        )
    for host, own in properties.items():
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


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_digest() -> str:
    """Return a digest of all source files and packaged recipes that a run uses."""
    root = Path(isotorus.__file__).parents[1]
    files = (path for folder in PACKAGES for path in (root / folder).rglob("*"))
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.suffix in (".py", ".yaml")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _digest(path: Path) -> str | bool:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else False


def _resolves(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False
