"""Ends a run in which nothing moves any more: with the stacks of all ranks, and not in silence."""

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from pretrain.distributed import rank, world_size
from pretrain.signals import Signals

EX_TEMPFAIL = 75
"""Exit code of what may be tried again (sysexits.h)."""

_KEY = "isotorus/given_up"
_POLL_SECONDS = 2.0
_LINGER_SECONDS = 10.0
"""From this rank's stack to its end, which the others would take for the failure."""


class Watchdog(threading.Thread):
    """One on each rank waits for `progress` calls; the first to miss them has all write their stacks."""

    def __init__(self, folder: Path, hang: float, grace: float, signals: Signals) -> None:
        """Seconds without progress, and from a signal to the end; stacks go to `folder`."""
        super().__init__(name="watchdog", daemon=True)
        self.path, self.hang, self.grace, self.signals = folder / f"rank{rank()}.txt", hang, grace, signals
        self.last_words: Callable[[], None] | None = None
        """Called before the process ends, in a thread of its own that may take a few seconds."""
        self._moved = time.monotonic()
        self._ended = threading.Event()
        # A connection of its own: the process's may be in use, by what hangs.
        self._store = dist.distributed_c10d._get_default_store().clone() if world_size() > 1 else None

    def progress(self) -> None:
        """Something has moved."""
        self._moved = time.monotonic()

    def end(self) -> None:
        """The run has come to its end, whichever."""
        self._ended.set()

    def run(self) -> None:
        while not self._ended.wait(min(_POLL_SECONDS, self.hang / 4, self.grace / 4)):
            if reason := self._reason():
                self._give_up(reason)

    def _reason(self) -> str:
        now = time.monotonic()
        if now - self._moved > self.hang:
            return (
                f"no step for stopping.hang={self.hang:g} s: a rank is stuck or gone; run the same command "
                "again to continue, or raise stopping.hang if it was only slow"
            )
        if self.signals.since is not None and now - self.signals.since > self.grace:
            return (
                f"stopping took longer than stopping.grace={self.grace:g} s and was given up; run the same "
                "command again to continue from the newest checkpoint"
            )
        with contextlib.suppress(RuntimeError):  # the store's host may be gone
            if self._store is not None and self._store.check([_KEY]):
                return "another rank has given up"
        return ""

    def _give_up(self, reason: str) -> None:
        first = True
        with contextlib.suppress(RuntimeError):
            first = self._store is None or self._store.add(_KEY, 1) == 1
        with contextlib.suppress(OSError):  # a full disk must not keep the process alive
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("w") as file:
                file.write(f"rank {rank()}, {socket.gethostname()}, process {os.getpid()}: {reason}\n\n")
                file.flush()
                faulthandler.dump_traceback(file)
        if first:
            print(
                f"error: rank {rank()}: {reason}; all ranks' stacks are in {self.path.parent}, this one's:",
                file=sys.stderr,
                flush=True,
            )
            faulthandler.dump_traceback(sys.stderr)
        began = time.monotonic()
        if self.last_words:
            said = threading.Thread(target=self.last_words, daemon=True)
            said.start()
            said.join(_LINGER_SECONDS)
        if world_size() > 1:
            time.sleep(max(0.0, _LINGER_SECONDS - (time.monotonic() - began)))
        os._exit(EX_TEMPFAIL)
