"""Measure where a step's time goes and which rank is slow, without making the host wait for the device.

On GPUs the parts of a step lie between CUDA events on the device's stream; on CPUs, and for the waits of the
host itself, the clock is read. Gradients are summed over ranks while the backward pass runs: `reduce` is only
the time that these sums still take once the local gradients are done. Sums that the loss needs are counted in
`head`, those of DeepSpeed's stage 0 and the gathering of updated parameters in `optimizer`. A trace shows
each of them (`pretrain.monitoring.profiler`).
"""

import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Variable
from torch.profiler import record_function

from pretrain.distributed import rank, world_size
from pretrain.engines import Engine
from pretrain.methods.base import HeadOutput

ALONE = ("data", "augment", "forward")
"""Parts in which a rank does not wait for others (except for the parameters of FSDP and ZeRO-3)."""


class StepTimer:
    """Adds up the seconds of each part of the steps since the last report."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Forget what was measured so far."""
        self._began = time.perf_counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._spans: list[tuple[str, Any, Any]] = []

    def _now(self) -> Any:
        """Return a CUDA event on the device's stream, or the clock's seconds."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def device(self, part: str) -> Iterator[None]:
        """Count the work that the block queues on the device as `part`."""
        with record_function(part):
            start = self._now()
            yield
            self._spans.append((part, start, self._now()))

    @contextmanager
    def host(self, part: str) -> Iterator[None]:
        """Count the time that this process spends in the block as `part`."""
        began = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - began

    @contextmanager
    def backward(self, loss: Tensor) -> Iterator[None]:
        """Count the backward pass of `loss` in the block as `backward`, and then `reduce`."""
        moments = [self._now()]
        # Callbacks at the end of a backward pass run in the order in which they are queued. This one is
        # queued before the engine's, which wait for the other ranks.
        queue = Variable._execution_engine.queue_callback
        loss.register_hook(lambda _: queue(lambda: moments.append(self._now())))
        with record_function("backward"):
            yield
        start, middle, end = *moments, self._now()
        self._spans += [("backward", start, middle), ("reduce", middle, end)]

    def report(self, steps: int) -> dict[str, float]:
        """Return mean seconds per step, over `steps` steps, for each part and for the whole; then restart.

        The whole, `seconds_step`, leaves checkpoints out. `seconds_checkpoint` is not a mean but all the time
        that training waited for saves since the last report. `seconds_alone` is what this rank spent without
        waiting for others. Waits for the device.
        """
        if self._cuda and self._spans:
            self._spans[-1][2].synchronize()
        for part, start, end in self._spans:
            self._seconds[part] += start.elapsed_time(end) / 1e3 if self._cuda else end - start
        saving = self._seconds.pop("checkpoint", 0.0)
        means = {f"seconds_{part}": seconds / steps for part, seconds in self._seconds.items()}
        means["seconds_step"] = (time.perf_counter() - self._began - saving) / steps
        means["seconds_alone"] = sum(means[f"seconds_{part}"] for part in ALONE)
        self.restart()
        return means | {"seconds_checkpoint": saving}


class TimedEngine:
    """An engine (see `pretrain.engines.Engine`) around another, whose calls it counts as parts of a step."""

    def __init__(self, engine: Engine, timer: StepTimer) -> None:
        self.engine, self.timer = engine, timer
        self.networks, self.config, self.device = engine.networks, engine.config, engine.device

    def encode(self, views: list[Tensor], keys: Tensor) -> Tensor:
        with self.timer.device("forward"):
            return self.engine.encode(views, keys)

    def target(self, batches: list[list[Tensor]], keys: list[Tensor]) -> Tensor | None:
        with self.timer.device("forward"):
            return self.engine.target(batches, keys)

    def head(self, embeddings: Tensor, step: int, beside: Tensor | None) -> HeadOutput:
        with self.timer.device("head"):
            return self.engine.head(embeddings, step, beside)

    def backward(self, loss: Tensor, gradient: Tensor | None = None) -> None:
        with self.timer.backward(loss):
            self.engine.backward(loss, gradient)

    def no_sync(self) -> AbstractContextManager[None]:
        return self.engine.no_sync()

    def step(self, lr: float, momentum: float = 1.0, limit: Tensor | None = None) -> Tensor:
        with self.timer.device("optimizer"):
            return self.engine.step(lr, momentum, limit)

    def state(self) -> dict[str, Any]:
        return self.engine.state()

    def load(self, state: dict[str, Any]) -> None:
        self.engine.load(state)


def compare_ranks(seconds: float, data_wait: float) -> dict[str, float]:
    """Return which rank is slowest, the longest wait for data and the memory peak (GiB), equal on all ranks.

    Every rank calls it, with the seconds per step that it spent without waiting for others (`seconds_alone`:
    whole steps take equally long everywhere) and with the share of a step in which it waited for data, which
    the other ranks then wait for too.
    """
    everyone = torch.zeros(world_size(), 3, dtype=torch.float64)
    everyone[rank()] = torch.tensor([seconds, _peak_memory() / 2**30, data_wait], dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(everyone)
    alone, memory, waited = everyone.T
    return {
        "slowest_rank": alone.argmax().item(),
        "slowest_rank_seconds": alone.max().item(),
        "median_rank_seconds": alone.median().item(),
        "data_wait": waited.max().item(),
        "memory_gib": memory.max().item(),
    }


def _peak_memory() -> int:
    """Return the most bytes allocated so far: on the GPU where there is one, else by this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
