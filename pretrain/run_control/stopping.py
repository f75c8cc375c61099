"""When a run has to end before its last step: all ranks at the same one, saved, or with their stacks."""

import os
import time
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist
from pydantic import Field, PositiveFloat

from isotorus.section import Section
from pretrain.distributed import group_of_hosts
from pretrain.run_control.lock import Lock
from pretrain.run_control.signals import Signals, Wish
from pretrain.run_control.watchdog import Watchdog

_SIGNAL_SECONDS = 10.0
"""An elastic launcher on another host may learn as much later that a host has joined."""


class StoppingConfig(Section):
    grace: PositiveFloat = 120
    """Seconds from SIGTERM or SIGUSR1 until the run has saved and ended; after that it ends as it is, with
    exit code 75. Less than what the scheduler gives before it kills."""
    hang: PositiveFloat = 600
    """Seconds without a step (or a save, or a part of the start-up) after which every rank writes its stack
    to <runs>/<name>/stacks and ends with exit code 75."""
    lost: PositiveFloat = 60
    """Seconds without a heartbeat from a rank after which the others take it, or its host, for gone and end
    with exit code 75, for the launcher to start them again."""
    requeue_code: int = Field(0, ge=0, le=125)
    """Exit code after SIGUSR1 and a save, by which a batch script knows to queue the job again. That after
    SIGTERM is 0."""


class Stopping:
    """What all ranks want, known to all of them at the same step; within it a watchdog is at work.

    `agree` is called once a step. It tells the others this rank's wish and returns the largest of those
    told at the call before: the maximum over ranks has had a step's time, on the hosts alone.
    """

    def __init__(
        self,
        config: StoppingConfig,
        folder: Path,
        signals: Signals | None = None,
        lock: Lock | None = None,
    ) -> None:
        """`lock` is of the run's folder, on the rank that holds it: the watchdog renews it."""
        self.config, self.signals = config, signals or Signals()
        self.watchdog = Watchdog(
            folder / "stacks", config.hang, config.grace, config.lost, self.signals, lock
        )
        self._group = group_of_hosts()
        self._told = torch.zeros((), dtype=torch.int32)
        self._work: dist.Work | None = None
        self.agree()

    def __enter__(self) -> Self:
        self.watchdog.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.watchdog.end()

    def agree(self, save_failed: bool = False) -> Wish:
        """This rank has come so far; what all do now."""
        self.watchdog.progress()
        if self._work:
            self._work.wait()
        agreed = Wish(int(self._told))
        self._told.fill_(Wish.LOOK_AT_SAVE if save_failed else self.signals.wish)
        self._work = dist.all_reduce(self._told, dist.ReduceOp.MAX, self._group, async_op=True)
        return agreed

    def leave(self, wish: Wish) -> int:
        """The exit code, when all ranks have come here: none leaves while another has something to finish."""
        dist.barrier(self._group)
        if wish == Wish.STOP and "ISOTORUS_ELASTIC" in os.environ:
            self._await_signal()
        return self.config.requeue_code if wish == Wish.REQUEUE else 0

    def _await_signal(self) -> None:
        """Where the wish was another rank's, wait for one's own launcher to have it.

        When a host joins, the launchers stop their ranks to start more. One whose ranks ended well before it
        has taken the run for finished.
        """
        deadline = time.monotonic() + _SIGNAL_SECONDS
        while self.signals.wish == Wish.GO_ON and time.monotonic() < deadline:
            time.sleep(0.1)
