"""Whether the other ranks are still there: a heartbeat through the process group's store.

Of a host without power or network TCP tells nothing for a quarter of an hour, and a collective's own timeout
has to be longer than the slowest step. The store is asked from a thread of its own, as it does not answer
either when its host is the one that is gone.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from pretrain.distributed import rank, world_size

T = TypeVar("T")

TOLD = "isotorus/told"
"""Key of the store, there when a rank has said why the run ends."""
_GIVEN_UP = "isotorus/given_up"
_ANSWER_SECONDS = 5.0


class Peers(threading.Thread):
    """Rank 0 hears all ranks, and every rank hears whether one has given up."""

    def __init__(self, lost: float) -> None:
        """Called on all ranks alike, before they next meet; `lost` is the silence, in seconds, after which a
        rank is taken for gone."""
        super().__init__(name="peers", daemon=True)
        self.lost = lost
        self._ended = threading.Event()
        self.reason = ""
        """Why this rank should give up, once it should."""
        self.told = False
        """Whether a rank has ended with an error of the user's, for which this one may wait in vain."""
        # Connections of their own: the process's may be in use, by what hangs.
        store = dist.distributed_c10d._get_default_store()
        self._store, self._last = store.clone(), store.clone()
        self._store.set_timeout(timedelta(seconds=lost))
        self._answered = time.monotonic()
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._beats = 0
        self._beat()

    def run(self) -> None:
        every = min(5.0, self.lost / 5)
        slept = time.monotonic()
        while not self.reason:
            if time.monotonic() - slept > 2 * every + 1:  # suspended, all of them perhaps: hear them anew
                self._heard.clear()
                self._answered = time.monotonic()
            with contextlib.suppress(RuntimeError):  # the store's host may be gone
                self._beat()
                self.told = self._store.check([TOLD])
                if self._store.check([_GIVEN_UP]):
                    self.reason = "another rank has given up"
                elif rank() == 0:
                    self._listen()
                self._answered = time.monotonic()
            slept = time.monotonic()
            if self._ended.wait(every):
                return

    def end(self) -> None:
        """No more heartbeats; a thread still in the store when Python ends would abort the process."""
        self._ended.set()
        if self.is_alive():
            self.join(_ANSWER_SECONDS)

    def silence(self) -> str:
        """Who has not been heard of for too long, if someone has not; never waits."""
        if not self.reason and time.monotonic() - self._answered > self.lost:
            self.reason = self._gone(f"rank 0, at {os.environ.get('MASTER_ADDR', 'its host')},")
        return self.reason

    def give_up(self) -> bool:
        """Tell the others, if they can be told; whether this rank is the first to."""
        found = _ask(lambda: self._last.add(_GIVEN_UP, 1) == 1)
        return found is None or found

    def note_stack(self) -> None:
        """This rank has written its stack."""
        _ask(lambda: self._last.set(_stack(rank()), ""))

    def without_stack(self) -> str:
        """The ranks that have written none, with their hosts; "" for none, and where it cannot be known."""

        def look() -> str:
            missing = [r for r in range(world_size()) if not self._last.check([_stack(r)])]
            beats = self._last.multi_get([_key(r) for r in missing])
            hosts = [beat.decode().partition(" ")[2] for beat in beats]
            return ", ".join(f"rank {r} on {host}" for r, host in zip(missing, hosts, strict=True))

        return _ask(look) or ""

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(_key(rank()), f"{self._beats} {socket.gethostname()}")

    def _listen(self) -> None:
        now = time.monotonic()
        for other, beat in enumerate(self._store.multi_get([_key(r) for r in range(world_size())])):
            if self._heard.get(other, (b"", now))[0] != beat:
                self._heard[other] = beat, now
            elif now - self._heard[other][1] > self.lost:
                self.reason = self._gone(f"rank {other}, on {beat.decode().partition(' ')[2]},")

    def _gone(self, who: str) -> str:
        return (
            f"{who} has not been heard of for stopping.lost={self.lost:g} s; run the same command again to "
            "continue from the newest checkpoint"
        )


def _key(number: int) -> str:
    return f"isotorus/alive/{number}"


def _stack(number: int) -> str:
    return f"isotorus/stack/{number}"


def _ask(question: Callable[[], T]) -> T | None:
    """The store's answer, or None where there is none within some seconds."""
    answer: list[T] = []

    def ask() -> None:
        with contextlib.suppress(RuntimeError):
            answer.append(question())

    asked = threading.Thread(target=ask, daemon=True)
    asked.start()
    asked.join(_ANSWER_SECONDS)
    return answer[0] if answer else None
