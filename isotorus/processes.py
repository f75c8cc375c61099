"""Processes that a launcher has started end with it, even where it cannot tell them."""

import ctypes
import os
import signal
import sys

_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")
"""Set by torchrun (so by accelerate too) and DeepSpeed's launcher. Slurm ends a step's tasks itself."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_launcher() -> None:
    """Have the kernel send SIGTERM to this process as soon as the launcher is gone, on Linux.

    Without it the ranks of a launcher that was killed train on until someone finds them. A rank that trains
    saves and ends on it. What is started by hand may well outlive its shell, so it is left alone.
    """
    if sys.platform == "linux" and any(name in os.environ for name in _LAUNCHERS):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
