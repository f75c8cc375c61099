"""Check each node: software versions, the C compiler, shared memory, open files, CPUs."""

import os
import platform
import resource
import shutil
from pathlib import Path

import torch

from isotorus.compilers import COMPILER_REMEDY, c_compiler
from isotorus.processes import usable_cores
from launch.doctor.findings import ByHost, Facts, Finding, Status, grouped, ok, skipped, span
from launch.over_ssh import hosts_agree

GIB = 2**30
SHARED = GIB
"""Bytes of /dev/shm that each rank needs, for batches from loader workers and for NCCL's buffers."""
OPEN_FILES = (1024, 4096)
"""Limits on open files: below the first the check fails, below the second it warns."""
BUSY = 0.5
"""Load, as a share of the CPUs, above which other processes are at work."""
MAY_DIFFER = {"driver", "python"}
"""Versions whose difference is only a warning. All others, such as NCCL and torch, must be equal."""


def measure_versions(driver: str | None) -> Facts:
    """Return the versions of this node, by name; None for what is not installed."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "NCCL": ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else None,
        "driver": driver,
        "isotorus": hosts_agree.installed("isotorus"),
        "deepspeed": hosts_agree.installed("deepspeed"),
        "mlflow": hosts_agree.installed("mlflow"),
        "own code": hosts_agree.code_digest(),
    }


def judge_versions(facts: ByHost) -> list[Finding]:
    """Return a finding for each version that differs between hosts, naming the hosts in the minority."""
    findings = []
    shown = next(iter(facts.values()))
    for name in shown:
        by_value: dict[str | None, list[str]] = {}
        for host, versions in facts.items():
            by_value.setdefault(versions[name], []).append(host)
        if len(by_value) == 1:
            continue
        usual = max(by_value, key=lambda value: len(by_value[value]))
        odd = [host for value, hosts in by_value.items() if value != usual for host in hosts]
        others = ", ".join(str(value) for value in by_value if value != usual)
        status = Status.WARNING if name in MAY_DIFFER else Status.FAILED
        observed = f"{name} {others}; the others have {usual}"
        findings.append(Finding("versions", status, odd, observed, f"install {name} {usual} there"))
    text = ", ".join(f"{name} {value}" for name, value in shown.items() if value)
    return findings or ok("versions", text)


def measure() -> Facts:
    """Return the resources that this node offers its processes."""
    shared = Path("/dev/shm")
    return {
        "shared": shutil.disk_usage(shared).free if shared.is_dir() else 0,
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "cpus": usable_cores(),
        "load": os.getloadavg()[0],
        "compiler": c_compiler(),
    }


def judge(facts: ByHost, ranks: dict[str, int], workers: int) -> list[Finding]:
    """Judge the nodes' resources; `ranks` by host, `workers` is the number of loader workers of each rank."""
    return [*_shared(facts, ranks, workers), *_files(facts), *_cpus(facts, ranks, workers)]


def judge_compiler(facts: ByHost, compiles: bool | str, with_gpus: bool) -> list[Finding]:
    """Judge whether each node can compile; `compiles` is the recipe's engine.compile.

    Without a compiler a run with engine.compile=true is refused, and Triton's kernels cannot start.
    """
    without = {host: ("no C compiler", COMPILER_REMEDY) for host, own in facts.items() if not own["compiler"]}
    if without and not (compiles or with_gpus):
        return skipped("C compiler", "none, and nothing here is compiled by it")
    status = Status.FAILED if compiles is True else Status.WARNING
    found = sorted({own["compiler"] for own in facts.values() if own["compiler"]})
    return grouped("C compiler", status, without) or ok("C compiler", ", ".join(found))


def _shared(facts: ByHost, ranks: dict[str, int], workers: int) -> list[Finding]:
    remedy = "docker run --shm-size, or in Kubernetes an emptyDir of medium Memory; or data.workers=0"
    problems = {
        host: (f"{own['shared'] / GIB:.2f} GiB free in /dev/shm for {ranks[host]} ranks", remedy)
        for host, own in facts.items()
        if own["shared"] < SHARED * ranks[host]
    }
    findings = grouped("shared memory", Status.FAILED if workers else Status.WARNING, problems)
    free = span((own["shared"] / GIB for own in facts.values()), "{:.1f}".format)
    return findings or ok("shared memory", f"{free} GiB free in /dev/shm")


def _files(facts: ByHost) -> list[Finding]:
    few, enough = OPEN_FILES
    remedy = (
        f"ulimit -n {enough * 16}, or LimitNOFILE in the service that starts the run (sshd, slurmd, docker)"
    )
    limits = {host: (f"a process may open {own['files']} files", remedy) for host, own in facts.items()}
    failed = {host: text for host, text in limits.items() if facts[host]["files"] < few}
    warned = {host: text for host, text in limits.items() if few <= facts[host]["files"] < enough}
    findings = grouped("open files", Status.FAILED, failed) + grouped("open files", Status.WARNING, warned)
    limit = span((own["files"] for own in facts.values()), "{:,.0f}".format)
    return findings or ok("open files", f"{limit} a process")


def _cpus(facts: ByHost, ranks: dict[str, int], workers: int) -> list[Finding]:
    problems: dict[str, tuple[str, str]] = {}
    for host, own in facts.items():
        processes = ranks[host] * (1 + workers)
        if own["load"] > BUSY * own["cpus"]:
            observed = f"load {own['load']:.1f} on {own['cpus']} CPUs before anything runs"
            problems[host] = (observed, "see what runs there (top), or leave the host out")
        elif processes > own["cpus"]:
            observed = f"{own['cpus']} CPUs for {ranks[host]} ranks with {workers} loader workers each"
            problems[host] = (observed, "lower data.workers, or use hosts with more CPUs")
    count = span((own["cpus"] for own in facts.values()), "{:.0f}".format)
    return grouped("CPUs", Status.WARNING, problems) or ok("CPUs", f"{count} a host, idle enough")
