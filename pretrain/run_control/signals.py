"""SIGTERM and SIGUSR1: the wish that a run should stop.

Slurm and Kubernetes send SIGTERM before they kill; SIGUSR1 is what one asks Slurm to send some time
before the end of a job (`--signal=USR1@300`), so that it can be queued again.
"""

import signal
import time
from enum import IntEnum
from types import FrameType


class Wish(IntEnum):
    """What a rank wants all to do; of several the largest is done."""

    GO_ON = 0
    STOP = 1
    """SIGTERM."""
    REQUEUE = 2
    """SIGUSR1."""
    LOOK_AT_SAVE = 3
    """A save in the background has failed."""


class Signals:
    """The signals that this process was asked to stop by."""

    def __init__(self) -> None:
        self.wish = Wish.GO_ON
        self.since: float | None = None
        """When the first one came, as by `time.monotonic`."""

    def listen(self) -> None:
        """From now on SIGTERM and SIGUSR1 are wishes; in the main thread."""
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGUSR1, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.ask(Wish.REQUEUE if number == signal.SIGUSR1 else Wish.STOP)

    def ask(self, wish: Wish) -> None:
        """As if the signal for it had come."""
        self.wish = max(self.wish, wish)
        if self.since is None:
            self.since = time.monotonic()
