"""One run at a time in a run folder: rank 0 holds <run>/lock while it trains.

The file system's lock tells at once whether a process on this machine holds it: a kernel knows its living
processes, whatever their ids and the host's name. Not every shared file system has locks that reach other
machines, and some keep those of a machine that has died. Between machines it is therefore the file's
modification time that tells: the holder renews it, and who wants the folder watches by its own stopwatch
whether it changes. No clocks are compared.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isotorus.errors import UserError

STALE_SECONDS = 30.0
"""Without a renewal, after which the holder on another machine counts as dead. Renewed by the watchdog."""
_PATIENCE_SECONDS = 10.0
"""For which a holder on this machine is waited for: a killed process may take a while to be gone."""
_POLL_SECONDS = 0.5
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}


@contextmanager
def hold(folder: Path) -> Iterator["Lock"]:
    """Hold a run folder, as long as the block lasts; raises UserError if another run does."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder / "lock")
    try:
        yield lock
    finally:
        lock.release()


class Lock:
    """The lock file of a run folder, taken.

    It has one line of JSON on who holds it, and is empty when nobody does. Only this object may open the
    file in this process: POSIX locks go when any descriptor of it is closed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open(path)
        try:
            if not self._wait():
                self._replace()
            self._mine = _describe_self()
            self._write(json.dumps(self._mine) + "\n")
        except BaseException:
            os.close(self._file)
            raise

    def renew(self) -> str:
        """Tell others that the run is alive; returns who has taken the folder, if someone has, or nothing."""
        with contextlib.suppress(OSError):  # a file server that is away says nothing about the lock
            os.utime(self._file)
            here, there = os.fstat(self._file), self.path.stat()
            holder = self._read()
            if (here.st_ino, here.st_dev) != (there.st_ino, there.st_dev):
                return "another run"
            if holder and holder["id"] != self._mine["id"]:
                return _who(holder)
        return ""

    def release(self) -> None:
        with contextlib.suppress(OSError):
            if not self.renew():
                self._write("")
        file, self._file = self._file, -1  # the watchdog may be about to renew it
        os.close(file)

    def _wait(self) -> bool:
        """Until the holder before is known to be gone: whether the file can be used, or must be replaced."""
        began, seen, here = time.monotonic(), self._modified(), _machine()
        while True:
            locked, holder = self._try(), self._read()
            beside = holder.get("machine") == here
            if locked and (not holder or beside or _same_launch(holder)):
                return True
            waited = time.monotonic() - began
            lives = self._modified() != seen or (beside and locked is False and waited > _PATIENCE_SECONDS)
            if holder and lives:
                raise UserError(
                    f"{self.path.parent} is being trained by {_who(holder)}; wait for it or stop it, or "
                    "choose another name for this run"
                )
            if waited > STALE_SECONDS:
                return locked is not False
            time.sleep(_POLL_SECONDS)
            # A client of a file server looks afresh when it opens.
            os.close(self._file)
            self._file = _open(self.path)

    def _try(self) -> bool | None:
        """Whether this process has the file system's lock now; None where there are none."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return None
            raise
        return True

    def _replace(self) -> None:
        """Leave the old file to a lock that a server keeps for a machine that is no more."""
        fresh = self.path.with_name(f".lock.{uuid.uuid4().hex}")
        os.close(self._file)
        self._file = _open(fresh)
        self._try()
        fresh.rename(self.path)

    def _modified(self) -> int:
        return os.fstat(self._file).st_mtime_ns

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(os.pread(self._file, 4096, 0))
        except ValueError:
            return {}  # empty, or half a line of one that was killed there

    def _write(self, text: str) -> None:
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text.encode(), 0)
        os.fsync(self._file)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _describe_self() -> dict[str, Any]:
    return {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "machine": _machine(),
        "launch": _launch(),
    }


def _who(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"


def _machine() -> str:
    """This kernel since it was booted; a host's name may change, and containers on one host have several."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _launch() -> str:
    """Which start of torchrun this rank belongs to; empty if that cannot be told."""
    given = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return "" if given == "none" else given


def _same_launch(holder: dict[str, Any]) -> bool:
    """After an elastic restart rank 0 may be on another machine: the ranks of before are ended then."""
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    return restarted and _launch() != "" and holder.get("launch") == _launch()
