"""Make the tasks that `srun` or `mpirun` started, without torchrun, the ranks of one process group.

PyTorch reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. A scheduler says the same in
variables of its own, which `set_ranks` translates.
"""

import os
import re
import shutil
import subprocess
import zlib
from typing import NamedTuple

from isotorus.errors import UserError
from isotorus.numbers import whole_number
from isotorus.processes import has_launcher


class _Names(NamedTuple):
    """The variables in which a scheduler numbers its tasks."""

    rank: str
    size: str
    local_rank: str
    local_size: str
    job: str
    """What differs between two jobs that share a node."""


_SCHEDULERS = (
    # srun alone sets SLURM_STEP_NUM_TASKS. In a batch script or an salloc shell SLURM_NTASKS is set as well,
    # but there one process runs, not that many.
    _Names(
        "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_JOB_ID"
    ),
    _Names(
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "PMIX_NAMESPACE",
    ),
    _Names(
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
        "MV2_COMM_WORLD_JOBID",
    ),
    _Names("PALS_RANKID", "PALS_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE", "PALS_APID"),
    _Names("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "PMI_JOBID"),
)
_LOWEST_PORT, _PORTS = 20_000, 10_000


def set_ranks() -> str | None:
    """Set PyTorch's variables from those of a scheduler; return a line that says so, or None.

    Does nothing under a launcher, which has set RANK, and for a single task. Raises UserError if the tasks
    run on several nodes and it is unknown where they can meet.
    """
    if "RANK" in os.environ or (names := _scheduler()) is None:
        return None
    rank, size = int(os.environ[names.rank]), int(os.environ[names.size])
    local_size = _local_size(names, size)
    os.environ.setdefault("MASTER_ADDR", _meeting_host(names, size, local_size))
    os.environ.setdefault("MASTER_PORT", str(_port(names)))
    local_rank = _number(names.local_rank)
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(rank), str(size)
    os.environ["LOCAL_RANK"] = str(rank % local_size if local_rank is None else local_rank)
    os.environ["LOCAL_WORLD_SIZE"] = str(local_size)
    return f"RANK and WORLD_SIZE come from {names.rank} and {names.size}: {size} ranks"


def check_ranks() -> None:
    """Raise UserError for a RANK without the variables by which ranks meet, as a shell may have left it."""
    rank = os.environ.get("RANK")
    if rank is None:
        return
    missing = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"RANK={rank} is set, as for one of several processes, but {' and '.join(missing)} not; unset "
            "RANK to run one process, or start several with torchrun"
        )
    number, size = whole_number(rank), whole_number(os.environ["WORLD_SIZE"])
    if number is None or size is None or number >= size:
        raise UserError(
            f"RANK={rank} and WORLD_SIZE={os.environ['WORLD_SIZE']}: expected a RANK below WORLD_SIZE; "
            "unset RANK to run one process, or start several with torchrun"
        )


def without_ranks() -> dict[str, str]:
    """Return this process's environment without the variables that make a process a rank."""
    of_schedulers = {name for names in _SCHEDULERS for name in (names.rank, names.size)}
    prefixes = ("TORCHELASTIC_", "MASTER_", "GROUP_", "ROLE_")
    own = of_schedulers | {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}
    return {name: x for name, x in os.environ.items() if name not in own and not name.startswith(prefixes)}


def is_task() -> bool:
    """Return whether `srun` or `mpirun` started this process itself, as one of several tasks.

    The ranks of torchrun on a node inherit the variables of the one task that started torchrun.
    """
    return not has_launcher() and _scheduler() is not None


def step_hosts() -> list[str]:
    """Return the hosts of this Slurm job step in their order, or an empty list outside Slurm."""
    listed = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")
    if listed and shutil.which("scontrol"):  # most containers have none
        shown = subprocess.run(["scontrol", "show", "hostnames", listed], capture_output=True, text=True)
        if shown.returncode == 0 and shown.stdout.split():
            return shown.stdout.split()
    return expand_hosts(listed)


def expand_hosts(names: str) -> list[str]:
    """Return the hosts of a list in Slurm's short form, such as "node[01-03,7],login"."""
    hosts: list[str] = []
    for prefix, ranges, suffix in re.findall(r"([^,\[]+)(?:\[([^]]*)\])?([^,\[]*)", names):
        if not ranges:
            hosts.append(prefix + suffix)
        for part in filter(None, ranges.split(",")):
            first, _, last = part.partition("-")
            hosts += [
                f"{prefix}{number:0{len(first)}d}{suffix}"
                for number in range(int(first), int(last or first) + 1)
            ]
    return hosts


def _scheduler() -> _Names | None:
    """Return the variables of the scheduler whose task this is, or None if there are not several tasks."""
    for names in _SCHEDULERS:
        if _number(names.rank) is not None and (_number(names.size) or 0) > 1:
            return names
    return None


def _number(name: str) -> int | None:
    return whole_number(os.environ.get(name, ""))


def _local_size(names: _Names, size: int) -> int:
    """Return how many tasks run on this node; Slurm lists the numbers of all nodes, as in "2(x3),1"."""
    text = os.environ.get(names.local_size, "")
    counts = [
        int(count)
        for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
        for _ in range(int(times or 1))
    ]
    if counts:
        return counts[min(_number("SLURM_NODEID") or 0, len(counts) - 1)]
    return size if _nodes() == 1 else 1


def _nodes() -> int:
    for name in ("SLURM_STEP_NUM_NODES", "SLURM_NNODES"):
        if (nodes := _number(name)) is not None:
            return nodes
    return 1


def _meeting_host(names: _Names, size: int, local_size: int) -> str:
    """Return the host of rank 0, where all ranks meet."""
    if local_size >= size:
        return "localhost"
    if names.rank == "SLURM_PROCID" and (hosts := step_hosts()):
        return hosts[0]
    raise UserError(
        f"{names.rank} says that this is one of {size} tasks on several nodes, but not where they can meet; "
        "set MASTER_ADDR to the first node's name for all tasks, or start with torchrun or `isotorus launch`"
    )


def _port(names: _Names) -> int:
    """Return a port that is equal for all tasks of a job step, and differs between most jobs."""
    step = f"{os.environ.get(names.job, '')}.{os.environ.get('SLURM_STEP_ID', '')}"
    return _LOWEST_PORT + zlib.crc32(step.encode()) % _PORTS
