"""Commands on many hosts at once, over OpenSSH's own client."""

import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from isotorus.errors import UserError
from launch.environment import masked

SSH = ("ssh",)
"""The client; in its place a user may give another, or options: ("ssh", "-F", "my_config")."""
OWN_FAILURE = 255
"""ssh's exit code where it has not run the command, or has lost the connection."""


class Answer(NamedTuple):
    host: str
    code: int
    stdout: str
    stderr: str


def client(host: str, ssh: Sequence[str] = SSH, patience: float = 30) -> list[str]:
    """The arguments that start ssh to a host, but for the command.

    It asks nothing, accepts no unknown host key, and ends when a host is gone for `patience` seconds.
    """
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "ConnectTimeout": "10",
        "ServerAliveInterval": str(max(1, round(patience / 3))),
        "ServerAliveCountMax": "3",
        "ControlMaster": "no",
        "ControlPath": "none",
        "LogLevel": "ERROR",
    }
    return [*ssh, "-T", *(f"-o{name}={value}" for name, value in options.items()), host]


def address(host: str, ssh: Sequence[str] = SSH) -> str:
    """What ssh's own configuration takes a host's name for, which other programs do not read."""
    done = subprocess.run([*ssh, "-G", host], capture_output=True, text=True)
    if done.returncode:
        raise failure(host, done.stderr)
    return next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("hostname "))


def run(
    hosts: Iterable[str], command: str, stdin: str = "", ssh: Sequence[str] = SSH, timeout: float = 60
) -> list[Answer]:
    """Run a shell command on all hosts at once, and give each one's answer, in the order of `hosts`.

    `stdin` is for what may not stand in a process list. Raises UserError, in one line, for the first host
    that ssh does not get into or that has not answered after `timeout` seconds. What exit code the command
    itself has is left to the caller (see `require`).
    """
    hosts = list(hosts)

    def ask(host: str) -> Answer | None:
        try:
            done = subprocess.run(
                [*client(host, ssh), command], input=stdin, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return None
        return Answer(host, done.returncode, done.stdout, done.stderr)

    with ThreadPoolExecutor(max(1, len(hosts))) as threads:
        answers = list(threads.map(ask, hosts))
    for host, answer in zip(hosts, answers, strict=True):
        if answer is None:
            raise UserError(
                f"host {host} has not answered for {timeout:.0f} s; look what it does, or leave it out"
            )
        if answer.code == OWN_FAILURE:
            raise failure(host, answer.stderr)
    return [answer for answer in answers if answer]


def require(answers: Iterable[Answer], doing: str) -> None:
    """Raise UserError for the first host on which the command has failed, with the last it said."""
    for answer in answers:
        if answer.code:
            said = last_line(answer.stderr) or last_line(answer.stdout) or f"exit code {answer.code}"
            raise UserError(f"host {answer.host}: {doing}: {masked(said)}")


def failure(host: str, stderr: str) -> UserError:
    """What ssh says, and what to do about it."""
    known = {
        "Host key verification failed": f"check its key and add it: ssh-keyscan {host} >> ~/.ssh/known_hosts",
        "IDENTIFICATION HAS CHANGED": f"if that is right, ssh-keygen -R {host}, then add the new key",
        "Permission denied": f"put your public key there: ssh-copy-id {host}",
        "Could not resolve": "check its name, or give an address",
        "timed out": "check that it is up and reached from here, or leave it out",
        "No route": "check that it is up and reached from here, or leave it out",
        "refused": "start sshd there, or give its port in ~/.ssh/config",
    }
    advice = next((known[sign] for sign in known if sign in stderr), f"try: ssh {host} true")
    return UserError(f"host {host}: {last_line(stderr) or 'ssh lost the connection'}; {advice}")


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
