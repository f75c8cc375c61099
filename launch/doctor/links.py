"""What the network between the ranks gives: all-reduce, each pair of hosts, and how clocks differ."""

import itertools
import statistics
import time

import torch
import torch.distributed as dist

from launch.doctor.findings import ByHost, Facts, Finding, Status, ok, skipped

SIZES = (2**12, 2**20, 2**25, 2**28)
"""Bytes of an all-reduce; those that would take longer than `LONGEST` seconds are left out."""
LONGEST = 5.0
PAIR = 2**21
"""Bytes that a pair of hosts sends each other, thrice."""
SLOW = 0.5
"""A host is slow whose best pair is below this share of what hosts' best pairs have in the middle. Its best,
as its other pairs may be slow by the other's fault."""
FEW = 0.125
"""GB/s, 1 Gbit/s: with less between hosts training waits for the network, whatever the model."""
CLOCKS = (1.0, 300.0)
"""Seconds apart: times in logs and MLflow lie; S3 refuses signatures (at 900)."""


def measure(firsts: list[int], hosts: list[str], device: torch.device) -> Facts:
    """Called on all ranks; `firsts` are the ranks that are the first of their host.

    GB/s of the all-reduce's bus (2 (n - 1) / n times bytes a second, as nccl-tests counts) by bytes, seconds
    of the smallest; GB/s of this host with each other one; seconds its clock is ahead of the first host's.
    """
    rank = dist.get_rank()
    facts: Facts = {"all_reduce": _all_reduce(device), "pairs": {}}
    if rank in firsts:
        own = firsts.index(rank)
        for partner in _partners(own, len(firsts)):
            rate = _exchange(firsts[partner], device)
            facts["pairs"][hosts[partner]] = rate
        facts["ahead"] = _clock(own, firsts)
    dist.barrier()
    return facts


def judge(facts: ByHost) -> list[Finding]:
    """`facts` of each host's first rank."""
    first = next(iter(facts.values()))
    reduced = {int(size): rate for size, rate in first["all_reduce"]["rates"].items()}
    findings = []
    if reduced:
        rates = ", ".join(f"{rate:.3g} GB/s at {_size(size)}" for size, rate in reduced.items())
        latency = first["all_reduce"]["latency"] * 1e6
        findings += ok("all-reduce", f"bus {rates}; {latency:,.0f} µs for {_size(SIZES[0])}")
    else:
        findings += skipped("all-reduce", "one rank alone")
    return [*findings, *_hosts(facts), *_clocks(facts)]


def _hosts(facts: ByHost) -> list[Finding]:
    pairs = {
        (host, other): rate
        for host, own in facts.items()
        for other, rate in own["pairs"].items()
        if host < other
    }
    if not pairs:
        return skipped("links", "one host alone")
    best = {host: max(rate for pair, rate in pairs.items() if host in pair) for host in facts}
    usual = statistics.median(best.values())
    slow = [host for host, rate in best.items() if rate < SLOW * usual]
    (a, b), least = min(pairs.items(), key=lambda item: item[1])
    text = f"slowest pair {a} and {b}, {least:.3g} GB/s each way; a host's best is usually {usual:.3g}"
    remedy = (
        "check its cable, port and NIC (ethtool), and that NCCL_SOCKET_IFNAME / NCCL_IB_HCA name the fast one"
    )
    if slow and len(facts) > 2:
        return [Finding("links", Status.FAILED, slow, text, remedy)]
    if least < max(SLOW * usual, FEW):
        return [Finding("links", Status.WARNING, [a, b], text, remedy)]
    return ok("links", text)


def _clocks(facts: ByHost) -> list[Finding]:
    if len(facts) == 1:
        return skipped("clocks", "one host alone")
    few, many = CLOCKS
    ahead = {host: own["ahead"] for host, own in facts.items()}
    middle = statistics.median(ahead.values())
    apart = {host: value - middle for host, value in ahead.items()}
    worst = max(apart.values(), key=abs)
    found = f"up to {abs(worst) * 1e3:,.1f} ms apart"
    odd = [host for host, value in apart.items() if abs(value) > few]
    if not odd:
        return ok("clocks", found)
    status = Status.FAILED if abs(worst) > many else Status.WARNING
    return [Finding("clocks", status, odd, found, "start chrony or ntpd there")]


def _all_reduce(device: torch.device) -> Facts:
    world = dist.get_world_size()
    if world == 1:
        return {"rates": {}, "latency": 0.0}
    rates: dict[int, float] = {}
    latency = seconds = 0.0
    for before, size in itertools.pairwise((0, *SIZES)):
        if before and seconds * size / before > LONGEST:
            break
        tensor = torch.ones(size // 4, device=device)
        seconds = min(_timed(tensor, device) for _ in range(4 if before else 20))
        # The slowest rank's time, so that all leave out the same sizes.
        slowest = torch.tensor(seconds, dtype=torch.float64, device=device)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        seconds = slowest.item()
        if before:
            rates[size] = 2 * (world - 1) / world * size / seconds / 1e9
        else:
            latency = seconds
    return {"rates": rates, "latency": latency}


def _timed(tensor: torch.Tensor, device: torch.device) -> float:
    _wait(device)
    begun = time.perf_counter()
    dist.all_reduce(tensor)
    _wait(device)
    return time.perf_counter() - begun


def _partners(own: int, hosts: int) -> list[int]:
    """Whom this host meets in each round of a tournament in which every two meet once (circle method)."""
    players = hosts + hosts % 2
    order = []
    for turn in range(players - 1):
        circle = [0, *(1 + (place + turn) % (players - 1) for place in range(players - 1))]
        partner = circle[players - 1 - circle.index(own)]
        if partner < hosts:
            order.append(partner)
    return order


def _exchange(partner: int, device: torch.device) -> float:
    """GB/s each way of a rank and another that sends at the same time."""
    mine, theirs = torch.ones(PAIR // 4, device=device), torch.empty(PAIR // 4, device=device)
    times = []
    for _ in range(3):
        _wait(device)
        begun = time.perf_counter()
        both = [dist.P2POp(dist.isend, mine, partner), dist.P2POp(dist.irecv, theirs, partner)]
        for work in dist.batch_isend_irecv(both):
            work.wait()
        _wait(device)
        times.append(time.perf_counter() - begun)
    return PAIR / min(times) / 1e9


def _clock(own: int, firsts: list[int], rounds: int = 10) -> float:
    """Seconds by which this host's clock is ahead of the first's, by the quickest of some round trips.

    Known to half of that round trip, as in NTP (RFC 5905). On CPU tensors, which gloo carries.
    """
    if own == 0:
        for other in firsts[1:]:
            for _ in range(rounds):
                dist.recv(torch.empty(1, dtype=torch.float64), other)
                dist.send(torch.tensor([time.time()], dtype=torch.float64), other)
        return 0.0
    trips = []
    for _ in range(rounds):
        answer = torch.empty(1, dtype=torch.float64)
        begun = time.time()
        dist.send(torch.zeros(1, dtype=torch.float64), firsts[0])
        dist.recv(answer, firsts[0])
        ended = time.time()
        trips.append((ended - begun, (begun + ended) / 2 - answer.item()))
    return min(trips)[1]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _size(size: int) -> str:
    return f"{size // 2**20} MiB" if size >= 2**20 else f"{size // 2**10} KiB"
