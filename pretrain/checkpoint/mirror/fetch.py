"""Copy checkpoints from a run's mirror into the cache folder, for commands that read encoders.

Only what describes and holds the encoder is copied, not the files from which training continues. Each file
is compared with the list in COMPLETE, also when it was copied earlier. Processes that need the same run wait
for one another.
"""

import fcntl
import hashlib
import logging
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipeline.storage.remote import NotThere, shown
from isotorus.errors import MachineError, UserError, from_os_error
from isotorus.files import atomic
from isotorus.processes import first_rank_reports
from pretrain.checkpoint.damage import measure
from pretrain.checkpoint.mirror.address import copies
from pretrain.checkpoint.mirror.place import LISTING, Altered, Place, folder

log = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds for which a failing request is repeated."""
_CHECKPOINT = re.compile(r"(?P<run>.+)/checkpoints/step_(?P<step>\d{8,})")
_WHAT = "name a run in its mirror, such as s3://bucket/runs/NAME, or …/NAME/checkpoints/step_00001000"


def fetch(address: str, every: int | None = None) -> list[Path]:
    """Return the folders of the checkpoints that an address means, copied from the store if need be.

    A run stands for its newest whole checkpoint and, with `every`, also for those whose step is a multiple of
    it. A newest checkpoint that is damaged is left out, with a line in the log. Raises `UserError` if nothing
    is there, access is denied, the store does not answer, or a checkpoint that was asked for is damaged.
    """
    named = _CHECKPOINT.fullmatch(address.rstrip("/"))
    place = Place(named["run"] if named else address.rstrip("/"), PATIENCE)
    try:
        there = {step: sizes for step, sizes in place.objects().items() if LISTING in sizes}
        if not there or (named and int(named["step"]) not in there):
            raise UserError(f"{shown(address)}: no complete checkpoint is there; {_WHAT}")
        with _copy_of(place) as run:
            if named:
                step = int(named["step"])
                return [_copied(place, step, there[step], run)]
            return _newest(place, there, run, every)
    except UserError:
        raise
    except OSError as error:
        what = from_os_error(error, f"copying {shown(address)} to {copies()}")
        raise MachineError(f"{socket.gethostname()}: {what}") from None
    except Exception as error:  # the libraries behind fsspec raise all kinds
        said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"{shown(address)} cannot be read ({said}); {_WHAT}") from None


def _newest(place: Place, there: dict[int, dict[str, int]], run: Path, every: int | None) -> list[Path]:
    """Copy the newest whole checkpoint, and those before it whose steps are multiples of `every`."""
    wrong: UserError | None = None
    found: list[Path] = []
    for step in sorted(there, reverse=True):
        if found and not (every and step % every == 0):
            continue
        try:
            found.append(_copied(place, step, there[step], run))
        except Altered as error:
            log.warning("note: %s; it is left out", error)
            wrong = wrong or error
    if not found:
        raise wrong or UserError(f"{shown(place.url)}: no complete checkpoint is there; {_WHAT}")
    return found[::-1]


@contextmanager
def _copy_of(place: Place) -> Iterator[Path]:
    """Return the folder of a run's copies, which no other process changes inside this block."""
    home = copies() / hashlib.sha256(place.url.encode()).hexdigest()[:16]
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        with suppress(OSError):  # file systems without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield home / place.url.rpartition("/")[2]


def _copied(place: Place, step: int, sizes: dict[str, int], run: Path) -> Path:
    """Return the folder of a checkpoint, which is whole; raise `Altered` if it is damaged in the store.

    `sizes` are those of its objects in the store.
    """
    final, where = run / folder(step), shown(place.at(folder(step)))
    try:
        said = place.content(f"{folder(step)}/{LISTING}")
        files = {name: pair for name, pair in place.listing(step).items() if _is_needed(name)}
    except NotThere as error:  # removed meanwhile
        raise Altered(f"{where} is not there any more ({error})") from None
    if _is_whole(final, said, files):
        return final
    partial = final.with_name(f".partial_{step:08d}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    megabytes = sum(size for size, _ in files.values()) / 1e6
    if not first_rank_reports():
        print(f"downloading step {step} of {shown(place.url)}, {megabytes:.1f} MB", file=sys.stderr)
    try:
        for name, (size, checksum) in files.items():
            if sizes.get(name) != size:
                has = f"has {sizes[name]} bytes instead of {size}" if name in sizes else "is missing"
                raise Altered(f"{where} is damaged there: {name} {has}")
            with (partial / name).open("wb") as file:
                found = place.read(f"{folder(step)}/{name}", size, file)
            if found != checksum:
                raise Altered(f"{where} is damaged there: {name} has other bytes than when it was written")
        (partial / LISTING).write_bytes(said)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, NotThere):
            raise Altered(f"{where} was removed while it was read ({error})") from None
        raise
    for name, content in place.small_files().items():
        (run / name).parent.mkdir(exist_ok=True)
        with atomic(run / name) as small:
            small.write(content)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return final


def _is_needed(name: str) -> bool:
    """Return whether a file of a checkpoint belongs to its encoder."""
    return name == "encoder.json" or name.endswith(".safetensors")


def _is_whole(checkpoint: Path, said: bytes, files: dict[str, list[int]]) -> bool:
    """Return whether a copy has the same list as the store, and the listed bytes."""
    try:
        same = (checkpoint / LISTING).read_bytes() == said
        return same and all(measure(checkpoint / name) == pair for name, pair in files.items())
    except OSError:
        return False
