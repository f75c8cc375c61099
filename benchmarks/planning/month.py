"""Simulate a month of training on 1,024 hosts that fail, return and slow down, with the real code of
checkpoints.

    python -m benchmarks.planning.month FOLDER [--days 30] [--hosts 1024]

The real code writes, finds, deletes and reads checkpoints (`pretrain.checkpoint.store` and
`RunState.resume`), drops rows after a resume (`StepLog`), and divides the batch among the ranks that are left
(`data_pipeline.order.share`). The clock, the hosts and the step are simulated: in place of weights there is
one number, which depends on all earlier batches and their order. One process takes the place of all ranks,
nothing is sent, no loss is computed, and the guard refuses no update. Prints a line for RESULTS.md.
"""

import argparse
import heapq
import json
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from data_pipeline.order import share
from isotorus.jsonl import StepLog, read
from pretrain.checkpoint import retention, store
from pretrain.checkpoint.config import CheckpointConfig
from pretrain.checkpoint.run_state import RunState
from pretrain.cost.goodput import DAY, LLAMA, RESTART, STALL
from pretrain.monitoring.config import GuardConfig
from pretrain.monitoring.guard import Guard

GPUS = 8
"""GPUs of a host."""


@dataclass(frozen=True)
class Cluster:
    """What is simulated; seconds unless said otherwise."""

    hosts: int = 1024
    days: float = 30
    failures: float = LLAMA
    """Interruptions in 1,000 GPU-days; each removes a host."""
    repair: float = 4 * 3600
    """Mean time until a host comes back. Then all stop, save and continue with it."""
    slow: float = 7 * DAY
    """Mean time between slow hosts, which slow all others down."""
    slowness: tuple[float, float] = (1.3, 3600)
    """Factor by which a step then takes longer, and for how long."""
    step: float = 10
    """Time of a step when no host is missing."""
    images: int = 32
    """Images of each GPU when no host is missing; with fewer hosts some have more, and all wait for these."""
    every: int = 60
    """Steps between checkpoints."""
    writing: float = 20
    """Time until a checkpoint is complete."""
    restart: float = RESTART


class Weights:
    """Takes the engine's place: a number that depends on all batches and their order."""

    def __init__(self) -> None:
        self.value = torch.ones(1, dtype=torch.int64)

    def update(self, batch: int) -> None:
        # A linear congruential step: no two orders of the batches give the same number by accident.
        self.value.mul_(6364136223846793005).add_(batch)

    def state(self) -> dict[str, Any]:
        return {"model": {"encoder.encoder.weight": self.value}}

    def load(self, state: dict[str, Any]) -> None:
        self.value.copy_(state["model"]["encoder.encoder.weight"])


def begin(folder: Path) -> tuple[RunState, Weights]:
    """Return what a process has after a start: a state that continues from the newest checkpoint."""
    weights = Weights()
    guard = Guard(GuardConfig(), folder, nn.Module(), torch.device("cpu"))
    state = RunState(weights, guard, None)  # type: ignore[arg-type]
    retention.tidy(folder / "checkpoints")
    state.resume(folder / "checkpoints", "refuse")
    return state, weights


def simulate(folder: Path, cluster: Cluster, seed: int = 0) -> SimpleNamespace:
    """Train for the given days of simulated time; return what happened."""
    draw = random.Random(seed)
    rate = cluster.failures * cluster.hosts * GPUS / (1000 * DAY)
    config = CheckpointConfig(every=cluster.every, keep_last=2)
    events = [(draw.expovariate(rate), "lost"), (draw.expovariate(1 / cluster.slow), "slow")]
    heapq.heapify(events)
    now, hosts, slow_until, lost_steps = 0.0, cluster.hosts, 0.0, 0
    counts = {"lost": 0, "back": 0, "slow": 0}
    writing: tuple[float, int, dict[str, Any]] | None = None
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    state, weights = begin(folder)
    log = StepLog(folder / "metrics.jsonl", 0)
    batch = cluster.images * cluster.hosts * GPUS

    def publish() -> None:
        nonlocal writing
        assert writing is not None
        log.sync()
        store.write(checkpoints, writing[1], writing[2], {}, config, None)
        writing = None

    def start_again() -> None:
        nonlocal state, weights, log, now, lost_steps, writing
        if writing is not None:  # what a killed process leaves of a checkpoint
            (checkpoints / f".partial_{writing[1]:08d}").mkdir()
            writing = None
        before = state.step
        state, weights = begin(folder)
        log = StepLog(folder / "metrics.jsonl", state.step)
        lost_steps += before - state.step
        now += cluster.restart

    while now < cluster.days * DAY:
        ranks = hosts * GPUS
        largest = max(len(share(batch, rank, ranks)) for rank in (0, ranks - 1, ranks // 2, ranks // 3))
        slowed = cluster.slowness[0] if now < slow_until else 1.0
        ends = now + cluster.step * largest / cluster.images * slowed
        if writing is not None and writing[0] <= min(ends, events[0][0]):
            publish()
        if events[0][0] < ends:
            when, what = heapq.heappop(events)
            now = max(now, when)
            counts[what] += 1
            if what == "lost":
                hosts -= 1
                heapq.heappush(events, (now + draw.expovariate(rate), "lost"))
                heapq.heappush(events, (now + draw.expovariate(1 / cluster.repair), "back"))
                start_again()
            elif what == "back":
                hosts += 1
                if writing is not None:
                    publish()
                store.write(checkpoints, state.step, snapshot(state), {}, config, None)
                now += cluster.writing
                start_again()
            else:
                slow_until = now + cluster.slowness[1]
                heapq.heappush(events, (now + draw.expovariate(1 / cluster.slow), "slow"))
            continue
        weights.update(state.batch)
        state.step, now = state.step + 1, ends
        if state.step % cluster.every == 0 and writing is None:
            log.write({"step": state.step, "value": weights.value.item(), "hosts": hosts})
            writing = (now + cluster.writing, state.step, snapshot(state))
            now += STALL * cluster.writing
    return SimpleNamespace(
        steps=state.step, useful=state.step * cluster.step / now, lost_steps=lost_steps, value=weights.value,
        rows=read(folder / "metrics.jsonl", "step"), **counts,
    )  # fmt: skip


def snapshot(state: RunState) -> dict[str, Any]:
    """Return a copy of the state, as `Saver` makes one."""
    tensors = state.tensors()
    return tensors | {"model": {key: x.clone() for key, x in tensors["model"].items()}}


def undisturbed(steps: int) -> torch.Tensor:
    """Return the weights after as many steps without any failure."""
    weights = Weights()
    for step in range(steps):
        weights.update(step)
    return weights.value


def check(found: SimpleNamespace, every: int) -> None:
    """Check that the final history has each step once, in order, with the values of an undisturbed run."""
    assert torch.equal(found.value, undisturbed(found.steps))
    steps = [row["step"] for row in found.rows]
    assert steps == sorted(set(steps))
    assert set(steps) <= set(range(every, found.steps + 1, every))
    weights, done = Weights(), 0
    for row in found.rows:
        for step in range(done, row["step"]):
            weights.update(step)
        done = row["step"]
        assert weights.value.item() == row["value"], row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for checkpoints; emptied first")
    parser.add_argument("--days", type=float, default=30)
    parser.add_argument("--hosts", type=int, default=1024)
    parser.add_argument("--every", type=int, default=60, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    cluster = Cluster(hosts=given.hosts, days=given.days, every=given.every)
    began = time.process_time()
    found = simulate(given.folder, cluster, given.seed)
    check(found, cluster.every)
    print(json.dumps({key: getattr(found, key) for key in ("steps", "lost", "back", "slow", "lost_steps")}))
    print(f"useful time {found.useful:.1%}; each step once; {time.process_time() - began:.0f} CPU seconds")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
