"""Ending a run before its last step: the ranks agree on the step after which all of them save and end."""

import os
import time
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist

from pretrain.distributed import cpu_group
from pretrain.run_control.config import StoppingConfig
from pretrain.run_control.lock import Lock
from pretrain.run_control.signals import Signals, StopRequest, interrupted_code
from pretrain.run_control.watchdog import Watchdog

_SIGNAL_SECONDS = 10.0
"""Seconds by which one elastic launcher may learn later than another that a host has joined."""


class Stopping:
    """Makes all ranks stop at the same step; inside a `with` block the watchdog runs as well.

    `agree` is called once a step. It sends this rank's request and returns the largest request that any rank
    sent at the previous call: the maximum over ranks is computed between CPUs during the step.
    """

    def __init__(
        self, config: StoppingConfig, folder: Path, signals: Signals | None = None, lock: Lock | None = None
    ) -> None:
        """Prepare for the run in `folder`; the rank that holds the run's `lock` passes it for renewal."""
        self.config, self.signals = config, signals or Signals()
        self.watchdog = Watchdog(folder / "stacks", config, self.signals, lock)
        self._group = cpu_group()
        self._request = torch.zeros((), dtype=torch.int32)
        self._work: dist.Work | None = None
        self.agree()

    def __enter__(self) -> Self:
        self.watchdog.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.watchdog.end()

    def agree(self, save_failed: bool = False) -> StopRequest:
        """Return what all ranks do now, equal on all of them; also tells the watchdog of progress."""
        self.watchdog.progress()
        if self._work:
            self._work.wait()
        agreed = StopRequest(int(self._request))
        self._request.fill_(StopRequest.SAVE_FAILED if save_failed else self.signals.request)
        self._work = dist.all_reduce(self._request, dist.ReduceOp.MAX, self._group, async_op=True)
        return agreed

    def may_wait(self) -> bool:
        """Return whether the run may still wait at its end: always without a signal, else not for long."""
        first = self.signals.first_at
        return first is None or time.monotonic() < first + self.config.grace / 2

    def leave(self, request: StopRequest) -> int:
        """Wait for all ranks, so that none ends while another is still at work; return the exit code."""
        dist.barrier(self._group)
        if request == StopRequest.STOP and "ISOTORUS_ELASTIC" in os.environ:
            self._await_signal()
        if request == StopRequest.INTERRUPT:
            return interrupted_code()
        return self.config.requeue_code if request == StopRequest.REQUEUE else 0

    def _await_signal(self) -> None:
        """Wait for the launcher's own signal where another rank asked to stop.

        When a host joins, the launchers stop their ranks in order to start more. A launcher whose ranks end
        without an error before it hears of the host treats the run as finished.
        """
        deadline = time.monotonic() + _SIGNAL_SECONDS
        while self.signals.request == StopRequest.NONE and time.monotonic() < deadline:
            time.sleep(0.1)
