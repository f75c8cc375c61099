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

from pretrain.distributed import rank, world_size
from pretrain.run_control.lock import Lock
from pretrain.run_control.peers import Peers
from pretrain.run_control.signals import Signals

EX_TEMPFAIL = 75
"""Exit code of what may be tried again (sysexits.h)."""

_POLL_SECONDS = 2.0
_LINGER_SECONDS = 10.0
"""From this rank's stack to its end, which the others would take for the failure."""


class Watchdog(threading.Thread):
    """One on each rank waits for `progress` calls; the first to miss them has all write their stacks."""

    def __init__(
        self,
        folder: Path,
        hang: float,
        grace: float,
        lost: float,
        signals: Signals,
        lock: Lock | None = None,
    ) -> None:
        """Seconds without progress, from a signal to the end, and without a word from a rank.

        Stacks go to `folder`.
        """
        super().__init__(name="watchdog", daemon=True)
        self.path, self.hang, self.grace, self.signals = folder / f"rank{rank()}.txt", hang, grace, signals
        self.lock = lock
        self.last_words: Callable[[], None] | None = None
        """Called before the process ends, in a thread of its own that may take a few seconds."""
        self._moved = time.monotonic()
        self._ended = threading.Event()
        self._peers = Peers(lost) if world_size() > 1 else None

    def progress(self) -> None:
        """Something has moved."""
        self._moved = time.monotonic()

    def end(self) -> None:
        """The run has come to its end, whichever."""
        self._ended.set()
        if self._peers:
            self._peers.end()

    def run(self) -> None:
        if self._peers:
            self._peers.start()
        while not self._ended.wait(min(_POLL_SECONDS, self.hang / 4, self.grace / 4)):
            if self._peers and self._peers.told:
                self._say_last_words()
                os._exit(2)
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
        if self.lock and (taker := self.lock.renew()):
            return f"{self.path.parent.parent} was taken over by {taker}, as this run looked dead from there"
        return self._peers.silence() if self._peers else ""

    def _give_up(self, reason: str) -> None:
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
        self._say_last_words()
        if self._peers:
            self._peers.note_stack()
            time.sleep(max(0.0, _LINGER_SECONDS - (time.monotonic() - began)))
            if first and (missing := self._peers.without_stack()):
                told = f"no stack came from {missing}: stopped, or cut off from the others"
                print(told, file=sys.stderr, flush=True)
        os._exit(EX_TEMPFAIL)

    def _say_last_words(self) -> None:
        if self.last_words:
            said = threading.Thread(target=self.last_words, daemon=True)
            said.start()
            said.join(_LINGER_SECONDS)
