"""Compare SIGReg, forward and backward, with stable-pretraining's SlicedEppsPulley: time and extra memory.

    python benchmarks/sigreg.py [--device cuda]
    python benchmarks/sigreg.py --growth --threads 1

With `--growth` it measures how the time of isotorus on a CPU grows with samples and with dimensions. That is
the processor's time of this process, which other processes on the machine do not add to.

Both take turns in one process, so that the ratio of the medians holds on a busy machine too. Memory is
measured in one process for each: after a warm-up, the most that one more step adds to the process (on a CPU
the kernel's high-water mark of resident memory, reset before the step; on CUDA the allocator's peak). Where
stable-pretraining (MIT; only measured here, never needed) cannot be imported, the same statistic in plain
torch takes its place. The floor is what no implementation can avoid: the projection, its gradient, and one
read and one write of the projections.
"""

import argparse
import ctypes
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

from pretrain.objectives.sigreg import SIGReg

SIZES = {"cpu": (2048, 64, 1024), "cuda": (4096, 512, 4096)}
GROWTH = ((1024, 64), (2048, 64), (4096, 64), (2048, 512), (2048, 1024), (2048, 2048))
"""Samples N and dimensions K of `--growth`, with 1024 slices."""


class WrittenOut(nn.Module):
    """The statistic as it is usually written, with its N × M × knots tensors."""

    def __init__(self, slices: int) -> None:
        super().__init__()
        self.slices = slices

    def forward(self, x: Tensor) -> Tensor:
        t = torch.linspace(0, 3, 17, device=x.device)
        target = torch.exp(-(t**2) / 2)
        weights = torch.full_like(t, 2 * 3 / 16)
        weights[[0, -1]] /= 2
        directions = torch.randn(x.shape[1], self.slices, device=x.device)
        phase = (x @ (directions / directions.norm(dim=0))).unsqueeze(-1) * t
        error = (phase.cos().mean(0) - target) ** 2 + phase.sin().mean(0) ** 2
        return (len(x) * error @ (weights * target)).mean()


def peer(slices: int, device: str) -> tuple[nn.Module, str]:
    try:
        from stable_pretraining.methods.lejepa import SlicedEppsPulley  # type: ignore[import-not-found]
    except ImportError:
        return WrittenOut(slices).to(device), "the plain form"
    version = metadata.version("stable-pretraining")
    return SlicedEppsPulley(num_slices=slices).to(device), f"stable-pretraining {version}"


def step_of(name: str, device: str) -> tuple[Callable[[], None], str]:
    """Return a forward and backward pass of `ours`, `peer` or `floor` at the device's sizes, and its name."""
    samples, width, slices = SIZES[device]
    z = torch.randn(samples, width, device=device, generator=torch.Generator(device).manual_seed(0))
    z.requires_grad_()
    if name == "floor":
        directions = SIGReg(slices).directions(width, 0).to(device)
        projections = torch.randn(samples, slices, device=device)
        result = torch.empty_like(projections)

        def floor() -> None:
            z.detach() @ directions
            result.copy_(projections)
            projections @ directions.T

        return floor, "floor"
    if name == "ours":
        sigreg = SIGReg(slices, implementation="compiled" if device == "cpu" else "auto")
        label = "isotorus"
    else:
        module, label = peer(slices, device)

    def loss() -> Tensor:
        return sigreg(z.unsqueeze(0), 0) if name == "ours" else module(z)

    def step() -> None:
        z.grad = None
        loss().backward()

    return step, label


def median_seconds(steps: dict[str, Callable[[], None]], repeats: int, device: str) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 2):
        for name, step in steps.items():
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat >= 2:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def peak_extra_mebibytes(name: str, device: str) -> float:
    step, _ = step_of(name, device)
    for _ in range(2):
        step()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    step()
    return (resident("VmHWM") - before) / 2**10


def resident(field: str) -> float:
    """Return a field of /proc/self/status, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return float(line.split()[1])
    raise RuntimeError(f"this kernel does not report {field}")


def in_own_process(name: str, arguments: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--memory", name, "--device", arguments.device]
    command += ["--threads", str(arguments.threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def show_growth(repeats: int, threads: int) -> None:
    """Print a row for each size in `GROWTH`: the median CPU time of a forward and backward pass."""
    for samples, width in GROWTH:
        z = torch.randn(1, samples, width, generator=torch.Generator().manual_seed(0)).requires_grad_()
        sigreg = SIGReg(1024, implementation="compiled")
        taken = []
        for repeat in range(repeats + 2):
            z.grad = None
            start = time.process_time()
            sigreg(z, 0).backward()
            if repeat >= 2:
                taken.append(time.process_time() - start)
        print(
            f"| {machine('cpu', threads)} | torch {torch.__version__} | {samples} | {width} | 1024"
            f" | {1e3 * statistics.median(taken):.1f}"
            f" | `python benchmarks/sigreg.py --growth --threads {threads}` |",
            flush=True,
        )


def machine(device: str, threads: int) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpu = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if "model name" in line]
    return f"{models[0] if models else platform.machine()}, {threads} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=SIZES, default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=15, help="timed steps of each")
    parser.add_argument("--growth", action="store_true", help="measure how CPU time grows with the sizes")
    parser.add_argument("--memory", choices=["ours", "peer"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        print(peak_extra_mebibytes(arguments.memory, arguments.device))
        return

    if arguments.growth:
        show_growth(arguments.repeats, arguments.threads)
        return
    steps, labels = {}, {}
    for name in ("peer", "ours", "floor"):
        steps[name], labels[name] = step_of(name, arguments.device)
    seconds = median_seconds(steps, arguments.repeats, arguments.device)
    memory = {name: in_own_process(name, arguments) for name in ("peer", "ours")}
    samples, width, slices = SIZES[arguments.device]
    print(
        f"| {machine(arguments.device, arguments.threads)} | Python {platform.python_version()},"
        f" torch {torch.__version__}, {labels['peer']} | N={samples} K={width} M={slices} knots=17 float32"
        f" | {1e3 * seconds['peer']:.1f} | {1e3 * seconds['ours']:.1f}"
        f" | **{seconds['peer'] / seconds['ours']:.1f}×** | {memory['peer']:.0f} | {memory['ours']:.0f}"
        f" | **1/{memory['peer'] / memory['ours']:.0f}** | {100 * seconds['floor'] / seconds['ours']:.0f} %"
        f" | `python {os.path.relpath(__file__)} --device {arguments.device}` |"
    )


if __name__ == "__main__":
    main()
