"""The launcher of this process, and the CPU cores that it may use."""

import ctypes
import os
import signal
import sys

_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")
"""Variables that torchrun (and accelerate, which uses it) and DeepSpeed's launcher set for their ranks.
Slurm needs none: it ends the tasks of a step itself."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def has_launcher() -> bool:
    """Return whether torchrun, accelerate or DeepSpeed's launcher started this process."""
    return any(name in os.environ for name in _LAUNCHERS)


def end_with_launcher() -> None:
    """Ask the Linux kernel to send SIGTERM to this process when its launcher ends.

    Otherwise the ranks of a killed launcher would train on until somebody finds them. A training rank that
    receives SIGTERM saves and exits. A process that was started by hand is not affected, because it may be
    meant to outlive its shell.
    """
    if sys.platform == "linux" and has_launcher():
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def usable_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
