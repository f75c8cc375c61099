"""torchrun in this process, so that the first failing rank's exit code is this command's."""

import contextlib
import os
import re
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import psutil

USER_ERROR = 2
"""Exit code of a rank that met what the user can mend: a restart would meet it again."""
TRY_AGAIN = 75
"""Exit code where the launchers of a run have lost each other (EX_TEMPFAIL of sysexits.h)."""
LAST_CALL_SECONDS = 10
"""How long an elastic start waits for more hosts once there are enough."""


class Failure(NamedTuple):
    """How the ranks of this node have failed."""

    code: int
    """The first failing rank's exit code, 128 + n if signal n ended it; `TRY_AGAIN` if no rank failed."""
    rank: int
    """-1 where none failed."""
    time: float
    """Seconds since 1970."""
    said: str
    """The end of what it said on stderr, where that went to a file."""


def run(options: list[str], pretrain: list[str]) -> Failure | None:
    """Run `torchrun OPTIONS -m pretrain PRETRAIN` to its end; the first failure, or None.

    SIGTERM and SIGUSR1 are passed on to the ranks, which save and end by themselves; torchrun by itself
    gives them 30 seconds, and then fails whatever they did. A rank that ends with a `USER_ERROR` is not
    started again, whatever restarts are left.
    """
    from torch.distributed import DistError
    from torch.distributed import run as torch_run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    arguments = torch_run.parse_args([*options, "-m", "pretrain", *pretrain])
    arguments.signals_to_handle = "SIGINT,SIGHUP,SIGQUIT"
    fewest, most = torch_run.parse_min_max_nnodes(arguments.nnodes)
    ranks = torch_run.determine_local_world_size(arguments.nproc_per_node)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    if fewest < most:
        os.environ["ISOTORUS_ELASTIC"] = "1"
        if arguments.rdzv_conf == "":
            arguments.rdzv_conf = f"last_call_timeout={LAST_CALL_SECONDS}"
    if fewest < most or arguments.max_restarts:
        # The store that launchers share keeps what earlier attempts left in it.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
        signal.signal(signal.SIGCHLD, _look_for_user_error)
    signal.signal(signal.SIGTERM, _pass_on)
    signal.signal(signal.SIGUSR1, _pass_on)
    try:
        torch_run.run(arguments)
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        # A rank that a signal ended has a negative code; shells know it as 128 + signal.
        code = first.exitcode if first.exitcode > 0 else 128 - first.exitcode
        local = [failure.local_rank for failure in error.failures.values()]
        said = _said(arguments.log_dir, [first.local_rank, *local])
        if first.exitcode == -signal.SIGKILL and not said.startswith("error: "):
            said = (
                f"error: rank {rank} on {socket.gethostname()} was killed (SIGKILL), as the kernel does when "
                "memory runs out (dmesg tells) and schedulers at a limit; python -m pretrain plan says what "
                "needs less memory, and the same command goes on from the newest checkpoint"
            )
        return Failure(code, rank, first.timestamp, said)
    except _MetUserError:
        return Failure(USER_ERROR, 0, 0.0, _said(arguments.log_dir, list(range(ranks))))
    except (RendezvousError, DistError, ConnectionError, TimeoutError) as error:
        where = arguments.rdzv_endpoint or arguments.master_addr
        said = (
            f"error: the launchers of this run do not meet at {where}: {str(error) or type(error).__name__}"
        )
        return Failure(TRY_AGAIN, -1, 0.0, said)
    return None


class _MetUserError(Exception):
    """A rank ended with a user error."""


def _pass_on(number: int, frame: FrameType | None) -> None:
    ranks = psutil.Process().children()
    if not ranks:  # it has not begun
        sys.exit(128 + number)
    for rank in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.send_signal(number)


def _look_for_user_error(number: int, frame: FrameType | None) -> None:
    """Some child has ended: look at it, and leave it to torchrun."""
    for child in psutil.Process().children():
        with contextlib.suppress(ChildProcessError):
            left = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if left and left.si_code == os.CLD_EXITED and left.si_status == USER_ERROR:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                raise _MetUserError


def _said(log_dir: str | None, local_ranks: list[int]) -> str:
    """What to show of ranks' last words: an `error:` line of any of them, or the end of the first one's."""
    if log_dir is None:
        return ""
    ends = []
    for rank in local_ranks:
        logs = sorted(Path(log_dir).glob(f"*/attempt_*/{rank}/stderr.log"), key=lambda p: p.stat().st_mtime)
        ends.append(logs[-1].read_text(errors="replace")[-20_000:] if logs else "")
    for end in ends:
        if errors := re.findall(r"^error: .*$", end, re.MULTILINE):
            return str(errors[-1])
    return "\n".join(ends[0].splitlines()[-20:])
