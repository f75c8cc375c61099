"""Save checkpoints while training goes on: copy the state to the CPU, then write it from another thread.

Each rank copies its shards. Tensors that are equal on all ranks are divided among them, so that each tensor
is copied and written once.
"""

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from pretrain.checkpoint import store
from pretrain.checkpoint.config import CheckpointConfig
from pretrain.distributed import cpu_group, rank, world_size


class Saver:
    """Publishes checkpoints in a folder, one at a time; all ranks make the same calls."""

    def __init__(self, checkpoints: Path, config: CheckpointConfig, step: int) -> None:
        """Continue after the newest checkpoint, that of `step`, or begin at step 0."""
        self.checkpoints, self.config = checkpoints, config
        self.step = step
        """The step of the newest checkpoint, of which not all may be written yet."""
        self.in_use: set[int] = set()
        """Steps whose checkpoints are being read and must not be removed yet."""
        # In effect without timeout: a lost rank breaks connections at once, and a slow disk takes its time.
        self._group = cpu_group(timedelta(days=1))
        self._copies: dict[str, Tensor] = {}
        self._writing: _Writing | None = None

    def save(self, step: int, state: dict[str, Any], description: dict[str, Any]) -> None:
        """Copy `state`, which may change as soon as this returns, and begin to write the copy.

        Waits for the previous save. Raises UserError if that failed, or if this one fails and
        `asynchronous` is false.
        """
        self.wait()
        copied = self._copy(share(state, rank(), world_size()))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        arguments = self.checkpoints, step, copied, description, self.config, self._group, self.in_use
        self._writing, self.step = _Writing(*arguments), step
        self._writing.start()
        if not self.config.asynchronous:
            self.wait()

    @property
    def failed(self) -> bool:
        """Whether `wait` would raise an error, as far as this rank knows."""
        return self._writing is not None and self._writing.error is not None

    def wait(self) -> None:
        """Wait until the last save is on the disk; raises UserError, on all ranks, if it failed."""
        if self._writing is None:
            return
        self._writing.join()
        error, self._writing = self._writing.error, None
        if error is not None:
            raise error

    def _copy(self, state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        copied: dict[str, Any] = {}
        for key, value in state.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict):
                copied[key] = self._copy(value, f"{name}.")
            else:
                copied[key] = self._copy_tensor(name, value) if isinstance(value, Tensor) else value
        return copied

    def _copy_tensor(self, name: str, tensor: Tensor) -> Tensor:
        if isinstance(tensor, DTensor):
            names, context = tensor.__tensor_flatten__()
            inner = {inner: getattr(tensor, inner) for inner in names}
            inner["_local_tensor"] = self._copy_tensor(name, tensor.to_local())
            return DTensor.__tensor_unflatten__(inner, context, tensor.shape, tensor.stride())
        copy = self._copies.get(name)
        if copy is None or (copy.shape, copy.dtype) != (tensor.shape, tensor.dtype):
            copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._copies[name] = copy
        return copy.copy_(tensor.detach(), non_blocking=True)


class _Writing(threading.Thread):
    """The thread of one save; a daemon, so that a run that fails does not wait for it."""

    def __init__(self, checkpoints: Path, step: int, *arguments: Any) -> None:
        super().__init__(name=f"checkpoint of step {step}", daemon=True)
        self.arguments = checkpoints, step, *arguments
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            store.write(*self.arguments)
        except Exception as error:
            self.error = error


def share(state: dict[str, Any], rank: int, world_size: int) -> dict[str, Any]:
    """Return the part of a nested state that one rank writes: its shards, its share of the whole tensors.

    Whole tensors are equal on all ranks, and each rank writes about 1 / `world_size` of their bytes. Rank 0
    writes what is not a tensor.
    """
    total, before = _bytes(state), 0

    def pick(values: dict[str, Any]) -> dict[str, Any]:
        nonlocal before
        picked: dict[str, Any] = {}
        for key, value in values.items():
            if isinstance(value, dict):
                if inner := pick(value):
                    picked[key] = inner
            elif isinstance(value, DTensor):
                picked[key] = value
            elif isinstance(value, Tensor):
                if before * world_size // max(1, total) == rank:
                    picked[key] = value
                before += value.nbytes
            elif rank == 0:
                picked[key] = value
        return picked

    return pick(state)


def _bytes(state: dict[str, Any]) -> int:
    """Count the bytes of a nested state's whole tensors."""
    return sum(
        _bytes(x) if isinstance(x, dict) else x.nbytes
        for x in state.values()
        if isinstance(x, dict) or (isinstance(x, Tensor) and not isinstance(x, DTensor))
    )
