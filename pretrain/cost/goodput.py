"""Predict which share of a run's time is useful when hosts fail, and how often to save a checkpoint."""

import math
import random
from dataclasses import dataclass

LLAMA = 1000 * 466 / (54 * 16384)
"""Interruptions in 1,000 GPU-days: Llama 3 (arXiv:2407.21783, table 5) had 466 in 54 days on 16,384 H100."""
RESTART = 25.0
"""Seconds from a failure to the next step: 10 until the other hosts notice that one is lost
(`stopping.unreachable`), and 15 for a start, as measured on 2 ranks (benchmarks/RESULTS.md, "Recovery from
SIGKILL")."""
STALL = 0.042
"""Seconds that training waits for a second of writing a checkpoint (benchmarks/RESULTS.md, "Checkpoints")."""
DAY = 86400.0


@dataclass(frozen=True)
class Failures:
    """How often a run fails, and what that and its checkpoints cost, in seconds."""

    every: float
    """Mean time between failures of the whole run; infinite if there are none."""
    restart: float
    """Time from a failure to the next step."""
    stall: float
    """Time that training waits for a checkpoint."""
    writing: float
    """Time until a checkpoint is complete; one that a failure interrupts cannot be used."""

    def best_interval(self) -> float:
        """Return the seconds of training between checkpoints that lose the least time.

        Young (1974) and Daly (2006, doi:10.1016/j.future.2004.11.016, equation 37). A checkpoint begins only
        when the one before is complete.
        """
        if math.isinf(self.every):
            return self.every
        if self.stall >= 2 * self.every:
            return max(self.every, self.writing)
        ratio = math.sqrt(self.stall / (2 * self.every))
        best = math.sqrt(2 * self.stall * self.every) * (1 + ratio / 3 + ratio**2 / 9) - self.stall
        return max(best, self.writing, 1.0)

    def useful(self, interval: float) -> float:
        """Return the share of the time that ends up in the final history, with a checkpoint each `interval`.

        Failures come at random (Daly 2006, equation 20). A failure while a checkpoint is being written also
        loses the steps since it began, which costs as much as a longer restart.
        """
        if math.isinf(self.every):
            return 1.0 if math.isinf(interval) else interval / (interval + self.stall)
        if math.isinf(interval):
            return 0.0
        again = (self.restart + self.writing) / self.every
        span = (interval + self.stall) / self.every
        if again + span > 500:
            return 0.0
        return interval / (self.every * math.exp(again) * math.expm1(span))

    def lost(self, interval: float) -> float:
        """Return the seconds of training that a failure takes back, on average."""
        return interval / 2 + self.writing


def of_run(
    gpus: int, per_thousand: float, restart: float, checkpoint_seconds: float, stall: float | None
) -> Failures:
    """Return the failures of a run, given interruptions in 1,000 GPU-days and the seconds of writing."""
    every = DAY * 1000 / (per_thousand * gpus) if per_thousand else math.inf
    waits = STALL * checkpoint_seconds if stall is None else stall
    return Failures(every, restart, waits, checkpoint_seconds)


def simulate(failures: Failures, interval: float, work: float, seed: int) -> float:
    """Return the useful share of a run of `work` seconds of training, by simulating random failures one by
    one.

    It checks `Failures.useful` and shares no formula with it.
    """
    draw = random.Random(seed)
    now = done = saved = 0.0
    pending = (math.inf, 0.0)  # when the checkpoint being written is complete; the work it holds
    fails = draw.expovariate(1 / failures.every)
    while done < work:
        step = min(interval - (done - max(saved, pending[1])), work - done)
        ends = now + step
        if pending[0] <= min(ends, fails):
            saved, pending = pending[1], (math.inf, 0.0)
            continue
        if fails < ends + failures.stall:
            now, done, pending = fails, saved, (math.inf, 0.0)
            began = now
            while True:  # a restart can fail too
                fails = began + draw.expovariate(1 / failures.every)
                if fails >= began + failures.restart:
                    break
                began = fails
            now = began + failures.restart
            continue
        now, done = ends + failures.stall, done + step
        pending = (now + failures.writing, done)
    return work / now
