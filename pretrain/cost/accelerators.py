"""The accelerator that is meant: one of the table in datasheets.py, or the CPUs of this machine."""

import functools
import os
import time

import torch

from isotorus.errors import UserError
from pretrain.cost.datasheets import KNOWN, Accelerator
from pretrain.engines.config import EngineConfig
from pretrain.engines.networks import uses_bf16


@functools.cache
def accelerator(name: str, processes: int) -> Accelerator:
    """Return an accelerator by its name in the table, or this machine's share for one of `processes` ("cpu").

    The peak of CPUs is measured now. Raises `UserError` for an unknown name.
    """
    if name == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        bf16, fp32 = (measured_peak(dtype) / processes for dtype in (torch.bfloat16, torch.float32))
        return Accelerator("this machine's CPUs", bf16, fp32, memory / processes)
    if name not in KNOWN:
        raise UserError(f"--gpu {name}: must be one of {', '.join([*KNOWN, 'cpu'])}")
    return KNOWN[name]


def detect(device_name: str) -> Accelerator | None:
    """Return the known accelerator that `torch.cuda.get_device_name()` names, or None."""
    words = device_name.lower().replace("-", " ").split()
    return next((known for key, known in KNOWN.items() if set(key.split("-")) <= set(words)), None)


def plans_bf16(engine: EngineConfig, device: str) -> bool:
    """Return whether a planned run computes in bf16; `device` is "cpu", which is this machine, or "cuda"."""
    # All accelerators of the table have bf16, and the machine that plans need not have any.
    return uses_bf16(engine, torch.device("cpu")) if device == "cpu" else engine.precision != "fp32"


def measured_peak(dtype: torch.dtype, size: int = 1024) -> float:
    """Measure FLOP/s of a square matrix product on this machine's CPUs, the best of three."""
    a, b = (torch.ones(size, size, dtype=dtype) for _ in range(2))
    a @ b
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)
