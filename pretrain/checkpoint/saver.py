"""Checkpoints without waiting: the state is copied to the CPU at once and written by another thread.

Each rank copies its shards, and of what all ranks hold alike a share of its own: a replica is copied and
written once, by all of them together.
"""

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from pretrain.checkpoint import store
from pretrain.checkpoint.store import CheckpointConfig
from pretrain.distributed import group_of_hosts, rank, world_size


class Saver:
    """Publishes checkpoints in a folder, one at a time; all ranks call it alike."""

    def __init__(self, checkpoints: Path, config: CheckpointConfig, step: int) -> None:
        """`step` is that of the newest checkpoint, or 0."""
        self.checkpoints, self.config = checkpoints, config
        self.step = step
        """Of the newest checkpoint, which may still be on its way."""
        # A rank that is gone breaks it at once; a slow disk may take its time.
        self._group = group_of_hosts(timedelta(days=1))
        self._copies: dict[str, Tensor] = {}
        self._writing: _Writing | None = None

    def save(self, step: int, state: dict[str, Any], description: dict[str, Any]) -> None:
        """Copy `state`, which may change as soon as this returns, and begin to write it.

        Waits for the save before; raises UserError if that failed (or this one, unless asynchronous).
        """
        self.wait()
        copied = self._copy(share(state, rank(), world_size()))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        arguments = self.checkpoints, step, copied, description, self.config, self._group
        self._writing, self.step = _Writing(*arguments), step
        self._writing.start()
        if not self.config.asynchronous:
            self.wait()

    @property
    def failed(self) -> bool:
        """Whether `wait` would raise an error, as far as this rank knows."""
        return self._writing is not None and self._writing.error is not None

    def wait(self) -> None:
        """Until what was saved is on the disk; raises UserError, on all ranks, if it cannot be."""
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
    """One save on its way to the disk; a daemon, so that a run that fails need not wait for it."""

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
    """What one rank writes of a nested state: its shards, and about 1 / `world_size` of the rest's bytes.

    The rest is equal on all ranks; what is no tensor goes to rank 0.
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
    """Of all tensors that are whole."""
    return sum(
        _bytes(x) if isinstance(x, dict) else x.nbytes
        for x in state.values()
        if isinstance(x, dict) or (isinstance(x, Tensor) and not isinstance(x, DTensor))
    )
