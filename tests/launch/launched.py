"""A `launch torchrun` on one of the test's nodes, its output in a file."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.distributed.runs import ENVIRONMENT, ROOT
from tests.launch.network import Network

SECONDS = 280


class Launched:
    """The running command, by default on node 1."""

    def __init__(
        self, nodes: Network, folder: Path, *arguments: str, node: int = 1, **environment: str
    ) -> None:
        self.nodes, self._said = nodes, folder / f"said{time.monotonic_ns()}"
        command = [sys.executable, "-m", "launch", "torchrun", *arguments]
        with self._said.open("w") as file:
            self.process = subprocess.Popen(
                nodes.on(node, *command),
                cwd=ROOT,
                env=ENVIRONMENT | environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self._said.read_text()

    def end(self) -> int:
        return self.process.wait(SECONDS)

    def wait_for(self, happened: Callable[[], object], alive: bool = True) -> float:
        """Wait until `happened()` is true; return the seconds."""
        began = time.monotonic()
        while not happened():
            assert not alive or self.process.poll() is None, self.said
            assert time.monotonic() < began + SECONDS, self.said
            time.sleep(0.1)
        return time.monotonic() - began

    def ranks(self, number: int) -> list[psutil.Process]:
        """Return the training processes on a node."""
        return [p for p in self.nodes.processes(number) if command_line(p)[3:4] == ["pretrain"]]

    def nothing_is_left(self) -> bool:
        return not any(
            command_line(p) for i in range(1, len(self.nodes.nodes) + 1) for p in self.nodes.processes(i)
        )


def command_line(process: psutil.Process) -> list[str]:
    """Return the command line of a process, which is empty if the process has ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
