"""Finds what would make the host wait for a GPU, on a machine that has none.

Tensors on torch's meta device stand for those on the GPU: as there, the host knows shapes and types but no
values. Each operation passes through a mode that notes every read of a value and every copy between
host and device that is not from page-locked memory and `non_blocking`.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[2]
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
DEPEND_ON_VALUES = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
}


def _channel_moments(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Return the shapes of `torch.batch_norm_update_stats`, which torch does not know."""
    return x.new_empty(x.shape[1], dtype=torch.float32), x.new_empty(x.shape[1], dtype=torch.float32)


_SHAPES = torch.library.Library("aten", "IMPL", "Meta")
_SHAPES.impl("batch_norm_update_stats", _channel_moments)


def _is_ours(file: Path) -> bool:
    """Return whether a file is the project's and no test; the environment may lie in the checkout too."""
    inside = file.relative_to(ROOT).parts if file.is_relative_to(ROOT) else ("tests",)
    return "tests" not in inside and "site-packages" not in inside


class Waits(TorchDispatchMode):
    """Notes what would wait while it is active; an operation that waits gets made-up values and goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._page_locked: list[Tensor] = []
        self._copied: list[tuple[Tensor, Tensor]] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch a block, in which there seems to be a GPU that needs page-locked memory."""
        with (
            mock.patch("isotorus.device.is_available", lambda: True),
            mock.patch.object(Tensor, "pin_memory", lambda tensor: self._pin(tensor)),
            self,
        ):
            yield

    def _pin(self, tensor: Tensor) -> Tensor:
        if self._is_page_locked(tensor):
            return tensor
        self._page_locked.append(tensor.clone())  # kept, so that no other tensor gets its memory
        return self._page_locked[-1]

    def _is_page_locked(self, tensor: Tensor) -> bool:
        places = {kept.untyped_storage().data_ptr() for kept in self._page_locked}
        return tensor.untyped_storage().data_ptr() in places

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), options: dict[str, Any] | None = None
    ) -> Any:
        options = options or {}
        tensors = [x for x in tree_leaves((arguments, options)) if isinstance(x, Tensor)]
        on_device = [x for x in tensors if x.is_meta]
        if operation in COPIES:
            return self._copy(operation, arguments, options)
        if not on_device:
            return operation(*arguments, **options)
        if operation is aten.lift_fresh.default:  # the end of `torch.tensor`, and of an index in a list
            self.note("tensor made on the host in")
        if operation in DEPEND_ON_VALUES:
            self.note(f"{operation.name()} of")
            return self._made_up(operation, *arguments, **options)
        if operation in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            masks = [x for x in arguments[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
            if masks:
                self.note("boolean index in")
                return arguments[0].flatten() if operation is aten.index.Tensor else arguments[0]
        # An operation takes a number from the host's memory without a copy, but not a tensor.
        if any(x.device.type == "cpu" and x.ndim for x in tensors):
            self.note(f"{operation.name()} with a tensor of the host in")
            arguments, options = torch.utils._pytree.tree_map_only(
                Tensor, lambda x: x.to("meta") if x.ndim else x, (arguments, options)
            )
        return operation(*arguments, **options)

    def _copy(self, operation: Any, arguments: Any, options: dict[str, Any]) -> Any:
        """Do a copy, or make up values for a copy to the host."""
        in_place = operation is aten.copy_.default
        source: Tensor = arguments[1 if in_place else 0]
        target = arguments[0].device if in_place else options.get("device") or source.device
        if source.device.type == target.type:
            return operation(*arguments, **options)
        if source.is_meta:
            self.note("copy to the host in")
            # What came from the host comes back as it was: DDP sends the order of its buckets to the device.
            known = next((host for there, host in reversed(self._copied) if there is source), None)
            values = torch.ones(source.shape, dtype=source.dtype) if known is None else known
            if in_place:
                return operation(arguments[0], values)
            return values.to(options.get("dtype") or source.dtype)
        dtype = arguments[0].dtype if in_place else options.get("dtype") or source.dtype
        non_blocking = arguments[2:3] == (True,) or options.get("non_blocking")
        if not non_blocking:
            self.note("copy that blocks in")
        elif not self._is_page_locked(source):
            self.note("copy from memory that is not page-locked in")
        elif dtype != source.dtype:
            self.note("copy that converts in")
        if in_place:
            self._copied.append((arguments[0], source.clone()))
        return operation(*arguments, **options)

    def _made_up(self, operation: Any, tensor: Tensor, *others: Any, **options: Any) -> Any:
        if operation is aten._local_scalar_dense.default:
            return torch.ones((), dtype=tensor.dtype).item()
        if operation is aten.nonzero.default:
            return torch.empty((1, tensor.ndim), dtype=torch.int64, device="meta")
        if operation in (aten.equal.default, aten.is_nonzero.default):
            return True
        return tensor.flatten()

    def note(self, what: str) -> None:
        """Note an event with the innermost function of the project that it happens in."""
        frames = traceback.extract_stack()
        own = [frame for frame in frames if _is_ours(Path(frame.filename))]
        inner = next((f for f in reversed(own) if not f.filename.endswith("isotorus/device.py")), frames[0])
        self.found.add(f"{what} {Path(inner.filename).stem}.{inner.name}")
