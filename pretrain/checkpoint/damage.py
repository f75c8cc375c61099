"""Whether the files of a checkpoint are as they were written: COMPLETE lists the size and CRC-32 of each."""

import zlib
from pathlib import Path
from typing import Any

from isotorus import foreign_files
from isotorus.errors import UserError
from pretrain.checkpoint import folders
from pretrain.checkpoint.config import OnDamage
from pretrain.distributed import on_all_ranks, rank

_CHUNK = 16 * 2**20  # bytes read at a time for a checksum


class Damaged(UserError):
    """A checkpoint whose files are not as they were written."""

    def __init__(self, checkpoint: Path, reason: str) -> None:
        self.earlier = max(
            (path for path in folders.complete(checkpoint.parent) if path < checkpoint), default=None
        )
        self.found = f"checkpoint {checkpoint} is damaged: {reason}"
        before = self.earlier
        then = f"continue from {before.name}" if before else "begin again, as there is no earlier one"
        super().__init__(f"{self.found}; remove that folder to {then}")


def describe(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint's encoder.json; raises Damaged.

    Its checksum is compared first: with a flipped bit it may still be JSON, with another value.
    """
    name = "encoder.json"
    if found := of_file(checkpoint, name):
        raise Damaged(checkpoint, found)
    try:
        values = foreign_files.read_json(checkpoint / name)
    except (OSError, UserError) as error:
        raise Damaged(checkpoint, first_line(error)) from None
    if not isinstance(values, dict):
        raise Damaged(checkpoint, f"{name} describes nothing")
    return values


def latest_described(checkpoints: Path, on_damage: OnDamage) -> Path | None:
    """Return the newest complete checkpoint whose encoder.json can be read, or None.

    Raises Damaged where `RunState.resume` would.
    """
    for checkpoint in sorted(folders.complete(checkpoints), reverse=True):
        try:
            describe(checkpoint)
            return checkpoint
        except Damaged as error:
            if on_damage == "refuse" or error.earlier is None:
                raise
    return None


def of_file(checkpoint: Path, name: str) -> str:
    """Say how a file differs from its checksum in COMPLETE; "" if it does not, or none is listed."""
    try:
        listed = foreign_files.read_json(checkpoint / "COMPLETE")
    except (OSError, UserError):  # `store.restore` reports it
        return ""
    return _difference(checkpoint, name, listed[name]) if isinstance(listed, dict) and name in listed else ""


def in_part(checkpoint: Path, part: int, parts: int) -> list[str]:
    """Check one of `parts` parts of the files that COMPLETE lists; return what is wrong with them."""
    try:
        listed = foreign_files.read_json(checkpoint / "COMPLETE")
    except (OSError, UserError) as error:
        return [f"COMPLETE cannot be read ({error})"]
    if not isinstance(listed, dict) or any("/" in name for name in listed):
        return ["COMPLETE is no list of files"]
    found = (_difference(checkpoint, name, listed[name]) for name in sorted(listed)[part::parts])
    return [reason for reason in found if reason]


def _difference(checkpoint: Path, name: str, written: Any) -> str:
    """Say how a file differs from its size and checksum when it was written; "" if it does not."""
    file = checkpoint / name
    try:
        size = file.stat().st_size
        if not file.is_file():
            return f"{name} is no regular file"
        if not isinstance(written, list) or len(written) != 2:
            return f"{name} has no checksum in COMPLETE"
        if size != written[0]:
            return f"{name} has {size} bytes of {written[0]}"
        return "" if measure(file) == written else f"{name} has another checksum than when it was written"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"


def measure(path: Path) -> list[int]:
    """Return a file's size in bytes and its CRC-32."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
        return [file.tell(), checksum]


def set_aside(checkpoint: Path) -> None:
    """Rename a damaged checkpoint so that it no longer counts as one; all ranks call it and wait for it."""

    def rename() -> None:
        if rank() == 0:
            aside, number = checkpoint.with_name(f"damaged_{checkpoint.name}"), 2
            while aside.exists():
                aside, number = checkpoint.with_name(f"damaged_{checkpoint.name}.{number}"), number + 1
            checkpoint.rename(aside)

    on_all_ranks(rename)


def first_line(error: BaseException) -> str:
    """Return the type and the first line of an error."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
