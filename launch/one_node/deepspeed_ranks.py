"""Run the ranks of one node under DeepSpeed's launcher, with signals and exit codes of the ranks themselves.

By itself, `deepspeed.launcher.launch` ends on SIGUSR1 but leaves its ranks running. After SIGTERM it gives
them 30 seconds and then always fails. It does not report which rank failed first.
"""

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from isotorus.processes import pass_on_safe_path, usable_cores
from launch.one_node.torchrun_ranks import Failure

LAUNCH = "ISOTORUS_LAUNCH"
"""The environment variable that identifies the ranks of one launch."""


def arguments(devices: dict[str, list[int]], host: str, address: str, port: int | str) -> list[str]:
    """Return the arguments of DeepSpeed's launcher on `host`. All ranks meet at `address`.

    `devices` holds the device numbers of each host.
    """
    world = base64.urlsafe_b64encode(json.dumps(devices).encode()).decode()
    return [
        f"--world_info={world}",
        f"--node_rank={[*devices].index(host)}",
        f"--master_addr={address}",
        f"--master_port={port}",
        "--module",
        "--no_local_rank",
        "--log_level=critical",
    ]


def command(python: str, options: Sequence[str], pretrain: Sequence[str]) -> list[str]:
    return [python, "-u", "-m", "deepspeed.launcher.launch", *options, "pretrain", *pretrain]


def run(options: Sequence[str], pretrain: Sequence[str], logs: Path | None = None) -> Failure | None:
    """Run DeepSpeed's launcher on this node. Return the failure of the first rank that failed, or None.

    The output of the ranks is printed, and also written to files in `logs`. SIGTERM and SIGUSR1 go to the
    ranks, which save and end by themselves. SIGINT and SIGHUP reach the ranks as SIGTERM.
    """
    (world,) = [option.partition("=")[2] for option in options if option.startswith("--world_info=")]
    (node,) = [int(option.partition("=")[2]) for option in options if option.startswith("--node_rank=")]
    count = len([*json.loads(base64.urlsafe_b64decode(world)).values()][node])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // count)))
    os.environ["LOCAL_WORLD_SIZE"] = str(count)
    pass_on_safe_path()
    if logs:
        logs.mkdir(parents=True, exist_ok=True)
    launcher = subprocess.Popen(
        command(sys.executable, options, pretrain),
        stdout=subprocess.PIPE if logs else None,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    stderr: deque[str] = deque(maxlen=200)
    readers = [
        threading.Thread(target=_tee, args=(stream, to, kept, logs / name if logs else None), daemon=True)
        for stream, to, kept, name in (
            (launcher.stdout, sys.stdout, deque[str](maxlen=1), "stdout.log"),
            (launcher.stderr, sys.stderr, stderr, "stderr.log"),
        )
        if stream
    ]
    for reader in readers:
        reader.start()
    watch = _Watch(launcher, count)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, watch.pass_on)
    watch.wait()
    for reader in readers:
        reader.join()
    if watch.first is None and launcher.returncode == 0:
        return None
    rank, code, when = watch.first or (min(watch.ranks.values(), default=0), launcher.returncode, time.time())
    errors = [line for line in stderr if line.startswith("error: ")]
    return Failure(shell_code(code), rank, when, errors[-1].strip() if errors else "".join([*stderr][-20:]))


def pass_on(launch: str, number: signal.Signals) -> None:
    """Send a signal to the ranks of a launch on this node; SIGKILL also to launcher and loader workers."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            mine, parent = process.environ(), process.parent()
            if mine.get(LAUNCH) != launch or process.pid == os.getpid():
                continue
            # The loader workers of a rank have its environment variables too.
            is_rank = "RANK" in mine and parent is not None and "RANK" not in parent.environ()
            if is_rank or number == signal.SIGKILL:
                process.send_signal(number)


class _Watch:
    """Watches the ranks under a launcher, and records how the first of them failed."""

    def __init__(self, launcher: "subprocess.Popen[bytes]", count: int) -> None:
        self.launcher, self.count = launcher, count
        self.ranks: dict[psutil.Process, int] = {}
        self.first: tuple[int, int, float] | None = None
        """The rank that failed first, its exit code (-n for signal n) and the time in seconds since 1970."""
        self._interrupted = False

    def wait(self) -> None:
        while self.launcher.poll() is None:
            if len(self.ranks) < self.count:
                self._find()
            for process, rank in self.ranks.items():
                code = _ended(process.pid)
                if code and self.first is None:
                    self.first = rank, code, time.time()
            time.sleep(0.05)
        for process in self.ranks:  # alive only if the launcher was killed
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self._interrupted and self.first is None:
            self.first = 0, -signal.SIGINT, time.time()

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        if not self.ranks:  # no rank has started yet
            self.launcher.kill()
            os._exit(128 + number)
        self._interrupted |= number == signal.SIGINT
        for process in self.ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM)

    def _find(self) -> None:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.launcher.pid).children():
                rank = child.environ().get("RANK")
                if rank is not None:
                    self.ranks[child] = int(rank)


def _ended(pid: int) -> int | None:
    """Return the exit code of a zombie (-n if signal n ended it), or None for any other process.

    DeepSpeed's launcher does not say which rank ended first, so this reads the code earlier.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return os.waitstatus_to_exitcode(int(fields[-1])) if state == "Z" else None


def shell_code(code: int) -> int:
    """Return 128 + n if signal n ended a process, as shells do.

    DeepSpeed's launcher exits with -n, which its parent sees as 256 - n.
    """
    if code < 0:
        return 128 - code
    return 128 + 256 - code if code > 192 else code


def _tee(stream: IO[bytes], to: IO[str], kept: deque[str], log: Path | None) -> None:
    with log.open("a") if log else contextlib.nullcontext() as file:
        for raw in stream:
            line = raw.decode(errors="replace")
            if re.match(r"\[[^]]*\] \[(INFO|WARNING)\] ", line):  # printed by DeepSpeed when it is imported
                continue
            kept.append(line)
            for out in (to, file) if file else (to,):
                out.write(line)
                out.flush()
