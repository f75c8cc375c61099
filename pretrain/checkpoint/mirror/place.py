"""A run's folder in an object store, with the same folders and files as on the disk.

A checkpoint in the store counts once it has COMPLETE, which is written last and lists the size and CRC-32 of
the other files. Every object is read back after it was written, and compared with what was sent.
"""

import json
import re
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_pipeline.storage import remote
from isotorus.errors import UserError

LISTING = "COMPLETE"
_AT_ONCE, _RANGE = 4, 16 * 2**20
"""Number of ranges of an object that are read concurrently, and the bytes of each."""
_STEP = re.compile(r"step_(\d{8,})")
_FILE = re.compile(r"\.metadata|__\d+_\d+\.distcp|encoder\.json|[a-z_]+\.safetensors")
"""Names of the files of a checkpoint. A COMPLETE in the store that lists other names is refused."""
SMALL = ("config.yaml", "metrics.jsonl", "skipped.jsonl", "corrupt.jsonl", "mlflow.json")
"""Files of a run beside its checkpoints."""
HISTORY = "config_history"
_OF_HISTORY = re.compile(r"[\w-]+\.yaml")


class Altered(UserError):
    """An object does not hold the bytes that were sent, or a checkpoint is not whole."""


@dataclass(frozen=True)
class Place:
    """Where a run is mirrored. Methods raise `UserError` if the store refuses or does not answer."""

    url: str
    """URL of the run's folder in the store."""
    patience: float
    """Seconds for which a failing request is repeated."""

    def at(self, name: str) -> str:
        """Return the URL of a file, given by its path relative to the run's folder."""
        return f"{self.url}/{name}"

    def try_out(self) -> None:
        """Write a small object, read it back and delete it; raises `UserError` if that does not work."""
        self.write(".trial", b"a trial of checkpoint.mirror\n")
        remote.delete(self.at(".trial"), self.patience)

    def objects(self) -> dict[int, dict[str, int]]:
        """Return names and sizes of the objects of each checkpoint in the store, whole or not, by step."""
        found: dict[int, dict[str, int]] = {}
        for url, size in remote.list_objects(self.at("checkpoints"), self.patience).items():
            *_, folder, name = url.split("/")
            if step := _STEP.fullmatch(folder):
                found.setdefault(int(step[1]), {})[name] = size
        return found

    def complete(self) -> set[int]:
        """Return the steps of the complete checkpoints in the store."""
        return {step for step, names in self.objects().items() if LISTING in names}

    def small_files(self) -> dict[str, bytes]:
        """Return the contents of the run's files beside its checkpoints, by paths relative to its folder."""
        history = [url.rpartition("/")[2] for url in remote.list_objects(self.at(HISTORY), self.patience)]
        names = [*SMALL, *(f"{HISTORY}/{name}" for name in history if _OF_HISTORY.fullmatch(name))]
        found = {}
        for name in names:
            with suppress(remote.NotThere):
                found[name] = self.content(name)
        return found

    def write(self, name: str, content: bytes | Path, listed: list[int] | None = None) -> None:
        """Write a file and read it back; raise `Altered` if the object is absent then or has other bytes.

        `listed` is the size and CRC-32 of the file. It must be given if `content` is a path.
        """
        url = self.at(name)
        if isinstance(content, bytes):
            listed = [len(content), zlib.crc32(content)]
        assert listed is not None
        remote.write(url, content, self.patience)
        try:
            found = remote.version(url, self.patience).size
        except remote.NotThere:
            raise Altered(
                f"{remote.shown(url)} is not there, though it was written without an error"
            ) from None
        if found != listed[0]:
            raise Altered(
                f"{remote.shown(url)} has {found} bytes, though {listed[0]} were written without an error"
            )
        if self.read(name, listed[0]) != listed[1]:
            raise Altered(f"{remote.shown(url)} has other bytes than were written, without an error")

    def read(
        self, name: str, size: int, to: BinaryIO | None = None, progress: Callable[[], None] = lambda: None
    ) -> int:
        """Read `size` bytes of an object, write them to the open file `to` if given, return their CRC-32.

        `progress` is called after each batch of ranges.
        """
        checksum = 0
        for start in range(0, size, _AT_ONCE * _RANGE):
            stop = min(size, start + _AT_ONCE * _RANGE)
            ranges = [(at, min(stop, at + _RANGE)) for at in range(start, stop, _RANGE)]
            for part in remote.read(self.at(name), ranges, self.patience):
                checksum = zlib.crc32(part, checksum)
                if to:
                    to.write(part)
            progress()
        return checksum

    def content(self, name: str) -> bytes:
        """Return the bytes of a small object."""
        url = self.at(name)
        size = remote.version(url, self.patience).size
        return remote.read(url, [(0, size)], self.patience)[0] if size else b""

    def listing(self, step: int) -> dict[str, list[int]]:
        """Return the size and CRC-32 of each file of a complete checkpoint.

        Raises `Altered` if the listing cannot be read, or names a file that no checkpoint has.
        """
        name = f"{folder(step)}/{LISTING}"
        try:
            listed = json.loads(self.content(name))
            good = all(_FILE.fullmatch(file) and [int(x) for x in pair] == pair and len(pair) == 2
                       for file, pair in listed.items())  # fmt: skip
        except (ValueError, RecursionError, AttributeError, TypeError):
            good = False
        if not good:
            raise Altered(f"{remote.shown(self.at(name))} is no list of files")
        return dict(listed)

    def delete(self, step: int, names: list[str]) -> None:
        """Delete the objects of a checkpoint, beginning with COMPLETE, so that it no longer counts."""
        for name in sorted(names, key=lambda name: name != LISTING):
            remote.delete(self.at(f"{folder(step)}/{name}"), self.patience)


def folder(step: int) -> str:
    """Return the path of a checkpoint relative to its run."""
    return f"checkpoints/step_{step:08d}"
