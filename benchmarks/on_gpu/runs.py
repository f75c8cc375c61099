"""What cases share: engines of recipes on the device, batches of random images, and stopwatches."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.on_gpu.report import Report, Setting
from pretrain import assemble
from pretrain.config import Config, load_config
from pretrain.distributed import rank
from pretrain.engines import Engine
from pretrain.engines.step import MicroBatch
from pretrain.methods import takes_actions
from pretrain.methods.config import Turned
from pretrain.models.drop_path import sample_keys
from pretrain.preflight.inputs import RunInputs
from pretrain.preflight.model import check_model

# An encoder and views that take a fraction of a second on a CPU.
TINY = [
    "views.global_size=28",
    "views.local_size=14",
    "views.local_views=2",
    "data.batch_size=4",
    "objective.sigreg.num_slices=32",
    "objective.projector={hidden: 16, layers: 2, width: 8}",
]
TINY_ENCODER = "encoder.kwargs={depth: 2, embed_dim: 32, num_heads: 2, init_values: 0.1}"


def machine(setting: Setting, report: Report) -> None:
    """Say what the cases run on; raises RuntimeError without the device that was asked for."""
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("torch finds no GPU")
    report.note(torch=str(torch.__version__), cuda=torch.version.cuda, threads=torch.get_num_threads())
    if setting.device == "cuda":
        report.note(
            name=torch.cuda.get_device_name(), gib=torch.cuda.get_device_properties(0).total_memory / 2**30
        )


def recipe(setting: Setting, name: str, *overrides: str) -> Config:
    """Return a packaged recipe with overrides, made small for `--tiny`; its data are never read."""
    small = [*TINY, TINY_ENCODER] if setting.tiny else []
    return load_config(name, ["data.path=none", "tracking.enabled=false", *small, *overrides])


def start(setting: Setting) -> torch.device:
    """Join a process group of one and return the device; with `--tiny`, compiled code is traced alone."""
    device = torch.device(setting.device)
    backend = "cpu:gloo,cuda:nccl" if setting.device == "cuda" else "gloo"
    if setting.device == "cuda":
        torch.cuda.set_device(0)
    else:
        torch.set_num_threads(min(2, torch.get_num_threads()))
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if setting.tiny:  # the C++ of the default compiler would take a minute
        torch.compile = functools.partial(torch.compile, backend="aot_eager")  # type: ignore[assignment]
    return device


def engine_of(config: Config, device: torch.device, weights_on: str = "cpu") -> Engine:
    """Build the engine of a recipe, with weights of its seed.

    The weights are drawn on `weights_on`: on a CPU they are equal everywhere, on a GPU they are drawn faster.
    """
    model = check_model(config, 1)
    blank = (0.5,) * config.data.channel_count
    inputs = RunInputs(cast(Any, None), model.kwargs, model.width, blank, blank)
    with torch.device(weights_on):
        return assemble.build_engine(config, inputs, device)


def batch_of(config: Config, device: torch.device, step: int = 0) -> MicroBatch:
    """Return a batch of random images, the same on every device, with the keys of the training loop."""
    generator = torch.Generator().manual_seed(step)
    n, channels = config.data.batch_size, config.data.channel_count
    views = [
        torch.randn(r.views, n, channels, r.size, r.size, generator=generator)
        for r in config.views.resolutions()
    ]
    keys = sample_keys(config.seed, step, rank() * n, n, sum(len(x) for x in views))
    turned, actions = Turned.of(config.views), None
    if turned and takes_actions(config.objective, turned):
        actions = 6 * torch.rand(*keys.shape, len(turned.actions), generator=generator).to(device)
    return MicroBatch([x.to(device) for x in views], keys.to(device), actions)


def wait(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: torch.device, repeats: int, warm_up: int = 2) -> float:
    """Return the median time of `work`, after some runs that are not counted."""
    taken = []
    for repeat in range(warm_up + repeats):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        if repeat >= warm_up:
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def peak_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """Return the most memory that `work` needs beside what is allocated before; None on a CPU."""
    if device.type != "cuda":
        work()
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    wait(device)
    return torch.cuda.max_memory_allocated() - before


def difference(mine: Tensor, truth: Tensor) -> float:
    """Return the length of the difference, as a share of the length of `truth`, in float64."""
    mine, truth = (x.detach().to("cpu", torch.float64) for x in (mine, truth))
    return float((mine - truth).norm() / truth.norm().clamp(min=1e-300))
