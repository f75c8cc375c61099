"""All that Ctrl-C and signals do to a run.

Ctrl-C (SIGINT)
    A process without a launcher ends at once, without a save, with exit code 130
    (`isotorus.errors.exit_code`). `launch torchrun` on one node passes SIGINT on to its ranks, which end in
    the same way. With `--hosts`, and under DeepSpeed's launcher, the ranks get SIGTERM instead and save; a
    second Ctrl-C with `--hosts` kills them.
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

import signal
import time
from enum import IntEnum
from types import FrameType


class StopRequest(IntEnum):
    """What one rank asks all ranks to do; of several requests the largest is followed."""

    NONE = 0
    STOP = 1
    """After SIGTERM: save and end."""
    REQUEUE = 2
    """After SIGUSR1: save and end with the exit code that queues the job again."""
    SAVE_FAILED = 3
    """After a background save has failed: wait for it together, which raises its error on all ranks."""


class Signals:
    """The signals that have asked this process to stop."""

    def __init__(self) -> None:
        self.request = StopRequest.NONE
        self.first_at: float | None = None
        """When the first of them came, in seconds of `time.monotonic`."""

    def listen(self) -> None:
        """Note SIGTERM and SIGUSR1 from now on; call it in the main thread."""
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGUSR1, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.request = max(
            self.request, StopRequest.REQUEUE if number == signal.SIGUSR1 else StopRequest.STOP
        )
        if self.first_at is None:
            self.first_at = time.monotonic()
