"""Heartbeats between ranks, through the process group's store, which show when a rank or host is lost.

The timeout of a collective call has to be longer than the slowest step, so it would show a loss too late. The
store is asked from a separate thread, because the store does not answer if the host that serves it is lost.
`reach.py` notices sooner that a whole host is gone.
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
from pretrain.run_control.reach import Reach

T = TypeVar("T")

ERROR_REPORTED = "isotorus/error_reported"
"""Key that is set in the store once a rank has printed the error that ends the run."""
_GIVEN_UP = "isotorus/given_up"
_STACKS = "isotorus/stacks"
"""Key that counts the ranks that have written their stacks."""
_LEAVE = "isotorus/leave"
"""Key that is set once no more stacks are expected."""
_ANSWER_SECONDS = 5.0
_RUN_AGAIN = "run the same command again to continue from the newest checkpoint"


class Peers(threading.Thread):
    """A thread that sends heartbeats; rank 0 checks those of all ranks, the others whether one gave up."""

    def __init__(self, lost: float, unreachable: int) -> None:
        """Connect to the store, on all ranks before their next collective.

        A rank counts as lost after `lost` seconds without a heartbeat, and a host as gone after `unreachable`
        seconds without an answer from its kernel.
        """
        super().__init__(name="peers", daemon=True)
        self.lost = lost
        self._ended = threading.Event()
        self.reason = ""
        """Why this rank should give up; empty while it should not."""
        self.error_reported = False
        """Whether a rank has printed a user error and ended, so that waiting for it is useless."""
        # New connections, because the process's own may be in use by the call that hangs.
        store = dist.distributed_c10d._get_default_store()
        self._store, self._last = store.clone(), store.clone()
        self._store.set_timeout(timedelta(seconds=lost))
        self._answered = time.monotonic()
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._beats = 0
        self._beat()
        self._reach = Reach(self._store, unreachable)

    def run(self) -> None:
        every = min(5.0, self.lost / 5)
        slept = time.monotonic()
        while not self.reason:
            if time.monotonic() - slept > 2 * every + 1:  # suspended, perhaps with all others: start anew
                self._heard.clear()
                self._answered = time.monotonic()
            with contextlib.suppress(RuntimeError):  # the store's host may be lost
                self._beat()
                self._reach.join()
                self.error_reported = self._store.check([ERROR_REPORTED])
                if self._store.check([_GIVEN_UP]):
                    self.reason = "another rank has given up"
                elif rank() == 0:
                    self._check_beats()
                self._answered = time.monotonic()
            slept = time.monotonic()
            if self._ended.wait(every):
                return

    def end(self) -> None:
        """End the thread: one that still uses the store when Python ends would abort the process."""
        self._ended.set()
        if self.is_alive():
            self.join(_ANSWER_SECONDS)

    def silence(self) -> str:
        """Return why this rank should give up, as a sentence, or ""; never waits."""
        if not self.reason and (reason := self._reach.look()):
            self.reason = f"{reason}; {_RUN_AGAIN}" if self._reach.gone else reason
        if not self.reason and time.monotonic() - self._answered > self.lost:
            self.reason = self._lost_message(f"rank 0, at {os.environ.get('MASTER_ADDR', 'its host')},")
        return self.reason

    def give_up(self) -> bool:
        """Tell the others to give up too; return whether this rank is the first, as far as it can know."""
        first = _ask(lambda: self._last.add(_GIVEN_UP, 1) == 1)
        self._reach.give_up()
        return first is None or first

    def note_stack(self) -> None:
        """Note in the store that this rank has written its stack."""

        def note() -> None:
            self._last.set(_stack(rank()), "")
            self._last.add(_STACKS, 1)

        _ask(note)

    def await_stacks(self, until: float, first: bool) -> None:
        """Wait until all ranks that can do so have noted their stacks, or until a time of `time.monotonic`.

        The `first` rank that gave up counts the stacks and then lets the others leave. It expects none from
        ranks whose host is gone.
        """
        expected = world_size()
        if first and self._reach.gone:
            beats = _ask(lambda: self._last.multi_get([_key(r) for r in range(world_size())])) or []
            expected -= sum(_host(beat) in self._reach.gone for beat in beats)
        while time.monotonic() < until:
            if first and _ask(lambda: self._last.add(_STACKS, 0) >= expected):
                _ask(lambda: self._last.set(_LEAVE, ""))
                break
            if not first and _ask(lambda: self._last.check([_LEAVE])):
                break
            time.sleep(0.5)

    def without_stack(self) -> str:
        """Return the ranks that wrote no stack, with their hosts; "" if all did, or the store is lost."""

        def look() -> str:
            missing = [r for r in range(world_size()) if not self._last.check([_stack(r)])]
            beats = self._last.multi_get([_key(r) for r in missing])
            return ", ".join(f"rank {r} on {_host(beat)}" for r, beat in zip(missing, beats, strict=True))

        return _ask(look) or ""

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(_key(rank()), f"{self._beats} {socket.gethostname()}")

    def _check_beats(self) -> None:
        now = time.monotonic()
        for other, beat in enumerate(self._store.multi_get([_key(r) for r in range(world_size())])):
            if self._heard.get(other, (b"", now))[0] != beat:
                self._heard[other] = beat, now
            elif now - self._heard[other][1] > self.lost:
                self.reason = self._lost_message(f"rank {other}, on {_host(beat)},")

    def _lost_message(self, who: str) -> str:
        return f"{who} has not been heard of for stopping.lost={self.lost:g} s; {_RUN_AGAIN}"


def _key(number: int) -> str:
    return f"isotorus/alive/{number}"


def _host(beat: bytes) -> str:
    """Return the host name in a heartbeat."""
    return beat.decode().partition(" ")[2]


def _stack(number: int) -> str:
    return f"isotorus/stack/{number}"


def _ask(question: Callable[[], T]) -> T | None:
    """Return the store's answer, or None if it does not answer within some seconds."""
    answer: list[T] = []

    def ask() -> None:
        with contextlib.suppress(RuntimeError):
            answer.append(question())

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS)
    return answer[0] if answer else None
