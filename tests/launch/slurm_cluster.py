"""A real Slurm of two nodes on this machine, in a folder of its own: munged, slurmctld, two slurmd."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import pytest

NODES = ("127.0.0.2", "127.0.0.3")
"""Names that are addresses, so that ranks find each other without an entry in /etc/hosts."""

CONFIGURATION = """\
ClusterName={name}
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
GresTypes=gpu
PlugStackConfig={folder}/plugstack.conf
ReturnToService=2
InactiveLimit=0
KillWait=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=5,bf_interval=5
"""
NODE = (
    "NodeName={node} NodeAddr={node} NodeHostname=localhost Port={port} CPUs=8 RealMemory=8000 Gres=gpu:2\n"
)
PARTITIONS = """\
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=60 State=UP PriorityTier=2
"""


class Cluster:
    """Runs Slurm's commands, which find this cluster by SLURM_CONF."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def call(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`."""
        shown = self.call("scontrol", "show", "--oneliner", "job", number)
        return dict(pair.partition("=")[::2] for pair in shown.splitlines()[0].split())

    def wait_for(self, number: str, happened: Callable[[], object], log: Path | None = None) -> None:
        """Wait until `happened()` is true; start a job that was queued again without its delay."""
        deadline = time.monotonic() + 400
        while not happened():
            job = self.job(number)
            if job["JobState"] == "PENDING" and job["Reason"] == "BeginTime" and not _just_ended(job):
                subprocess.run(["scontrol", "update", f"jobid={number}", "starttime=now"])
            said = log.read_text() if log and log.exists() else ""
            assert time.monotonic() < deadline, f"{job}\n{said}"
            time.sleep(0.2)

    def wait_for_state(self, number: str, *states: str, log: Path | None = None) -> None:
        self.wait_for(number, lambda: self.job(number)["JobState"] in states, log)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster, and stop it with its jobs at the end; skip the test where that is not possible."""
    for program in ("munged", "slurmctld", "slurmd", "sbatch"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}; Debian's slurm-wlm and munge have it")
    if os.geteuid() != 0:
        pytest.skip("slurmd has to be started by root")
    _write(folder)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        with ExitStack() as stack:
            munge = ["munged", "--foreground", "--force", "--key-file", str(folder / "munge.key")]
            for option, name in (("socket", "socket"), ("pid-file", "pid"), ("log-file", "log")):
                munge += [f"--{option}", str(folder / f"munge.{name}")]
            munge += ["--seed-file", str(folder / "munge.seed")]
            stack.enter_context(_daemon(munge, folder))
            _until(lambda: (folder / "munge.socket").exists(), folder)
            stack.enter_context(_daemon(["slurmctld", "-D", "-c"], folder))
            for node in NODES:
                stack.enter_context(_daemon(["slurmd", "-D", "-N", node], folder))
            _until(_idle, folder)
            yield Cluster(folder)
            subprocess.run(["scancel", "--signal=KILL", "--full", "--user=root"], capture_output=True)
    finally:
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def _just_ended(job: dict[str, str]) -> bool:
    """Return whether a job was queued again seconds ago; slurmd would mistake a new start for the old one."""
    return datetime.now() - datetime.fromisoformat(job["SubmitTime"]) < timedelta(seconds=5)


def _write(folder: Path) -> None:
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    (folder / "plugstack.conf").touch()
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    (folder / "cgroup.conf").touch()
    ports = _free_ports(1 + len(NODES))
    text = CONFIGURATION.format(name=f"isotorus{os.getpid()}", folder=folder, controller=ports[0])
    text += "".join(NODE.format(node=node, port=port) for node, port in zip(NODES, ports[1:], strict=True))
    (folder / "slurm.conf").write_text(text + PARTITIONS)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@contextmanager
def _daemon(command: list[str], folder: Path) -> Iterator[None]:
    with (folder / "daemons.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()


def _idle() -> bool:
    done = subprocess.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%t"], capture_output=True, text=True)
    return done.stdout.split() == ["idle"] * len(NODES)


def _until(happened: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        logs = "".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
        assert time.monotonic() < deadline, f"Slurm does not start: {logs}"
        time.sleep(0.1)
