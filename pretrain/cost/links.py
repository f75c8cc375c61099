"""Links between GPUs and between nodes, by name, and the seconds that collective calls take over them."""

import re
from dataclasses import dataclass, replace

from isotorus.errors import UserError

GB = 1e9
# Bytes a second in one direction, by the datasheets: of all NVLinks of a GPU together (NVIDIA's datasheets of
# A100, H100, H200 and B200 state the sum of both directions, 600, 900, 900 and 1800 GB/s), of 16 lanes of PCI
# Express, and of one port of a network.
LINKS = {
    "nvlink3": 300 * GB,
    "nvlink4": 450 * GB,
    "nvlink5": 900 * GB,
    "pcie4": 32 * GB,
    "pcie5": 64 * GB,
    "ib-hdr": 25 * GB,
    "ib-ndr": 50 * GB,
    "ib-xdr": 100 * GB,
    "eth-25": 3.125 * GB,
    "eth-100": 12.5 * GB,
    "eth-200": 25 * GB,
    "eth-400": 50 * GB,
}
REACHED = 0.82
"""Share of a link's line rate that NCCL reaches: 370 of 450 GB/s of NVLink 4, by its authors
(github.com/NVIDIA/nccl-tests, issue 212). It is assumed for every link."""
HOP = 5e-6
"""Seconds until a small message has passed one link. An assumption."""


@dataclass(frozen=True)
class Machine:
    """A node of some GPUs, and its connection to others."""

    name: str
    gpus: int
    inside: str
    """Link of a GPU to the others of its node, a name in `LINKS`."""
    ports: int
    between: str
    """Link of each of the node's `ports` to the network."""

    def inside_rate(self) -> float:
        """Return the bytes a second of one GPU inside its node."""
        return REACHED * LINKS[self.inside]

    def between_rate(self) -> float:
        """Return the bytes a second of a whole node."""
        return REACHED * self.ports * LINKS[self.between]

    def __str__(self) -> str:
        return f"{self.gpus} GPUs a node over {self.inside}, {self.ports} × {self.between} between nodes"


# NVIDIA's datasheets of DGX A100 80 GB (8 single-port ConnectX, HDR), DGX H100, H200 and B200 (8 ×
# ConnectX-7, NDR) and DGX GB200 (72 GPUs in one NVLink domain, 72 × ConnectX-7, NDR).
MACHINES = {
    machine.name: machine
    for machine in (
        Machine("dgx-a100", 8, "nvlink3", 8, "ib-hdr"),
        Machine("dgx-h100", 8, "nvlink4", 8, "ib-ndr"),
        Machine("dgx-h200", 8, "nvlink4", 8, "ib-ndr"),
        Machine("dgx-b200", 8, "nvlink5", 8, "ib-ndr"),
        Machine("dgx-gb200", 72, "nvlink5", 72, "ib-ndr"),
        Machine("plain", 8, "pcie4", 1, "eth-100"),
    )
}
USUAL = {
    "a100": "dgx-a100",
    "a100-40gb": "dgx-a100",
    "h100": "dgx-h100",
    "h200": "dgx-h200",
    "b200": "dgx-b200",
    "gb200": "dgx-gb200",
}
"""The machine in which an accelerator of the datasheets is usually found; "plain" for any other."""


def machine(
    gpu: str,
    name: str | None = None,
    gpus: int | None = None,
    inside: str | None = None,
    between: str | None = None,
) -> Machine:
    """Return the machine of this name, or the usual one of an accelerator, changed by the other arguments.

    `between` is a link, or their number and a link, as in "4xeth-100". Raises `UserError` for names that are
    not in the tables.
    """
    if name is not None and name not in MACHINES:
        raise UserError(f"--machine {name}: must be one of {', '.join(MACHINES)}")
    found = MACHINES[name or USUAL.get(gpu, "plain")]
    if gpus is not None:
        found = replace(found, gpus=gpus)
    if inside is not None:
        found = replace(found, inside=_link("--inside", inside))
    if between is not None:
        number = re.fullmatch(r"([1-9]\d*)[x×](.+)", between)
        ports, link = (int(number[1]), number[2]) if number else (found.ports, between)
        found = replace(found, ports=ports, between=_link("--between", link))
    return found


def _link(option: str, name: str) -> str:
    if name not in LINKS:
        raise UserError(f"{option} {name}: must be one of {', '.join(LINKS)}")
    return name


@dataclass(frozen=True)
class Group:
    """Ranks that make a collective call together: `nodes` nodes with `inside` ranks of the group on each."""

    machine: Machine
    inside: int
    nodes: int
    rivals: int = 1
    """Number of groups that use a node's ports at the same time, such as the replicas of each shard."""

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.inside * self.nodes

    def gather(self, size: float) -> float:
        """Return the seconds in which each rank gets all of a tensor of `size` bytes, or scatters its sum.

        In a ring each rank receives all but its own part. Between nodes the ring passes through all ports of
        a node at once. Both happen at the same time, piece by piece, so the slower one counts.
        """
        within = size * (self.ranks - 1) / self.ranks / self.machine.inside_rate() if self.inside > 1 else 0.0
        rate = self.machine.between_rate() / self.rivals
        across = size * (self.nodes - 1) / self.nodes / rate if self.nodes > 1 else 0.0
        return max(within, across) + self.latency()

    def reduce(self, size: float) -> float:
        """Return the seconds in which all ranks get the sum of a tensor: it is scattered, then gathered."""
        return 2 * self.gather(size) - self.latency()

    def latency(self) -> float:
        """Return the seconds of a call without bytes: up and down a tree of nodes, and within a node."""
        if self.ranks == 1:
            return 0.0
        depth = (self.nodes - 1).bit_length()
        return HOP * (2 * depth + min(self.inside, 2))


def all_ranks(machine: Machine, ranks: int) -> Group:
    """Return the group of all ranks, on as few nodes as hold them."""
    inside = min(machine.gpus, ranks)
    return Group(machine, inside, -(-ranks // inside))
