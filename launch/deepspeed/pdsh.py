"""Start ranks on many hosts by DeepSpeed's own runner, which uses pdsh.

The runner writes the variables that it exports into the command line of ssh, which every user of the machine
can read. It therefore gets no secrets, neither from this process nor from a `.deepspeed_env` file. The user
sees which variables are missing; `--launcher ssh` would carry them.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from isotorus.errors import INTERRUPTED, TRY_AGAIN, UserError
from isotorus.processes import END_WITH_STDIN
from isotorus.secrets import holds_secret, masked_command, may_be_secret
from launch.one_node.deepspeed_ranks import shell_code
from launch.over_ssh import cluster, ssh
from launch.over_ssh.job import Job
from launch.over_ssh.remote import node_command


def start(job: Job, dry_run: bool) -> int:
    """Run the job and return 0, or the largest exit code of a host, which is what pdsh returns."""
    if job.ssh != ["ssh"]:
        raise UserError("--ssh: pdsh has no option for another client; put the options into ~/.ssh/config")
    if not shutil.which("pdsh"):
        raise UserError(
            f"host {socket.gethostname()}: no pdsh here; apt-get install pdsh, or use --launcher ssh"
        )
    for word in job.pretrain:
        if holds_secret(word):
            raise UserError(
                f"{masked_command(word)}: pdsh would show that to all users of the hosts; put it into the "
                "recipe, or use --launcher ssh"
            )
    # The runner reads a variable from each line.
    broken = [name for name, value in job.environment.items() if not value.isprintable()]
    if broken:
        print(
            f"not passed on, as they hold a line break or control character: {', '.join(broken)}; use "
            "--launcher ssh",
            file=sys.stderr,
        )
    secrets = [name for name, value in job.environment.items() if may_be_secret(name) or holds_secret(value)]
    if secrets:
        print(
            f"not passed on, as pdsh would show them to all users of the hosts: {', '.join(secrets)}; set "
            "them on the hosts, or use --launcher ssh",
            file=sys.stderr,
        )
    exported = {name: value for name, value in job.environment.items() if name not in {*secrets, *broken}}
    exported[END_WITH_STDIN] = "1"
    with tempfile.TemporaryDirectory(prefix="isotorus-") as folder:
        hostfile, variables = Path(folder) / "hosts", Path(folder) / "environment"
        slots = {name: max(numbers) + 1 for name, numbers in job.devices.items()}
        hostfile.write_text("".join(f"{name} slots={count}\n" for name, count in slots.items()))
        # The runner puts double quotes around a value, but does not escape the quotes inside it.
        escaped = {name: _in_double_quotes(value).replace('"', '\\"') for name, value in exported.items()}
        variables.write_text("".join(f"{name}={value}\n" for name, value in escaped.items() if value.strip()))
        meet = job.address or ssh.address(job.hosts[0].name)
        if dry_run:
            runner = _runner(job, hostfile, meet, job.port or "<a free port>")
            print(f"# {hostfile}:\n{hostfile.read_text()}# {variables}:\n{variables.read_text()}", end="")
            print(
                masked_command(
                    f"DS_ENV_FILE={variables} PDSH_SSH_ARGS_APPEND={shlex.quote(SSH)} {shlex.join(runner)}"
                )
            )
            return 0
        port = cluster.Launch(job).reachable(True)[job.hosts[0].name]["port"]
        environment = {
            name: value
            for name, value in os.environ.items()
            if not may_be_secret(name)
            and not holds_secret(value)
            and name not in ("PYTHONPATH", "MASTER_ADDR")
        }
        environment |= {"DS_ENV_FILE": str(variables), "PDSH_SSH_ARGS_APPEND": SSH}
        return _follow(job, _runner(job, hostfile, meet, port), environment)


SSH = "-oBatchMode=yes -oStrictHostKeyChecking=yes -oConnectTimeout=10 -oLogLevel=ERROR"


def _runner(job: Job, hostfile: Path, meet: str, port: int | str) -> list[str]:
    """Return the command that starts DeepSpeed's runner."""
    include = "@".join(f"{name}:{','.join(map(str, numbers))}" for name, numbers in job.devices.items())
    return [
        *(job.python, "-u", "-m", "deepspeed.launcher.runner"),
        f"--hostfile={hostfile}",
        f"--include={include}",
        *("--launcher=pdsh", "--launcher_args=-N", "--force_multi", "--no_ssh_check", "--log_level=error"),
        *(f"--master_addr={meet}", f"--master_port={port}", "--module", "--no_local_rank"),
        *job.options,
        "pretrain",
        *(_for_pdsh(word) for word in job.pretrain),
    ]


def _for_pdsh(word: str) -> str:
    """Quote an argument so that it passes unchanged through DeepSpeed's runner, pdsh and the host's shell.

    The runner puts double quotes around an argument with a space and quotes no other.
    """
    return _in_double_quotes(word) if " " in word else shlex.quote(word.replace("%", "%%"))


def _in_double_quotes(text: str) -> str:
    """Escape what a shell would replace inside double quotes, and the % of pdsh."""
    for sign in ("\\", "$", "`"):
        text = text.replace(sign, f"\\{sign}")
    return text.replace("%", "%%")


def _follow(job: Job, runner: list[str], environment: dict[str, str]) -> int:
    """Run the runner until it ends and return the exit code.

    Signals go directly to the ranks, because the runner would end without letting them save.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, note)
    # The pipe stays open, because the ranks would end with standard input.
    process = subprocess.Popen(runner, env=environment, stdin=subprocess.PIPE, start_new_session=True)
    with _killed_with_this(process):
        return _wait(job, process, received)


@contextlib.contextmanager
def _killed_with_this(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Kill the process and its group if this process is killed inside the block, so that the ranks end too.

    A shell does it: its standard input ends when this process ends, because only this process holds the other
    end.
    """
    wait_and_kill = ["sh", "-c", 'read _; kill -KILL "-$0"', str(process.pid)]
    guard = subprocess.Popen(wait_and_kill, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        guard.kill()
        guard.wait()


def _wait(job: Job, process: "subprocess.Popen[bytes]", received: list[int]) -> int:
    """Wait until the runner ends, and send on each signal when it is received; return the exit code."""
    sent, stop_by = 0, float("inf")
    while process.poll() is None:
        while sent < len(received):
            _send_signal(job, "SIGUSR1" if received[sent] == signal.SIGUSR1 else "SIGTERM")
            stop_by = min(stop_by, time.monotonic() + job.grace)
            sent += 1
        if time.monotonic() > stop_by:
            _send_signal(job, "SIGKILL")
            process.kill()
            process.wait()
            return TRY_AGAIN
        time.sleep(0.1)
    if process.returncode == ssh.OWN_FAILURE:
        return TRY_AGAIN
    return INTERRUPTED if signal.SIGINT in received else shell_code(process.returncode)


def _send_signal(job: Job, name: str) -> None:
    """Send a signal to the ranks on all hosts."""
    request = json.dumps({"do": "signal", "id": job.id, "signal": name}) + "\n"
    hosts = [host.name for host in job.hosts]
    ssh.require(ssh.run(hosts, node_command(job.python, job.directory), request), "passing a signal on")
