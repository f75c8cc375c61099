"""End a run that makes no progress any more, with the Python stacks of all ranks for a person to read."""

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from isotorus.errors import TRY_AGAIN
from pretrain.distributed import rank, world_size
from pretrain.run_control.config import StoppingConfig
from pretrain.run_control.lock import Lock
from pretrain.run_control.peers import Peers
from pretrain.run_control.signals import Signals

_POLL_SECONDS = 2.0
_LINGER_SECONDS = 10.0
"""Longest time in seconds that a rank stays after it has written its stack. If it ended before the others,
they would report its end as the failure."""


class Watchdog(threading.Thread):
    """A thread on each rank that expects `progress` calls; the first that misses them ends all ranks."""

    def __init__(
        self, folder: Path, config: StoppingConfig, signals: Signals, lock: Lock | None = None
    ) -> None:
        """Write stacks to `folder`."""
        super().__init__(name="watchdog", daemon=True)
        self.path, self.hang, self.grace = folder / f"rank{rank()}.txt", config.hang, config.grace
        self.signals, self.lock = signals, lock
        self.last_words: Callable[[], None] | None = None
        """What to call before the process ends, in a thread that may take a few seconds."""
        self._moved = time.monotonic()
        self._ended = threading.Event()
        self._peers = Peers(config.lost, config.unreachable) if world_size() > 1 else None

    def progress(self) -> None:
        """Note that the run has made progress."""
        self._moved = time.monotonic()

    def end(self) -> None:
        """Stop watching, because the run ends, well or with an error."""
        self._ended.set()
        if self._peers:
            self._peers.end()

    def run(self) -> None:
        if self._peers:
            self._peers.start()
        while not self._ended.wait(min(_POLL_SECONDS, self.hang / 4, self.grace / 4)):
            if self._peers and self._peers.error_reported:
                self._call_last_words()
                os._exit(2)
            if reason := self._reason():
                self._give_up(reason)

    def _reason(self) -> str:
        """Return why the run has to end now; empty while all is well."""
        now = time.monotonic()
        if now - self._moved > self.hang:
            return (
                f"no step for stopping.hang={self.hang:g} s: a rank is stuck or gone; run the same command "
                "again to continue, or raise stopping.hang if it was only slow"
            )
        if self.signals.first_at is not None and now - self.signals.first_at > self.grace:
            return (
                f"stopping took longer than stopping.grace={self.grace:g} s and was given up; run the same "
                "command again to continue from the newest checkpoint"
            )
        if self.lock and (taker := self.lock.renew()):
            return f"{self.path.parent.parent} was taken over by {taker}, as this run looked dead from there"
        return self._peers.silence() if self._peers else ""

    def _give_up(self, reason: str) -> None:
        """Write this rank's stack, make the other ranks write theirs, and end the process."""
        first = self._peers is None or self._peers.give_up()
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
        self._call_last_words()
        if self._peers:
            self._peers.note_stack()
            self._peers.await_stacks(began + _LINGER_SECONDS, first)
            if first and (missing := self._peers.without_stack()):
                text = f"no stack came from {missing}: stopped, or cut off from the others"
                print(text, file=sys.stderr, flush=True)
        os._exit(TRY_AGAIN)

    def _call_last_words(self) -> None:
        if self.last_words:
            thread = threading.Thread(target=self.last_words, daemon=True)
            thread.start()
            thread.join(_LINGER_SECONDS)
