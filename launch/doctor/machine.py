"""What a node gives its processes: shared memory, open files, CPUs."""

import os
import resource
import shutil
from pathlib import Path

from launch.doctor.findings import ByHost, Facts, Finding, Status, alike, ok, span

GIB = 2**30
SHARED = GIB
"""Bytes of /dev/shm a rank: batches go through it from loader workers, and NCCL's buffers."""
OPEN_FILES = (1024, 4096)
"""Fewer fail; fewer than the second may do for few shards and workers."""
BUSY = 0.5
"""Load, as a share of the CPUs, from which on somebody else is at work."""


def measure() -> Facts:
    shared = Path("/dev/shm")
    return {
        "shared": shutil.disk_usage(shared).free if shared.is_dir() else 0,
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def judge(facts: ByHost, ranks: dict[str, int], workers: int) -> list[Finding]:
    """`workers` of the loader, a rank."""
    return [*_shared(facts, ranks, workers), *_files(facts), *_cpus(facts, ranks, workers)]


def _shared(facts: ByHost, ranks: dict[str, int], workers: int) -> list[Finding]:
    remedy = "docker run --shm-size, or in Kubernetes an emptyDir of medium Memory; or data.workers=0"
    complaints = {
        host: (f"{own['shared'] / GIB:.2f} GiB free in /dev/shm for {ranks[host]} ranks", remedy)
        for host, own in facts.items()
        if own["shared"] < SHARED * ranks[host]
    }
    findings = alike("shared memory", Status.FAILED if workers else Status.WARNING, complaints)
    free = span((own["shared"] / GIB for own in facts.values()), "{:.1f}".format)
    return findings or ok("shared memory", f"{free} GiB free in /dev/shm")


def _files(facts: ByHost) -> list[Finding]:
    few, enough = OPEN_FILES
    remedy = (
        f"ulimit -n {enough * 16}, or LimitNOFILE in the service that starts the run (sshd, slurmd, docker)"
    )
    found = {host: (f"a process may open {own['files']} files", remedy) for host, own in facts.items()}
    failed = {host: text for host, text in found.items() if facts[host]["files"] < few}
    warned = {host: text for host, text in found.items() if few <= facts[host]["files"] < enough}
    findings = alike("open files", Status.FAILED, failed) + alike("open files", Status.WARNING, warned)
    limit = span((own["files"] for own in facts.values()), "{:,.0f}".format)
    return findings or ok("open files", f"{limit} a process")


def _cpus(facts: ByHost, ranks: dict[str, int], workers: int) -> list[Finding]:
    complaints: dict[str, tuple[str, str]] = {}
    for host, own in facts.items():
        processes = ranks[host] * (1 + workers)
        if own["load"] > BUSY * own["cpus"]:
            found = f"load {own['load']:.1f} on {own['cpus']} CPUs before anything runs"
            complaints[host] = (found, "see what runs there (top), or leave the host out")
        elif processes > own["cpus"]:
            found = f"{own['cpus']} CPUs for {ranks[host]} ranks with {workers} loader workers each"
            complaints[host] = (found, "lower data.workers, or use hosts with more CPUs")
    count = span((own["cpus"] for own in facts.values()), "{:.0f}".format)
    return alike("CPUs", Status.WARNING, complaints) or ok("CPUs", f"{count} a host, idle enough")
