"""All that Ctrl-C and signals do to a run.

Ctrl-C (SIGINT)
    Before the first step the process ends at once. Later all ranks finish the same step, save a checkpoint,
    and exit with code 130; a second Ctrl-C ends the process at once, without a save. `launch torchrun` waits
    for its ranks and returns 130. With `--hosts`, and under DeepSpeed's launcher, the ranks get SIGTERM
    instead; a second Ctrl-C with `--hosts` kills them.
    Under plain torchrun the ranks save as well, but torchrun itself ends with a traceback and code 1, and
    kills ranks that take longer than 30 seconds.
SIGTERM
    All ranks finish the same step, save a checkpoint, and exit with code 0. Slurm and Kubernetes send it
    before they kill. The kernel sends it when the launcher has died
    (`isotorus.processes.end_with_launcher`).
SIGUSR1
    The same, but the exit code is `stopping.requeue_code`, by which a batch script knows to queue the job
    again. Slurm sends it some time before the end of a job if asked to (`--signal=USR1@300`).
SIGKILL
    The process ends as it is. The next start continues from the newest checkpoint.

SIGTERM and SIGUSR1 are noted from the first moment of a process: a run that is still starting finishes its
start, does no step, and exits with the same codes. Processes that load data ignore SIGINT, SIGTERM and
SIGUSR1 (`data_pipeline.loader`), because batches are needed until all ranks stop. `stopping.py` makes all
ranks stop at the same step; `watchdog.py` ends a run that takes longer than `stopping.grace` to stop.
"""

import os
import signal
import time
from enum import IntEnum
from types import FrameType

from isotorus.errors import INTERRUPTED


class StopRequest(IntEnum):
    """What one rank asks all ranks to do. If there are several requests, the largest is followed."""

    NONE = 0
    STOP = 1
    """After SIGTERM: save and end."""
    REQUEUE = 2
    """After SIGUSR1: save and end with the exit code that queues the job again."""
    INTERRUPT = 3
    """After Ctrl-C: save and end with exit code 130."""
    SAVE_FAILED = 4
    """After a background save has failed: wait for it together, which raises its error on all ranks."""


_REQUESTS = {
    signal.SIGTERM: StopRequest.STOP,
    signal.SIGUSR1: StopRequest.REQUEUE,
    signal.SIGINT: StopRequest.INTERRUPT,
}
_SAME_KEY = 1.0
"""Seconds within which two SIGINT are one Ctrl-C: the terminal sends one, and so does a launcher."""


class Signals:
    """The signals that have asked this process to stop."""

    def __init__(self) -> None:
        self.request = StopRequest.NONE
        self.first_at: float | None = None
        """When the first of them came, in seconds of `time.monotonic`."""
        self._interrupted_at: float | None = None
        self._training = False

    def training(self) -> None:
        """Let Ctrl-C wait for the end of a step and a save from now on; before, it ends the process."""
        self._training = True

    def listen(self) -> None:
        """Note SIGINT, SIGTERM and SIGUSR1 from now on; call it in the main thread."""
        for number in _REQUESTS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._interrupted_at is not None and now - self._interrupted_at > _SAME_KEY:
                os._exit(INTERRUPTED)
            if not self._training:
                if code := interrupted_code():
                    raise KeyboardInterrupt
                os._exit(code)
            self._interrupted_at = self._interrupted_at or now
        self.request = max(self.request, _REQUESTS[signal.Signals(number)])
        if self.first_at is None:
            self.first_at = now


def interrupted_code() -> int:
    """Return the exit code of a rank after Ctrl-C and a save.

    torchrun would report anything but 0 as a failure; `launch torchrun` returns 130 itself.
    """
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else INTERRUPTED
