"""Tensors on the device that computes, without a wait of the host for it.

A copy from ordinary memory to a GPU makes the host wait until all work that is queued there is done. So what
a training step needs from the host passes through `to_device`, and what never changes is a `constant`.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.cuda import is_available

P = ParamSpec("P")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on `device`; a copy to a GPU goes through page-locked memory, and the host goes on.

    Do not change the tensor afterwards: it may not be copied yet. Convert it to another type on the device,
    because a conversion on the way would make the host wait. A copy to the CPU waits.
    """
    if tensor.device.type == "cpu" != device.type and is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")


def constant(make: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Make a function of hashable arguments keep the tensors that it returns, which nobody may change.

    The function names the device among its arguments, so that a constant is copied there once.
    """
    made: dict[Any, Tensor] = {}

    @functools.wraps(make)
    def kept(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        key = args, tuple(kwargs.items())
        if key not in made:
            # Tensors made in inference mode could not be used in a training step later.
            with torch.inference_mode(False):
                tensor = make(*args, **kwargs)
            if isinstance(tensor, FakeTensor):  # `plan` counts with tensors that have no values
                return tensor
            made[key] = tensor
        return made[key]

    return kept


@constant
def numbers(device: torch.device, *values: float) -> Tensor:
    """Return numbers as a float32 tensor on a device."""
    return to_device(torch.tensor(values, dtype=torch.float32), device)


def without_autocast(device: torch.device) -> torch.autocast:
    """Return a context in which operations keep the types of their inputs."""
    # The meta device, on which sizes are checked, has no autocast of its own.
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)
