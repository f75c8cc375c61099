"""Run commands on many hosts at once with the OpenSSH client."""

import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from isotorus.errors import UserError
from isotorus.secrets import masked_command

SSH = ("ssh",)
"""The default client. A user may choose another, or add options: ("ssh", "-F", "my_config")."""
OWN_FAILURE = 255
"""The exit code of ssh if it could not run the command or lost the connection."""


class Answer(NamedTuple):
    host: str
    code: int
    stdout: str
    stderr: str


def client(host: str, ssh: Sequence[str] = SSH, patience: float = 30) -> list[str]:
    """Return the arguments that start ssh to a host, without the command to run there.

    This ssh asks no questions and refuses unknown host keys. It ends if the host is silent for `patience`
    seconds.
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
    """Return the address that ssh's configuration gives a host name, for programs that do not read it."""
    resolved = subprocess.run([*ssh, "-G", host], capture_output=True, text=True)
    if resolved.returncode:
        raise failure(host, resolved.stderr)
    return next(line.split()[1] for line in resolved.stdout.splitlines() if line.startswith("hostname "))


def run(
    hosts: Iterable[str], command: str, stdin: str = "", ssh: Sequence[str] = SSH, timeout: float = 60
) -> list[Answer]:
    """Run a shell command on all hosts at once and return their answers in the order of `hosts`.

    `stdin` is for text that should be in no process list. Raise UserError for the first host that ssh cannot
    reach or that does not answer within `timeout` seconds. The caller checks the command's own exit code, for
    instance by `require`.
    """
    hosts = list(hosts)

    def ask(host: str) -> Answer | None:
        try:
            ended = subprocess.run(
                [*client(host, ssh), command], input=stdin, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return None
        return Answer(host, ended.returncode, ended.stdout, ended.stderr)

    with ThreadPoolExecutor(max(1, len(hosts))) as threads:
        answers = list(threads.map(ask, hosts))
    for host, answer in zip(hosts, answers, strict=True):
        if answer is None:
            raise UserError(
                f"host {host} did not answer within {timeout:.0f} s; check what it does, or leave it out"
            )
        if answer.code == OWN_FAILURE:
            raise failure(host, answer.stderr)
    return [answer for answer in answers if answer]


def require(answers: Iterable[Answer], doing: str) -> None:
    """Raise UserError for the first host on which the command failed, with its last line of output."""
    for answer in answers:
        if answer.code:
            reason = last_line(answer.stderr) or last_line(answer.stdout) or f"exit code {answer.code}"
            raise UserError(f"host {answer.host}: {doing}: {masked_command(reason)}")


def failure(host: str, stderr: str) -> UserError:
    """Return a `UserError` with the message of ssh and advice on what to do."""
    known = {
        "Host key verification failed": f"check its key and add it: ssh-keyscan {host} >> ~/.ssh/known_hosts",
        "IDENTIFICATION HAS CHANGED": f"if that is right, ssh-keygen -R {host}, then add the new key",
        "Permission denied": f"put your public key there: ssh-copy-id {host}",
        "Could not resolve": "check its name, or give an address",
        "timed out": "check that it is up and can be reached from here, or leave it out",
        "No route": "check that it is up and can be reached from here, or leave it out",
        "refused": "start sshd there, or give its port in ~/.ssh/config",
    }
    advice = next((known[sign] for sign in known if sign in stderr), f"try: ssh {host} true")
    return UserError(f"host {host}: {last_line(stderr) or 'ssh lost the connection'}; {advice}")


def last_line(text: str) -> str:
    """Return the last line that is not blank, or an empty string."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
