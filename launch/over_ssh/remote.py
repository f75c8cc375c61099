"""One host's part of a launch, as its ssh shows it."""

import contextlib
import json
import re
import shlex
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO, Any

from launch.over_ssh import ssh
from launch.over_ssh.node import REPORT

_PREFIX = re.compile(r"^\[default\d+\]:")
"""What torchrun puts before a rank's lines."""


def command(python: str, folder: str) -> str:
    """What a host's shell is given; all else goes through stdin."""
    return f"cd {shlex.quote(folder)} && exec {shlex.quote(python)} -m launch.over_ssh.node"


class Remote:
    """A node that runs ranks: what it says is shown while `leads` says so, and its report kept."""

    def __init__(
        self,
        host: str,
        arguments: Sequence[str],
        request: dict[str, Any],
        leads: Callable[[str], bool],
        shown: deque[str],
    ) -> None:
        """`arguments` are those of its ssh. What is shown is added to `shown` too."""
        self.host, self._leads, self._shown = host, leads, shown
        self.report: dict[str, Any] | None = None
        """How its ranks ended: "code", and "rank", "time", "said" of the first that failed."""
        self._stderr: deque[str] = deque(maxlen=20)
        # Of a session of its own, so that Ctrl-C does not end it before the ranks have saved.
        self._process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._read, args=streams, daemon=True)
            for streams in (
                (self._process.stdout, sys.stdout, deque(maxlen=1)),
                (self._process.stderr, sys.stderr, self._stderr),
            )
        ]
        for reader in self._readers:
            reader.start()
        self.tell(json.dumps(request))

    def tell(self, word: str = "") -> None:
        """A line for the node: a signal's name, KILL, or only a sign of life."""
        assert self._process.stdin
        with contextlib.suppress(OSError):  # it is gone, as `ended` will say
            self._process.stdin.write(f"{word}\n".encode())
            self._process.stdin.flush()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None and not any(reader.is_alive() for reader in self._readers)

    @property
    def complaint(self) -> str:
        """What a node said last that has left no report."""
        if self._process.returncode == ssh.OWN_FAILURE:
            return str(ssh.failure(self.host, "\n".join(self._stderr)))
        said = ssh.last_line("\n".join(self._stderr)) or f"exit code {self._process.returncode}"
        return f"host {self.host}: the launcher there has ended: {said}"

    def drop(self) -> None:
        """End the connection, if the node has not: it will notice."""
        self._process.kill()
        self._process.wait()

    def _read(self, stream: IO[bytes], to: IO[str], kept: deque[str]) -> None:
        for raw in stream:
            line = _PREFIX.sub("", raw.decode(errors="replace"))
            if line.startswith(REPORT):
                self.report = json.loads(line.removeprefix(REPORT))
                continue
            kept.append(line)
            if self._leads(self.host) and line.strip():
                self._shown.append(line.strip())
                to.write(line)
                to.flush()
