"""What the command is doing, printed on standard error every ten seconds.

Like a logger, the current activity belongs to the process, so that the code that does the work can say what
it does without anything being handed down to it.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from isotorus.errors import one_line

EVERY = 10.0
"""Seconds between two lines."""


@dataclass
class _Current:
    """What is evaluated, what is being done with it, and since when."""

    subject: str = ""
    activity: str = ""
    since: float = 0.0


_current = _Current()


def evaluating(subject: str) -> None:
    """Set what is evaluated, such as "tiny, step 7 (1 of 2)"; an empty text when nothing is."""
    _current.subject, _current.activity, _current.since = subject, "", time.monotonic()


def doing(activity: str) -> None:
    """Set what is being done, such as "k-NN of pretrained"."""
    _current.activity = activity


def line() -> str:
    """Return one line about the current activity; an empty text if there is none."""
    said = ": ".join(filter(None, (_current.subject, _current.activity)))
    return f"{said} ({time.monotonic() - _current.since:.0f} s)" if said and _current.subject else said


@contextmanager
def shown(*, enabled: bool = True) -> Iterator[None]:
    """Print the current activity every `EVERY` seconds until the end of the block."""
    if not enabled:
        yield
        return
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(EVERY):
            if said := line():
                print(one_line(said), file=sys.stderr, flush=True)

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        evaluating("")
