"""Hosts on one machine: network namespaces on a bridge, each with its name, its address and an sshd.

They share the file system, as the nodes of a cluster share its storage. Everything, the bridge too, lies in
namespaces named after this process, so that tests side by side do not meet.
"""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

_numbers = itertools.count()


class Node(NamedTuple):
    name: str
    """The host name, which is also the address of the node for the others."""
    address: str
    namespace: str


class Network:
    """Nodes `node1`, `node2`, …; on any of them plain `ssh NODE` gets into any other, if `ssh` is true."""

    def __init__(self, folder: Path, prefix: str, count: int, ssh: bool = True) -> None:
        self.folder, self._ssh = folder, ssh
        self.nodes = [Node(f"node{i}", f"10.77.0.{i}", f"{prefix}-{i}") for i in range(1, count + 1)]
        self._switch = f"{prefix}-switch"

    def hostfile(self, slots: int = 1, nodes: Sequence[int] | None = None) -> Path:
        """A host file of all nodes, or of those with the numbers given (the first is 1)."""
        chosen = [node for i, node in enumerate(self.nodes, 1) if nodes is None or i in nodes]
        path = self.folder / f"hosts{next(_numbers)}"
        path.write_text("".join(f"{node.name} slots={slots}\n" for node in chosen))
        return path

    def on(self, number: int, *command: str) -> list[str]:
        """Return a command that becomes `command` on a node (the first is 1), in the caller's directory."""
        node = self.nodes[number - 1]
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', node.name]
        return ["ip", "netns", "exec", node.namespace, *named, *command]

    def cut(self, number: int) -> None:
        """Disconnect a node from the network; its processes continue."""
        _do("ip", "-n", self._switch, "link", "set", f"port{number}", "down")

    def join(self, number: int) -> None:
        """Connect a node again."""
        _do("ip", "-n", self._switch, "link", "set", f"port{number}", "up")

    def processes(self, number: int) -> list[psutil.Process]:
        """Return all processes of a node but its sshd."""
        pids = _do("ip", "netns", "pids", self.nodes[number - 1].namespace).split()
        found = []
        for pid in map(int, pids):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if not process.name().startswith("sshd"):
                    found.append(process)
        return found

    def crash(self, number: int) -> None:
        """End all of a node's processes at once, its sshd too, with its network."""
        self.cut(number)
        _end(self.nodes[number - 1].namespace)

    def start_sshd(self, number: int) -> None:
        etc = _etc(self.nodes[number - 1].namespace) / "ssh"
        subprocess.run(self.on(number, "/usr/sbin/sshd", "-f", f"{etc}/sshd_config"), check=True)

    def set_up(self) -> None:
        for kind in ("user", *(node.name for node in self.nodes)) if self._ssh else ():
            _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", kind, "-f", f"{self.folder}/{kind}")
        Path("/run/sshd").mkdir(exist_ok=True)
        _do("ip", "netns", "add", self._switch)
        _do("ip", "-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _do("ip", "-n", self._switch, "link", "set", "bridge", "up")
        for number, node in enumerate(self.nodes, 1):
            _do("ip", "netns", "add", node.namespace)
            port = ["link", "add", f"port{number}", "type", "veth", "peer", "eth0", "netns", node.namespace]
            _do("ip", "-n", self._switch, *port)
            _do("ip", "-n", self._switch, "link", "set", f"port{number}", "master", "bridge", "up")
            _do("ip", "-n", node.namespace, "link", "set", "lo", "up")
            _do("ip", "-n", node.namespace, "addr", "add", f"{node.address}/24", "dev", "eth0")
            _do("ip", "-n", node.namespace, "link", "set", "eth0", "up")
            self._write_etc(node)
            if self._ssh:
                self.start_sshd(number)

    def _write_etc(self, node: Node) -> None:
        """Write the files that `ip netns exec` shows instead of those of the machine under /etc."""
        etc = _etc(node.namespace)
        (etc / "ssh").mkdir(parents=True)
        names = "".join(f"{n.address} {n.name}\n" for n in self.nodes)
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        if not self._ssh:
            return
        keys = ((n, (self.folder / f"{n.name}.pub").read_text()) for n in self.nodes)
        (etc / "ssh/ssh_known_hosts").write_text("".join(f"{n.name},{n.address} {key}" for n, key in keys))
        (etc / "ssh/ssh_config").write_text(
            f"Host *\n IdentityFile {self.folder}/user\n IdentitiesOnly yes\n User root\n"
            f" GlobalKnownHostsFile /etc/ssh/ssh_known_hosts\n UserKnownHostsFile /dev/null\n"
        )
        (etc / "ssh/sshd_config").write_text(
            f"HostKey {self.folder}/{node.name}\nAuthorizedKeysFile {self.folder}/user.pub\n"
            f"PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\n"
            "MaxStartups 100\n"
        )

    def tear_down(self) -> None:
        for namespace in (*(node.namespace for node in self.nodes), self._switch):
            _remove(namespace)


@contextlib.contextmanager
def network(folder: Path, count: int, ssh: bool = True) -> Iterator[Network]:
    """Make `count` nodes, whose keys are in `folder`; skip the test if this machine does not allow it."""
    reason = missing(ssh)
    if reason:
        pytest.skip(reason)
    _remove_left_over()
    made = Network(folder, f"iso{os.getpid()}-{next(_numbers)}", count, ssh)
    try:
        made.set_up()
        yield made
    finally:
        made.tear_down()


def missing(ssh: bool = True) -> str:
    """Return what this machine lacks for a network, with ssh or without; "" if it lacks nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    tools = {"ip": "iproute2"}
    if ssh:
        tools |= {"/usr/sbin/sshd": "openssh-server", "ssh": "openssh-client"}
    for tool, package in tools.items():
        if not shutil.which(tool):
            return f"{tool} is missing: apt-get install {package}"
    tried = f"iso{os.getpid()}-tried"
    made = subprocess.run(["ip", "netns", "add", tried], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", tried], capture_output=True)
    return f"no network namespace can be made here: {made.stderr.strip()}" if made.returncode else ""


def _etc(namespace: str) -> Path:
    return Path("/etc/netns") / namespace


def _do(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def _remove(namespace: str) -> None:
    _end(namespace)
    subprocess.run(["ip", "netns", "del", namespace], capture_output=True)
    shutil.rmtree(_etc(namespace), ignore_errors=True)


def _remove_left_over() -> None:
    """Remove what killed tests have left."""
    for namespace in (line.split()[0] for line in _do("ip", "netns", "list").splitlines()):
        made_by = re.fullmatch(r"iso(\d+)-\d+-\w+", namespace)
        if made_by and not psutil.pid_exists(int(made_by[1])):
            _remove(namespace)


def _end(namespace: str) -> None:
    """Kill processes in a namespace until there are none."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        listed: Any = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
        if not listed.stdout.split():
            return
        for pid in map(int, listed.stdout.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
