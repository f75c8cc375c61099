"""Run torchrun inside this process, to return the exit code of the first rank that failed."""

import contextlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import psutil

from isotorus.errors import INTERRUPTED, TRY_AGAIN, USER_ERROR
from isotorus.processes import pass_on_safe_path, usable_cores

LAST_CALL_SECONDS = 10
"""Seconds that an elastic run waits for more hosts when enough hosts are ready."""


class Failure(NamedTuple):
    """How the ranks of this node failed."""

    code: int
    """Exit code of the first rank that failed (128 + n for signal n); `TRY_AGAIN` if no rank failed."""
    rank: int
    """Number of the first rank that failed; -1 if no rank failed."""
    time: float
    """Time of the failure, in seconds since 1970."""
    message: str
    """The rank's error message, or the last lines that it wrote on stderr if they are known."""


def default_ranks() -> int:
    """Return how many ranks a node runs if the user does not say: one for each GPU, or one on CPUs."""
    import torch  # imported here because it takes seconds

    return max(1, torch.cuda.device_count())


def run(options: list[str], arguments: list[str], module: Sequence[str] = ("pretrain",)) -> Failure | None:
    """Run `torchrun OPTIONS -m MODULE ARGUMENTS` to its end. Return the first failure, or None.

    SIGINT, SIGTERM and SIGUSR1 go to the ranks, which save and end by themselves. Alone, torchrun would give
    them 30 seconds and then always fail. A rank that ends with `USER_ERROR` is never restarted.
    """
    from torch.distributed import DistError
    from torch.distributed import run as torch_run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    pass_on_safe_path()
    parsed = torch_run.parse_args([*options, "-m", *module, *arguments])
    parsed.signals_to_handle = "SIGHUP,SIGQUIT"
    fewest, most = torch_run.parse_min_max_nnodes(parsed.nnodes)
    ranks = torch_run.determine_local_world_size(parsed.nproc_per_node)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // ranks)))
    if fewest < most:
        os.environ["ISOTORUS_ELASTIC"] = "1"
        if parsed.rdzv_conf == "":
            parsed.rdzv_conf = f"last_call_timeout={LAST_CALL_SECONDS}"
    if fewest < most or parsed.max_restarts:
        # The store that the launchers share still holds the keys of earlier attempts, so ranks use their own.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
        signal.signal(signal.SIGCHLD, _look_for_user_error)
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        _pass_on(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, pass_on)
    try:
        torch_run.run(parsed)
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        # The code is -n if signal n ended the rank; shells use 128 + n.
        code = first.exitcode if first.exitcode > 0 else 128 - first.exitcode
        local = [failure.local_rank for failure in error.failures.values()]
        message = _message(parsed.log_dir, [first.local_rank, *local])
        if first.exitcode == -signal.SIGKILL and not message.startswith("error: "):
            message = (
                f"error: rank {rank} on {socket.gethostname()} was killed (SIGKILL), as the kernel does when "
                "memory runs out (see dmesg) and schedulers do at a limit; isotorus plan shows "
                "what needs less memory, and the same command continues from the newest checkpoint"
            )
        return Failure(code, rank, first.timestamp, message)
    except _MetUserError:
        return Failure(USER_ERROR, 0, 0.0, _message(parsed.log_dir, list(range(ranks))))
    except (RendezvousError, DistError, ConnectionError, TimeoutError) as error:
        where = parsed.rdzv_endpoint or parsed.master_addr
        message = (
            f"error: the launchers of this run do not meet at {where}: {str(error) or type(error).__name__}"
        )
        return Failure(TRY_AGAIN, -1, 0.0, message)
    # The ranks have ended with code 0, because torchrun would start them again after any other one.
    return Failure(INTERRUPTED, -1, time.time(), "") if signal.SIGINT in received else None


class _MetUserError(Exception):
    """A rank ended with a user error."""


def _pass_on(number: int) -> None:
    ranks = psutil.Process().children()
    if not ranks:  # no rank has started yet
        sys.exit(128 + number)
    for rank in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.send_signal(number)


def _look_for_user_error(number: int, frame: FrameType | None) -> None:
    """Raise `_MetUserError` if a child ended with `USER_ERROR`. Leave the child for torchrun to reap."""
    for child in psutil.Process().children():
        with contextlib.suppress(ChildProcessError):
            ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended and ended.si_code == os.CLD_EXITED and ended.si_status == USER_ERROR:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                raise _MetUserError


def _message(log_dir: str | None, local_ranks: list[int]) -> str:
    """Return the last `error:` line of any of these ranks, or the last stderr lines of the first rank."""
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
