"""Measure the network between the ranks: all-reduce, each pair of hosts, and how far their clocks differ."""

import itertools
import statistics
import time

import torch
import torch.distributed as dist

from launch.doctor.findings import ByHost, Facts, Finding, Status, ok, skipped

SIZES = (2**12, 2**20, 2**25, 2**28)
"""Sizes of the all-reduces in bytes. Those that would take longer than `LONGEST` seconds are skipped."""
LONGEST = 5.0
PAIRS = (2**21, 2**26, 2**28)
"""Bytes that the two hosts of a pair send each other, three times; small messages do not fill a fast link."""
PAIRS_LONGEST = 15.0
"""Seconds that one host may send in all. Sizes with which its pairs would take longer are skipped."""
SLOW = 0.5
"""A host is slow if its best pair has less than this share of the median of all hosts' best rates. The best
pair counts, because another pair may be slow through the fault of the other host."""
SLOWEST = 0.125
"""In GB/s; it equals 1 Gbit/s. With a slower network between hosts, training of any model waits for it."""
CLOCKS = (1.0, 300.0)
"""Limits on the difference between clocks, in seconds. Above the first, times in logs and MLflow are
misleading; above the second, S3 may soon refuse signatures (it does so at 900)."""


def measure(firsts: list[int], hosts: list[str], device: torch.device) -> Facts:
    """Measure the network. All ranks must call this together; `firsts` are the first ranks of the hosts.

    Return "all_reduce": the bus rate in GB/s by size (2 (n - 1) / n times the bytes per second, as nccl-tests
    counts it) and the latency in seconds; "pairs": GB/s between this host and each other host; "ahead": the
    seconds by which this host's clock is ahead of the first host's.
    """
    rank = dist.get_rank()
    facts: Facts = {"all_reduce": _all_reduce(device), "pairs": {}}
    if rank in firsts:
        own = firsts.index(rank)
        for partner in _partners(own, len(firsts)):
            rate = _pair(firsts[partner], device, PAIRS_LONGEST / (len(firsts) - 1))
            facts["pairs"][hosts[partner]] = rate
        facts["ahead"] = _clock(own, firsts)
    dist.barrier()
    return facts


def judge(facts: ByHost) -> list[Finding]:
    """Judge what the first rank of each host measured."""
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
    if least < max(SLOW * usual, SLOWEST):
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
    observed = f"up to {abs(worst) * 1e3:,.1f} ms apart"
    odd = [host for host, value in apart.items() if abs(value) > few]
    if not odd:
        return ok("clocks", observed)
    status = Status.FAILED if abs(worst) > many else Status.WARNING
    return [Finding("clocks", status, odd, observed, "start chrony or ntpd there")]


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
        # Use the slowest rank's time on all ranks, so that all skip the same sizes.
        slowest = torch.tensor(seconds, dtype=torch.float64, device=device)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        seconds = slowest.item()
        if before:
            rates[size] = 2 * (world - 1) / world * size / seconds / 1e9
        else:
            latency = seconds
    return {"rates": rates, "latency": latency}


def _timed(tensor: torch.Tensor, device: torch.device) -> float:
    """Return the seconds of one all-reduce."""
    _wait(device)
    begun = time.perf_counter()
    dist.all_reduce(tensor)
    _wait(device)
    return time.perf_counter() - begun


def _partners(own: int, hosts: int) -> list[int]:
    """Return the partners of host `own`, round by round, so that every two hosts meet once (circle method).

    A host that has no partner in a round skips it.
    """
    players = hosts + hosts % 2
    order = []
    for turn in range(players - 1):
        circle = [0, *(1 + (place + turn) % (players - 1) for place in range(players - 1))]
        partner = circle[players - 1 - circle.index(own)]
        if partner < hosts:
            order.append(partner)
    return order


def _pair(partner: int, device: torch.device, longest: float) -> float:
    """Return the GB/s in each direction while this rank and a partner send to each other, within `longest` s.

    The rate is that of the largest size that was sent. Both ranks use the time of the slower one, so both
    skip the same sizes.
    """
    rate = 0.0
    for size in PAIRS:
        if rate and 3 * size / rate / 1e9 > longest:
            break
        mine, theirs = (torch.ones(size // 4, device=device) for _ in range(2))
        seconds = min(_exchange(mine, theirs, partner, device) for _ in range(3))
        slower, other = (torch.full((1,), seconds, dtype=torch.float64, device=device) for _ in range(2))
        _exchange(slower, other, partner, device)
        rate = size / max(slower.item(), other.item()) / 1e9
    return rate


def _exchange(mine: torch.Tensor, theirs: torch.Tensor, partner: int, device: torch.device) -> float:
    """Send a tensor to a partner, receive another one from it, and return the seconds."""
    _wait(device)
    begun = time.perf_counter()
    both = [dist.P2POp(dist.isend, mine, partner), dist.P2POp(dist.irecv, theirs, partner)]
    for work in dist.batch_isend_irecv(both):
        work.wait()
    _wait(device)
    return time.perf_counter() - begun


def _clock(own: int, firsts: list[int], rounds: int = 10) -> float:
    """Return the seconds by which this host's clock is ahead of the first host's.

    The quickest of several round trips counts, and the error is at most half of it, as in NTP (RFC 5905). The
    tensors are on the CPU, so gloo sends them.
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
