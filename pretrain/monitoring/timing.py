"""Where a step's time goes, measured without waiting for the device; read at logged steps alone.

What the device does lies between CUDA events on its stream; on CPUs, and for what the host waits for,
it is the clock. Sums of gradients over ranks overlap with the backward pass: `reduce` is what is left of
them when the local gradients are there. Sums that the loss needs are in `head`, those of DeepSpeed's stage 0
and the gathering of updated parameters in `optimizer`; a profile shows each (`pretrain.monitoring.profiler`).
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.profiler import record_function

from pretrain.engines import Engine

PARTS = {
    "encode": "forward",
    "target": "forward",
    "head": "head",
    "step": "optimizer",
}
"""An engine's methods, and the part of a step that each is counted as."""
ALONE = ("data", "augment", "forward")
"""Parts in which a rank does not wait for the others (but for FSDP's and ZeRO-3's parameters)."""


class StepTimer:
    """Seconds of a step's parts since the last report."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Forget what was measured so far."""
        self._began = time.perf_counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._spans: list[tuple[str, Any, Any]] = []

    def time_calls(self, engine: Engine) -> None:
        """Count what the engine does from now on as parts of the step."""
        for method, part in PARTS.items():
            setattr(engine, method, self._timed(part, getattr(engine, method)))
        engine.backward = self._timed_backward(engine.backward)  # type: ignore[method-assign]

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            with self.device(part):
                return function(*inputs)

        return call

    def _timed_backward(self, backward: Callable[..., None]) -> Callable[..., None]:
        def call(loss: Tensor, *gradient: Tensor) -> None:
            moments = [self._now()]
            # Callbacks at the end of a backward pass run in the order they are queued in, and this one comes
            # before the engine's, which wait for the other ranks.
            queue = Variable._execution_engine.queue_callback
            loss.register_hook(lambda _: queue(lambda: moments.append(self._now())))
            with record_function("backward"):
                backward(loss, *gradient)
            moments.append(self._now())
            start, middle, end = moments
            self._spans += [("backward", start, middle), ("reduce", middle, end)]

        return call

    def _now(self) -> Any:
        """A moment on the device's stream, or by the clock."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def device(self, part: str) -> Iterator[None]:
        """Count what is put onto the device inside as `part`."""
        with record_function(part):
            start = self._now()
            yield
            self._spans.append((part, start, self._now()))

    @contextmanager
    def host(self, part: str) -> Iterator[None]:
        """Count the time that this process spends inside as `part`."""
        began = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - began

    def report(self, steps: int) -> dict[str, float]:
        """Mean seconds a step, of the whole (without checkpoints) and of each part, over `steps` steps.

        `checkpoint` is no mean: it is all that training waited for saves since the last report. `alone` is
        what this rank spent without waiting for others. Waits for the device.
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
