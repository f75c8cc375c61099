"""One run at a time in a run folder: rank 0 holds <run>/lock while it trains.

On one machine the file system's own lock decides: the kernel knows its living processes, whatever their ids
and the host's name. Between machines it cannot decide: not every shared file system has locks that reach
other machines, and some keep the lock of a machine that has died. In this case the file's modification time
decides. The holder renews it, and a process that wants the folder watches, by its own stopwatch, whether it
changes; no two clocks are compared.
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

LOCK = "lock"
"""Name of the lock file in a run's folder."""
STALE_SECONDS = 30.0
"""Seconds without a renewal after which a holder on another machine counts as dead; the watchdog renews the
lock."""
_PATIENCE_SECONDS = 10.0
"""Seconds to wait for a holder on this machine, because a killed process may take a while to disappear."""
_POLL_SECONDS = 0.5
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}


@contextmanager
def hold(folder: Path) -> Iterator["Lock"]:
    """Hold a run folder for the length of the block; raises UserError if another run holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder / LOCK)
    try:
        yield lock
    finally:
        lock.release()


class Lock:
    """The lock file of a run folder, held by this process.

    It contains one line of JSON about its holder, and is empty when nobody holds it. Nothing else in this
    process may open the file: a POSIX lock is lost when any descriptor of its file is closed.
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
        """Show others that the run is alive; return who has taken the folder over, or "" if nobody has."""
        with contextlib.suppress(OSError):  # an unreachable file server says nothing about the lock
            os.utime(self._file)
            here, there = os.fstat(self._file), self.path.stat()
            holder = self._read()
            if (here.st_ino, here.st_dev) != (there.st_ino, there.st_dev):
                return "another run"
            if holder and holder["id"] != self._mine["id"]:
                return _who(holder)
        return ""

    def release(self) -> None:
        """Empty the file, unless another run has taken it over, and give up the lock."""
        with contextlib.suppress(OSError):
            if not self.renew():
                self._write("")
        file, self._file = self._file, -1  # the watchdog may be about to renew it
        os.close(file)

    def _wait(self) -> bool:
        """Wait until the previous holder is known to be dead; return whether its file can be used.

        If not, the file must be replaced. Raises UserError if the holder is alive.
        """
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
            # Clients of a file server see the newest state of a file when they open it.
            os.close(self._file)
            self._file = _open(self.path)

    def _try(self) -> bool | None:
        """Try to take the file system's lock; return whether it worked, None where there are no locks."""
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
        """Put a new file in place of one whose lock the server keeps for a dead machine."""
        fresh = self.path.with_name(f".lock.{uuid.uuid4().hex}")
        os.close(self._file)
        self._file = _open(fresh)
        self._try()
        fresh.rename(self.path)

    def _modified(self) -> int:
        return os.fstat(self._file).st_mtime_ns

    def _read(self) -> dict[str, Any]:
        try:
            holder = json.loads(os.pread(self._file, 4096, 0))
        except (ValueError, RecursionError):
            return {}  # empty, or half a line, whose writer was killed
        return holder if isinstance(holder, dict) and "id" in holder else {}

    def _write(self, text: str) -> None:
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text.encode(), 0)
        os.fsync(self._file)


def _open(path: Path) -> int:
    # Through a link in a run folder that others have made, the lock would empty a file of this user.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)


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
    """Identify this kernel since its boot; host names may change, and differ between containers of a host."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _launch() -> str:
    """Identify the start of torchrun that this rank belongs to; empty if it has none."""
    given = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return "" if given == "none" else given


def _same_launch(holder: dict[str, Any]) -> bool:
    """Return whether the holder was an earlier rank 0 of this elastic launch, which has ended its old ranks.

    After an elastic restart rank 0 may be on another machine.
    """
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    return restarted and _launch() != "" and holder.get("launch") == _launch()
