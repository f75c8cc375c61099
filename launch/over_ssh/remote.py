"""The ssh connection to one host that runs ranks: its output, its report, and signals to it."""

import contextlib
import json
import re
import secrets
import shlex
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO, Any

from isotorus.processes import python_options
from launch.over_ssh import ssh
from launch.over_ssh.node import REPORT

_PREFIX = re.compile(r"^\[default\d+\]:")
"""The prefix that torchrun adds to each line of a rank's output."""


def node_command(python: str, folder: str) -> str:
    """Return the shell command that a host runs. Everything else is sent through stdin."""
    command = [python, *python_options(), "-m", "launch.over_ssh.node"]
    return f"cd {shlex.quote(folder)} && exec {shlex.join(command)}"


def new_mark() -> str:
    """Return a mark that distinguishes the report of one request from any other line of output."""
    return secrets.token_hex(16)


def read_report(line: str, mark: str) -> dict[str, Any] | None:
    """Return the report in a line of a host's stdout, or None for any other line."""
    begin = f"{REPORT}{mark}: "
    return json.loads(line.removeprefix(begin)) if line.startswith(begin) else None


class Remote:
    """A host that runs ranks. Its output is shown while `leads(host)` is true, and its report is kept."""

    def __init__(
        self,
        host: str,
        arguments: Sequence[str],
        request: dict[str, Any],
        leads: Callable[[str], bool],
        shown: deque[str],
    ) -> None:
        """`arguments` are those of the ssh process. The lines that are shown are also appended to `shown`."""
        self.host, self._leads, self._shown = host, leads, shown
        self._mark = request["mark"]
        self.report: dict[str, Any] | None = None
        """How its ranks ended: "code", and "rank", "time" and "message" of the first rank that failed."""
        self._stderr: deque[str] = deque(maxlen=20)
        # A session of its own, so that Ctrl-C does not end ssh before the ranks have saved.
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
        self.send(json.dumps(request))

    def send(self, word: str = "") -> None:
        """Send the host a signal's name, KILL, or an empty line, which shows that this process is alive."""
        assert self._process.stdin
        with contextlib.suppress(OSError):  # the connection is closed; `ended` will be true
            self._process.stdin.write(f"{word}\n".encode())
            self._process.stdin.flush()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None and not any(reader.is_alive() for reader in self._readers)

    @property
    def error(self) -> str:
        """Return the reason why a host ended without a report."""
        if self._process.returncode == ssh.OWN_FAILURE:
            return str(ssh.failure(self.host, "\n".join(self._stderr)))
        reason = ssh.last_line("\n".join(self._stderr)) or f"exit code {self._process.returncode}"
        return f"host {self.host}: the launcher there has ended: {reason}"

    def drop(self) -> None:
        """Close the connection. A host that still runs ranks notices it and ends them."""
        self._process.kill()
        self._process.wait()

    def _read(self, stream: IO[bytes], to: IO[str], kept: deque[str]) -> None:
        for raw in stream:
            line = _PREFIX.sub("", raw.decode(errors="replace"))
            if (report := read_report(line, self._mark)) is not None:
                self.report = report
                continue
            kept.append(line)
            if self._leads(self.host) and line.strip():
                self._shown.append(line.strip())
                to.write(line)
                to.flush()
