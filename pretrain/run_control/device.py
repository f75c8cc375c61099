"""The device of this rank, and the CPU cores near it."""

import contextlib
import os
import re
import socket
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from isotorus.errors import MachineError
from isotorus.processes import has_launcher
from isotorus.scheduled_ranks import is_task

ON_CPUS = "set CUDA_VISIBLE_DEVICES= to train on CPUs"
PCI = Path("/sys/bus/pci/devices")


def choose_device() -> torch.device:
    """Return this rank's GPU, or the CPU where there is none; raise `MachineError` for GPUs it cannot use."""
    if not gpus_work():
        return torch.device("cpu")
    environment, devices = os.environ, torch.cuda.device_count()
    local_rank, ranks = (
        int(environment.get(f"LOCAL_{name}", x)) for name, x in (("RANK", 0), ("WORLD_SIZE", 1))
    )
    per_task = 0 if has_launcher() else gpus_per_task(environment)
    return torch.device("cuda", choose_index(local_rank, ranks, devices, per_task, is_task()))


def choose_index(local_rank: int, ranks: int, devices: int, per_task: int, is_task: bool) -> int:
    """Return the number of this rank's GPU among the `devices` that it sees; a node has `ranks` ranks.

    `per_task` is how many GPUs Slurm gives each task, 0 where it does not say. A scheduler may show each task
    (`is_task`) only its own GPU, which then has number 0.
    """
    if per_task > 1 and devices > 1:
        raise MachineError(
            f"on {_host()} each rank has {devices} GPUs, and a rank uses one; use --gpus-per-task=1 and as "
            "many tasks as GPUs, or set CUDA_VISIBLE_DEVICES to one of them"
        )
    if devices == 1 and is_task:
        return 0
    if ranks > devices:
        raise MachineError(
            f"{ranks} processes on a node with {devices} GPU ({_host()}); use --nproc-per-node {devices}, or "
            f"{ON_CPUS}"
        )
    return local_rank


def gpus_per_task(environment: Mapping[str, str]) -> int:
    """Return how many GPUs Slurm was asked to give each task, in either spelling; 0 if it was not."""
    named = environment.get("SLURM_GPUS_PER_TASK") or environment.get("SLURM_TRES_PER_TASK", "")
    plain = re.fullmatch(r"(?:[\w.-]+:)?(\d+)", named)
    found = plain or re.search(r"gres/gpu(?::[\w.-]+)?[:=](\d+)", named)
    return int(found[1]) if found else 0


def gpus_work() -> bool:
    """Return whether there is a GPU; raise `MachineError` if there is one that CUDA cannot start.

    torch itself would warn and train on CPUs.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1", "NoDevFiles")
    texts = [str(warning.message) for warning in said]
    if not there and not hidden and (text := next((x for x in texts if "CUDA initialization" in x), None)):
        raise MachineError(why_no_gpu(text))
    return there


def why_no_gpu(warning: str) -> str:
    """Return in one line what torch's warning says of a GPU that does not start, and the remedy."""
    if old := re.search(r"too old \(found version (\d+)(\d\d)\d\)", warning):
        return (
            f"the NVIDIA driver of {_host()} is for CUDA {old[1]}.{int(old[2])}, older than this torch's "
            f"{torch.version.cuda}; update the driver, install a torch for that CUDA, or {ON_CPUS}"
        )
    reason = warning.partition("CUDA initialization: ")[2].partition(" (Triggered")[0].strip()
    return (
        f"CUDA does not start on {_host()}: {reason}; see nvidia-smi and isotorus launch doctor, or {ON_CPUS}"
    )


def bind_near(device: torch.device) -> None:
    """Keep this process, and those that it starts, on the cores of its GPU's NUMA node.

    Memory that they use first then lies there too. Cores that the user or Slurm has excluded stay so.
    """
    found: Any = torch.cuda.get_device_properties(device)
    address = f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"
    with contextlib.suppress(OSError, ValueError, AttributeError):  # not Linux, or a GPU without an address
        bind(parse_cores((PCI / address / "local_cpulist").read_text()))


def bind(near: set[int]) -> None:
    """Keep all threads of this process on those of its cores that are in `near`, if it has any of them."""
    cores = os.sched_getaffinity(0) & near
    for thread in Path("/proc/self/task").iterdir() if cores else ():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


def parse_cores(text: str) -> set[int]:
    """Return the cores of a list in Linux' form, such as "0-3,8"."""
    ranges = [part.partition("-") for part in text.strip().split(",") if part]
    return {core for first, _, last in ranges for core in range(int(first), int(last or first) + 1)}


def _host() -> str:
    return socket.gethostname()
