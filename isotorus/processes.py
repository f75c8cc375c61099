"""The launcher of this process, the CPU cores that it may use, where it finds modules, and importing them."""

import atexit
import ctypes
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")
"""Variables that torchrun (and accelerate, which uses it) and DeepSpeed's launcher set for their ranks.
Slurm needs none: it ends the tasks of a step itself."""
_TASK_NUMBERS = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PALS_RANKID", "PMI_RANK")
_SAFE_PATH = "PYTHONSAFEPATH"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
END_WITH_STDIN = "ISOTORUS_END_WITH_STDIN"
"""Name of the variable that makes a process end when its standard input ends.

It is set where the command that starts the process holds the other end, as ssh does from another host."""


def has_launcher() -> bool:
    """Return whether torchrun, accelerate or DeepSpeed's launcher started this process."""
    return any(name in os.environ for name in _LAUNCHERS)


def is_scheduled() -> bool:
    """Return whether `srun` or `mpirun` started this process, by the variables that number their tasks."""
    return any(name in os.environ for name in _TASK_NUMBERS)


def first_rank_reports(of_machine: bool = False) -> bool:
    """Return whether this process should be silent, because the first rank prints the same message.

    The first rank is that of the launch, or with `of_machine` that on this machine. RANK counts only if a
    launcher set it: it may also have been left in the environment of a shell.
    """
    number = os.environ.get("LOCAL_RANK" if of_machine else "RANK", "0")
    return number != "0" and (has_launcher() or is_scheduled())


def find_no_local_modules() -> None:
    """Make Python processes that this one starts import installed modules only, never a pretrain.py in the
    current folder."""
    os.environ[_SAFE_PATH] = "1"


def pass_on_safe_path() -> None:
    """Make the processes that this one starts find modules as it does, also if `python -P` alone says how."""
    if sys.flags.safe_path:
        find_no_local_modules()


def python_options() -> list[str]:
    """Return the options of a Python on another machine that imports as this process and its children do."""
    return ["-P"] if os.environ.get(_SAFE_PATH) or sys.flags.safe_path else []


def end_with_launcher() -> None:
    """Make this process receive SIGTERM when its launcher ends.

    Otherwise the ranks of a killed launcher would train on until somebody finds them. A training rank that
    receives SIGTERM saves and exits. A process that was started by hand is not affected, because it may be
    meant to outlive its shell. The Linux kernel sends the signal when the launcher on this machine ends. A
    command on another host sets `END_WITH_STDIN`; then the signal is also sent when standard input ends,
    because ssh closes it when that command has ended.
    """
    if sys.platform == "linux" and has_launcher():
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if END_WITH_STDIN in os.environ:
        threading.Thread(target=_end_with_stdin, daemon=True).start()


def _end_with_stdin() -> None:
    """Read standard input to its end, then send SIGTERM to this process."""
    with suppress(OSError):
        while os.read(0, 4096):
            continue
        os.kill(os.getpid(), signal.SIGTERM)


def usable_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's garbage collector in this block, while large libraries are imported.

    An import makes hundreds of thousands of objects that stay. The collector would look through them again
    and again, which takes an eighth of the time of the import. After the block it leaves them out until the
    process ends. Then they have to be collected: Triton's library prints a page about leaks otherwise.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)
        gc.enable()
