"""Tars of every dialect, made by other programs than ours, and a parser that shares no code with any."""

import io
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import webdataset


def _python(format: int) -> Callable[[Path, dict[str, bytes]], None]:
    def make(tar: Path, files: dict[str, bytes]) -> None:
        with tarfile.open(tar, "w", format=format) as out:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                info.mtime = 1.5 if format == tarfile.PAX_FORMAT else 1
                out.addfile(info, io.BytesIO(content))

    return make


def _gnu(*options: str) -> Callable[[Path, dict[str, bytes]], None]:
    def make(tar: Path, files: dict[str, bytes]) -> None:
        folder = tar.parent / f"{tar.stem}.files"
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        subprocess.run(["tar", "-C", folder, *options, "-cf", tar, "--", *files], check=True)

    return make


def _shard_writer(tar: Path, files: dict[str, bytes]) -> None:
    samples: dict[str, dict[str, bytes | str]] = {}
    for name, content in files.items():
        key, _, extension = name.partition(".")
        samples.setdefault(key, {"__key__": key})[extension] = content
    with webdataset.ShardWriter(str(tar.parent / "written-%d.tar"), encoder=False, verbose=0) as writer:
        for sample in samples.values():
            writer.write(sample)
    (tar.parent / "written-0.tar").rename(tar)


MAKERS = {
    "python-ustar": _python(tarfile.USTAR_FORMAT),
    "python-gnu": _python(tarfile.GNU_FORMAT),
    "python-pax": _python(tarfile.PAX_FORMAT),
    "gnu-v7": _gnu("--format=v7"),
    "gnu-oldgnu": _gnu("--format=oldgnu"),
    "gnu-gnu": _gnu("--format=gnu"),
    "gnu-incremental": _gnu("--format=gnu", "--incremental"),
    "gnu-ustar": _gnu("--format=ustar"),
    "gnu-pax": _gnu("--format=posix"),
    "shard-writer": _shard_writer,
}
LONG_NAMES = set(MAKERS) - {"python-ustar", "gnu-v7", "gnu-ustar"}


def parse(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Offset and content of the regular files in a tar of plain, GNU long and pax names."""
    found: dict[str, tuple[int, bytes]] = {}
    at, long_name = 0, None
    while any(header := data[at : at + 512]):
        name, size, kind, prefix = struct.unpack("100s24x12s20xc188x155s12x", header)
        length = int(size.rstrip(b" \0"), 8)
        content = data[at + 512 : at + 512 + length]
        if kind == b"L":
            long_name = content
        elif kind == b"x":
            rest = content
            while rest:
                record, rest = (rest[: (n := int(rest.split(b" ")[0]))], rest[n:])
                if record.split(b" ", 1)[1].startswith(b"path="):
                    long_name = record.split(b"=", 1)[1][:-1]
        elif kind in b"0\0":
            is_posix = header[257:263] == b"ustar\0"
            short = prefix.rstrip(b"\0") + b"/" + name if is_posix and any(prefix) else name
            found[(long_name or short).rstrip(b"\0").decode()] = at + 512, content
            long_name = None
        at += 512 + -(-length // 512) * 512
    return found
