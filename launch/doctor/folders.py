"""Check the run folder: every node can write there, it is the same on all, and checkpoints fit."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from isotorus.files import atomic
from launch.doctor.findings import ByHost, Facts, Finding, Status, grouped, ok, skipped

if TYPE_CHECKING:
    from pretrain.config import Config


@contextmanager
def nonce(folder: Path) -> Iterator[str]:
    """Write a file by which the other hosts recognise the folder, and yield its name. Remove it afterwards.

    Folders that had to be created are removed too. If the file cannot be written, the name is yielded anyway.
    """
    name = f".doctor-{uuid.uuid4().hex}"
    made = _make(folder)
    with contextlib.suppress(OSError):
        (folder / name).write_text(name)
    try:
        yield name
    finally:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
        _remove(made)


def measure(folder: Path, name: str) -> Facts:
    """Return the folder's free bytes, and whether it is writable and holds the first host's file `name`."""
    facts: Facts = {"shared": _reads(folder / name, name)}
    made = _make(folder)
    try:
        own = folder / f".doctor-{uuid.uuid4().hex}"
        with atomic(own) as file:  # written, synced, renamed
            file.write(b"doctor")
        own.unlink()
    except OSError as error:
        facts["error"] = error.strerror or str(error)
    while not folder.exists():
        folder = folder.parent
    facts["free"] = shutil.disk_usage(folder).free
    _remove(made)
    return facts


def room_for_checkpoints(config: "Config", ranks: int) -> tuple[float, int]:
    """Return the bytes of a checkpoint, and how many exist at most: those kept and the one being written.

    Raise UserError for a configuration that this number of ranks cannot run.
    """
    from pretrain.cost.memory_estimate import checkpoint_bytes, count_parameters
    from pretrain.preflight.model import check_model

    size = checkpoint_bytes(count_parameters(config, check_model(config, ranks)))
    all_of_them = -(-config.steps // config.checkpoint.every)
    kept = all_of_them
    if config.checkpoint.keep_last:
        older = config.steps // config.checkpoint.keep_every if config.checkpoint.keep_every else 0
        kept = min(all_of_them, config.checkpoint.keep_last + older)
    return size, kept + 1


def judge(facts: ByHost, folder: Path, size: float, count: int) -> list[Finding]:
    """Judge the run folder for `count` checkpoints of `size` bytes."""
    return [*_written(facts, folder), *_same(facts, folder), *_room(facts, folder, size, count)]


def _written(facts: ByHost, folder: Path) -> list[Finding]:
    remedy = "correct its owner or mount there, or choose another runs=…"
    problems = {
        host: (f"cannot write to {folder}: {own['error']}", remedy)
        for host, own in facts.items()
        if "error" in own
    }
    findings = grouped("write access", Status.FAILED, problems)
    return findings or ok("write access", f"written, synced and renamed in {folder}")


def _same(facts: ByHost, folder: Path) -> list[Finding]:
    if len(facts) == 1:
        return skipped("shared folder", "one host alone")
    first, *others = facts
    if not facts[first]["shared"]:
        return skipped("shared folder", f"{first} could not write to {folder}")
    odd = [host for host in others if not facts[host]["shared"]]
    if odd:
        observed = f"{folder} is another folder than on {first}"
        remedy = "mount the same file system there (NFS, Lustre, …), or choose runs=… on one"
        return [Finding("shared folder", Status.FAILED, odd, observed, remedy)]
    return ok("shared folder", f"{folder} is the same on all hosts")


def _room(facts: ByHost, folder: Path, size: float, count: int) -> list[Finding]:
    need = f"{count} checkpoints of {_bytes(size)} take {_bytes(size * count)}"
    remedy = "free some space, or lower checkpoint.keep_last, or choose another runs=…"
    problems = {
        host: (f"{_bytes(own['free'])} free in {folder}; {need}", remedy)
        for host, own in facts.items()
        if own["free"] < size * count
    }
    findings = grouped("disk room", Status.FAILED, problems)
    free = min(own["free"] for own in facts.values())
    return findings or ok("disk room", f"{_bytes(free)} free; {need}")


def _reads(path: Path, expected: str) -> bool:
    try:
        return path.read_text() == expected
    except OSError:
        return False


def _make(folder: Path) -> list[Path]:
    """Make a folder and its parents, and return those that did not exist."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return []
    return missing


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
