"""Read a tar file from beginning to end: the place of every file in it, and the SHA-256 of the whole.

Python's `tarfile` is not used for this because it treats a damaged header as the end of the archive and so
loses the rest without an error. Here every byte must belong to something, and anything that cannot be read up
to the end marker raises `Damaged`. `tarfile` still decodes single headers. Nothing is extracted.
"""

import contextlib
import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from tarfile import BLOCKSIZE
from typing import BinaryIO

from isotorus.errors import one_line

_CHUNK = 2**20  # bytes read at once
LONGEST_HEADERS = 2**20
"""Most bytes that the headers of one file may have, including long names and extended attributes."""
_GNU_MAGIC = b"ustar  \0"
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LONGEST_SHOWN = 200  # characters of a name in a message


class Damaged(Exception):
    """What is wrong with a tar file, and at which byte; the text continues a sentence that begins with its
    name.
    """


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar, or a link to one."""

    name: str
    """Name in the tar; bytes that are not UTF-8 are represented by surrogates."""
    offset: int
    """Offset in bytes of its content."""
    size: int
    """Size of its content in bytes."""
    link: bool
    """Whether it is a link to another file and has no content of its own."""


class Tar:
    """Iterates once over the files in a tar of any dialect (v7, ustar, GNU, pax), in their order.

    `read()` returns the content of the current file. Both raise `Damaged`. After the iteration, `sha256` is
    the hash of the whole tar.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self.size = size
        self._position = 0
        self._hash = hashlib.sha256()
        self._member = Member("", 0, 0, link=False)

    def __iter__(self) -> Iterator[Member]:
        while (info := self._next_header()) is not None:
            has_content = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
            size = info.size if has_content else 0
            padded = -(-size // BLOCKSIZE) * BLOCKSIZE
            end = self._position + padded
            if end > self.size:
                raise Damaged(
                    f"ends at byte {self.size}, inside the member {printable(info.name)} "
                    f"of {size} bytes that begins at byte {self._position}"
                )
            self._member = Member(info.name, self._position, size, info.islnk() or info.issym())
            if info.isreg() or self._member.link:
                yield self._member
            while self._position < end:
                self._take(min(_CHUNK, end - self._position))
        self._rest()

    def read(self) -> bytes:
        """Return the content of the current file; may be called once for each file."""
        assert self._position == self._member.offset
        return self._take(self._member.size)

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes read so far, in hexadecimal digits."""
        return self._hash.hexdigest()

    def _take(self, count: int) -> bytes:
        """Read the next `count` bytes and add them to the hash."""
        data = self._stream.read(count)
        self._hash.update(data)
        self._position += len(data)
        if len(data) != count:
            raise Damaged(f"ends at byte {self._position}, though it had {self.size} bytes when opened")
        return data

    def _next_header(self) -> tarfile.TarInfo | None:
        """Read the header of the next file, with the long name and size of its extended headers; None at
        the end marker.
        """
        name: bytes | None = None
        size: int | None = None
        begin = self._position
        while True:
            at = self._position
            if at + BLOCKSIZE - begin > LONGEST_HEADERS:
                raise Damaged(f"has headers of more than {LONGEST_HEADERS} bytes at byte {begin}")
            if at + BLOCKSIZE > self.size:
                raise Damaged(_without_end(self.size) if self.size else "is empty")
            block = self._take(BLOCKSIZE)
            if not any(block):
                if name is not None or size is not None:
                    raise Damaged(f"has an extended header without a member before byte {at}")
                return None
            info = _parse(block, at)
            match info.type:
                case tarfile.GNUTYPE_LONGNAME:
                    name = self._extended(info, at).partition(b"\0")[0]
                case tarfile.XHDTYPE | tarfile.SOLARIS_XHDTYPE:
                    records = _pax_records(self._extended(info, at), at)
                    name = records.get(b"path") or name
                    size = _pax_size(records, at) if b"size" in records else size
                case tarfile.GNUTYPE_LONGLINK | tarfile.XGLTYPE:
                    self._extended(info, at)
                case tarfile.GNUTYPE_SPARSE:
                    raise Damaged(_sparse(at))
                case b"M":
                    raise Damaged(f"continues another tar at byte {at}; make it again in one volume")
                case _:
                    if name is not None:
                        info.name = name.decode("utf-8", "surrogateescape")
                    info.size = info.size if size is None else size
                    return info

    def _extended(self, info: tarfile.TarInfo, at: int) -> bytes:
        """Return the content of an extended header."""
        if info.size > LONGEST_HEADERS:
            raise Damaged(f"has an extended header of {info.size} bytes at byte {at}")
        padded = -(-info.size // BLOCKSIZE) * BLOCKSIZE
        if self._position + padded > self.size:
            raise Damaged(_without_end(self.size))
        return self._take(padded)[: info.size]

    def _rest(self) -> None:
        """Read the bytes after the end marker; raise `Damaged` if they are not zero, as files there would
        be missed.
        """
        marker = self._position - BLOCKSIZE
        while self._position < self.size:
            if any(self._take(min(_CHUNK, self.size - self._position))):
                raise Damaged(
                    f"has more data after its end marker at byte {marker}; "
                    "if several tars were joined, take them apart"
                )


def names_before(headers: bytes) -> Iterator[str]:
    """Yield the names that a file may have whose content follows the bytes `headers`.

    The length of its headers is not known, so each block of 512 bytes is tried as their beginning, last one
    first.
    """
    for start in range(len(headers) - BLOCKSIZE, -1, -BLOCKSIZE):
        tar = Tar(io.BytesIO(headers[start:]), len(headers) - start)
        with contextlib.suppress(Damaged):
            info = tar._next_header()
            if info is not None and tar._position == tar.size:
                yield info.name


def key_and_extension(name: str) -> tuple[str, str] | None:
    """Return the key and extension in a file's name: WebDataset's key is the path up to the first dot of the
    name.

    The extension is in lower case and may contain dots, such as "left.png". None if either is missing.
    """
    folder, slash, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and dot else None


def stem(key: str, extension: str) -> str:
    """Return a file's name without what follows its last dot: "a.left" for the key a and "left.png"."""
    return ".".join(filter(None, (key, extension.rpartition(".")[0])))


def printable(name: str) -> str:
    """Return a name or key for messages: on one line, and cut if it is very long."""
    return one_line(name[:_LONGEST_SHOWN]) + "…" * (len(name) > _LONGEST_SHOWN)


def _parse(block: bytes, at: int) -> tarfile.TarInfo:
    """Decode one header block; raise `Damaged` if that is impossible."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if at == 0:
            for magic, kind in _COMPRESSED.items():
                if block.startswith(magic):
                    raise Damaged(f"is compressed ({kind}); unpack it first") from None
        raise Damaged(f"has no readable header at byte {at} ({error})") from None
    if info.size < 0:
        raise Damaged(f"has a member of {info.size} bytes at byte {at}")
    if block[257:265] == _GNU_MAGIC:  # GNU tar stores times where `tarfile` expects the name of a folder
        info.name = block[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return info


def _pax_records(data: bytes, at: int) -> dict[bytes, bytes]:
    """Return the records of a pax header: "LENGTH KEYWORD=VALUE\\n", where the length counts the whole
    record.
    """
    records = {}
    start = 0
    while start < len(data):
        digits, _, _ = data[start : start + 20].partition(b" ")
        end = start + int(digits) if digits.isdigit() else 0
        keyword, equals, value = data[start + len(digits) + 1 : end].partition(b"=")
        if not equals or end > len(data) or not value.endswith(b"\n"):
            raise Damaged(f"has an extended header at byte {at} that cannot be read")
        if keyword.startswith(b"GNU.sparse."):
            raise Damaged(_sparse(at))
        records[keyword] = value[:-1]
        start = end
    return records


def _pax_size(records: dict[bytes, bytes], at: int) -> int:
    """Return the file size in a pax header."""
    digits = records[b"size"]
    if not digits.isdigit() or len(digits) > 20:
        raise Damaged(f"has an extended header at byte {at} with an impossible size")
    return int(digits)


def _without_end(at: int) -> str:
    """Describe a tar without an end marker."""
    return f"stops at byte {at} without an end marker; it was cut off, or its writer was stopped"


def _sparse(at: int) -> str:
    """Describe a tar with sparse files."""
    return f"has a sparse member at byte {at}; make it again without --sparse"
