"""A checkpoint's COMPLETE lists the size and the checksum of each of its files, as a disk may lie."""

import json
import zlib
from pathlib import Path

_CHUNK = 16 * 2**20


def measure(path: Path) -> list[int]:
    """Bytes and CRC-32 of a file."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
        return [file.tell(), checksum]


def write(folder: Path, measured: dict[str, list[int]]) -> None:
    """Write COMPLETE for files by name."""
    (folder / "COMPLETE").write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")


def damaged(folder: Path, part: int, parts: int) -> list[str]:
    """What is wrong with one of `parts` parts of the files that COMPLETE lists."""
    try:
        listed = json.loads((folder / "COMPLETE").read_text())
    except (OSError, ValueError) as error:
        return [f"COMPLETE cannot be read ({error})"]
    found = []
    for name in sorted(listed)[part::parts]:
        try:
            size = (folder / name).stat().st_size
            if size != listed[name][0]:
                found.append(f"{name} has {size} bytes of {listed[name][0]}")
            elif measure(folder / name) != listed[name]:
                found.append(f"{name} has another checksum than when it was written")
        except OSError as error:
            found.append(f"{name} cannot be read ({error.strerror})")
    return found
