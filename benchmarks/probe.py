"""Compare the minibatch probe's grid in one pass with one setting after another.

    python benchmarks/probe.py [--device cuda] [--threads 2]

The grid has 13 learning rates × 4 feature sets. One after another is timed in two ways: with this package's
own loop for one setting and one feature set, and with the usual loop of `nn.Linear`, `torch.optim.AdamW` and
autograd. Both see the same minibatches of normalised features. All settings cost the same, so one is timed
and multiplied by their number. The three take turns and the best turn of each counts. With one thread, times
are CPU time of the process. Prints a Markdown row for RESULTS.md.
"""

import argparse
import platform
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_pipeline.order import sample_index
from eval_suite.usefulness.minibatch_probe import Protocol, train


def usual(x: Tensor, y: Tensor, classes: int, protocol: Protocol) -> None:
    """Train one head by autograd on features (n, d)."""
    steps, size = protocol.steps(len(x)), protocol.batch_size
    positions = sample_index(np.arange(steps * size, dtype=np.int64), len(x), protocol.seed)
    order = torch.as_tensor(positions, device=x.device).view(steps, size)
    head = nn.Linear(x.shape[1], classes, device=x.device)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=protocol.learning_rates[0], weight_decay=protocol.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for rows in order:
        optimizer.zero_grad()
        F.cross_entropy(head(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()


def best(works: Sequence[Callable[[], object]], repeats: int, device: str) -> list[float]:
    """Return the seconds of the best turn of each."""
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(repeats + 1):
        for work, taken in zip(works, seconds, strict=True):
            if device == "cuda":
                torch.cuda.synchronize()
            began = clock()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            taken.append(clock() - began)
    return [min(taken[1:]) for taken in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=12)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, given.samples, given.width, generator=generator).to(given.device)
    y = torch.randint(given.classes, (given.samples,), generator=generator).to(given.device)
    grid = Protocol(min_steps=given.steps, epochs=1)
    assert grid.steps(given.samples) == given.steps, "fewer steps than an epoch has"
    single = grid.model_copy(update={"learning_rates": grid.learning_rates[6:7]})

    turns = [
        lambda: usual(x[0], y, given.classes, single),
        lambda: train(x[:1], y, given.classes, single),
        lambda: train(x, y, given.classes, grid),
    ]
    autograd, own, together = best(turns, given.repeats, given.device)
    settings = len(x) * len(grid.learning_rates)
    autograd, own = settings * autograd, settings * own
    machine = (
        torch.cuda.get_device_name()
        if given.device == "cuda"
        else f"{platform.processor() or platform.machine()}, {given.threads} thread(s)"
    )
    sizes = f"{settings} heads, {given.samples:,} × {given.width}, {given.classes} classes"
    print(
        f"| {machine} | torch {torch.__version__} | {sizes} | {autograd / given.steps * 1e3:.1f} "
        f"| {own / given.steps * 1e3:.1f} | {together / given.steps * 1e3:.2f} "
        f"| {autograd / together:.1f}×, {own / together:.1f}× | `python benchmarks/probe.py` |"
    )


if __name__ == "__main__":
    main()
