"""Seals of the files that this user's evaluations made: codes from a key that nobody else has.

An evaluated folder may bring results and cached features with it. They are used only if a seal beside them, a
code of their names and bytes, was made with this user's key; otherwise they are computed again. The key lies
in the user's own state folder, outside every evaluated folder. Where it cannot be kept, nothing is sealed and
everything is computed again.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from isotorus import foreign_files
from isotorus.errors import UserError
from isotorus.files import atomic

_LENGTH = 32  # bytes of a key


def key_file() -> Path:
    """Return the path of the user's key, which the first evaluation makes."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state) / "isotorus/evaluations.key"


def write(seal: Path, files: Sequence[Path]) -> None:
    """Write the seal of files of one folder; if there is no key or it cannot be written, there is no seal."""
    key = _key()
    if key is None:
        return
    with contextlib.suppress(OSError, UserError), atomic(seal) as stream:
        stream.write(_code(key, [(file.name, _sha256(file)) for file in files]).encode())


def holds(seal: Path, files: Sequence[Path]) -> bool:
    """Say whether a seal is that of this user for files of one folder as they are now."""
    key = _key()
    if key is None:
        return False
    try:
        written = foreign_files.read_bytes(seal, most=1000).decode()
        code = _code(key, [(file.name, _sha256(file)) for file in files])
    except (OSError, UserError, UnicodeDecodeError):
        return False
    return hmac.compare_digest(written.encode(), code.encode())


def _code(key: bytes, files: Sequence[tuple[str, str]]) -> str:
    return hmac.new(key, json.dumps(files).encode(), hashlib.sha256).hexdigest()


def _sha256(file: Path) -> str:
    with foreign_files.open_binary(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _key() -> bytes | None:
    """Return the user's key, which the first call makes, or None where a key cannot be kept."""
    # There may be no home, a full or read-only disk, or a file system without links.
    try:
        file = key_file()
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
            handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(handle, secrets.token_bytes(_LENGTH))
                with contextlib.suppress(FileExistsError):  # another evaluation made one at the same moment
                    os.link(fresh, file)
            finally:
                os.close(handle)
                fresh.unlink()
        key = foreign_files.read_bytes(file, most=_LENGTH)
    except (OSError, RuntimeError, UserError):
        return None
    return key if len(key) == _LENGTH else None
