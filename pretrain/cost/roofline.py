"""Predict how long one accelerator computes on a step, from its operations (the roofline model).

The encoder runs forward and backward on tensors with shapes but no bytes, as in
`pretrain.cost.activation_memory`, and every operation is counted: FLOPs of matrix products and of attention,
and the bytes that all others read and write. Each kind has a share of the datasheet's peak that it reaches,
measured for that kind of operation alone and not for training. Within a kernel, arithmetic and traffic are
taken not to overlap.
"""

import json
from collections import defaultdict
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pretrain.cost.activation_memory import DEVICE, without_bytes
from pretrain.cost.by_depth import by_depth
from pretrain.cost.datasheets import Accelerator
from pretrain.cost.remembered import remembered
from pretrain.engines.blocks import checkpoint_blocks
from pretrain.models.encoder import ViewEncoder, create_on_meta

MATRIX = 0.80
"""Share of the peak of large matrix products: 769 to 798 of 989 TFLOP/s for 8192³ in bf16 on an H200."""
COPY = 0.90
"""Share of the memory's bandwidth that a copy reaches: 4.3 of 4.8 TB/s on an H200."""
ATTENTION = {"hopper": 0.35, "older": 0.50}
"""Share of the peak of fused attention. FlashAttention-2 (arXiv:2307.08691) states 50 to 73 % on an A100, of
which the lower end is taken, and FlashAttention-3 (arXiv:2407.08608) 35 % for FlashAttention-2 on an H100."""
LAUNCH = 6e-6
"""Seconds that the host takes to launch a kernel, without CUDA graphs. An assumption."""
FP8_CASTS = 5
"""Bytes moved for each element that is scaled to fp8: read for its largest value, read again, written."""

Operations = dict[tuple[str, str], float]
"""Amounts by phase ("forward", "backward") and kind: "matrix", "linear" (products of blocks that fp8 covers),
"attention", "bytes", "cast", "kernels"."""


class Costs(TorchDispatchMode):
    """Counts FLOPs and bytes of operations.

    With `fused`, the operations between two matrix products are one kernel, as torch.compile makes them: what
    they pass to one another stays on the chip. Otherwise each reads and writes memory.
    """

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.phase, self.fused = "forward", fused
        self.found: dict[tuple[str, str], float] = defaultdict(float)
        self._kernel, self._begun = 0, -1
        self._made: dict[int, int | None] = {}  # the kernel that made a storage; None if it is in memory
        self._read: set[int] = set()  # storages that this kernel has read
        self._kept: list[
            torch.UntypedStorage
        ] = []  # kept alive, so that no new storage gets the address of an old one

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DEVICE:
            return args[0].fake_device
        result = func(*args, **(kwargs or {}))
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        there = {x.untyped_storage()._cdata for x in inputs}
        moves = func._schema.is_mutable or any(x.untyped_storage()._cdata not in there for x in outputs)
        name = func.overloadpacket.__name__
        if not moves or "empty" in name or not outputs:
            return result
        if "scaled_dot_product" in name:
            self._add("attention", _attention_flops(args, "backward" in name))
            self._boundary(inputs, outputs, counted=False)
        elif func.overloadpacket in flop_registry:
            flops = flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
            linear = name in ("mm", "addmm")
            self._add("linear" if linear else "matrix", flops)
            if linear:
                self._add("cast", sum(x.numel() for x in inputs if x.ndim == 2))
            self._boundary(inputs, outputs, counted=True)
        else:
            self._pointwise(inputs, outputs)
        return result

    def _add(self, kind: str, amount: float) -> None:
        self.found[self.phase, kind] += amount

    def _load(self, x: Tensor) -> None:
        """Count the reading of a tensor, and its writing if a fused kernel made it, which was not counted."""
        key, size = self._key(x), _bytes(x)
        if self._made.get(key) is not None:
            self._made[key] = None
            self._add("bytes", size)
        if key not in self._read:
            self._read.add(key)
            self._add("bytes", size)

    def _boundary(self, inputs: list[Tensor], outputs: list[Tensor], counted: bool) -> None:
        """Count a matrix product, or attention, whose own traffic is part of its measured share."""
        before = self.found[self.phase, "bytes"]
        for x in inputs:
            self._load(x)
        if not counted:
            self.found[self.phase, "bytes"] = before
        for x in outputs:
            self._made[self._key(x)] = None
            if counted:
                self._add("bytes", _bytes(x))
        self._next()
        self._add("kernels", 1)

    def _pointwise(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        for x in inputs:
            if self._made.get(self._key(x), -1) != self._kernel:
                self._load(x)
        for x in outputs:
            self._made[self._key(x)] = self._kernel
        if self._begun != self._kernel:
            self._begun = self._kernel
            self._add("kernels", 1)
        if not self.fused:
            self._next()

    def _next(self) -> None:
        self._kernel += 1
        self._read.clear()

    def _key(self, x: Tensor) -> int:
        storage = x.untyped_storage()
        if storage._cdata not in self._made:
            self._kept.append(storage)
            self._made[storage._cdata] = None
        return storage._cdata


def _bytes(x: Tensor) -> int:
    """Return the bytes of a tensor; fewer than its elements need if it is expanded."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def _attention_flops(args: Any, backward: bool) -> float:
    """Return the FLOPs of fused attention: two products in the forward pass, five in the backward pass."""
    query, key = (args[1], args[2]) if backward else (args[0], args[1])
    batch, heads, length, width = query.shape
    width = -(-width // 32) * 32  # FlashAttention pads the width of heads
    return (5 if backward else 2) * 2.0 * batch * heads * length * key.shape[-2] * width


class Pass(NamedTuple):
    """What the operations of a pass through the encoder depend on, besides the encoder."""

    views: tuple[tuple[int, int], ...]
    """(views, size in pixels) for each size."""
    channels: int
    images: int
    """In one micro-batch."""
    checkpointing: Literal["none", "selective", "full"]
    bf16: bool
    fused: bool


@remembered
def encoder_operations(name: str, kwargs: str, setting: Pass) -> Operations:
    """Count the operations of one micro-batch's forward and backward pass; `kwargs` is JSON."""

    def measure(kwargs: dict[str, Any]) -> Operations:
        timm_model = create_on_meta(name, kwargs)
        encoder = ViewEncoder(timm_model).train()
        if setting.checkpointing != "none":
            checkpoint_blocks(timm_model, setting.checkpointing)
        with FakeTensorMode(allow_non_fake_inputs=True):
            without_bytes(encoder)
            return _run(encoder, setting)

    return by_depth(measure, name, json.loads(kwargs), shallow=(1, 2))


def _run(encoder: ViewEncoder, setting: Pass) -> Operations:
    pixels = [
        torch.empty(count, setting.images, setting.channels, size, size) for count, size in setting.views
    ]
    keys = torch.empty(sum(count for count, _ in setting.views), setting.images, dtype=torch.int64)
    for parameter in encoder.parameters():
        parameter.register_post_accumulate_grad_hook(_drop)
    cached = setting.checkpointing != "selective"
    with Costs(setting.fused) as costs:
        with torch.autocast("cpu", torch.bfloat16, enabled=setting.bf16, cache_enabled=cached):
            embeddings = encoder(pixels, keys)
        costs.phase = "backward"
        embeddings.backward(torch.empty_like(embeddings))
    return dict(costs.found)


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def seconds(operations: Operations, phase: str, hardware: Accelerator, precision: str) -> float:
    """Return the seconds of a phase ("forward" or "backward") on an accelerator.

    `precision` is "bf16", "fp32" or "fp8". The host launches kernels while the device computes, so the slower
    one counts.
    """
    amount = {kind: value for (of, kind), value in operations.items() if of == phase}
    peak = hardware.peak("fp32" if precision == "fp32" else "bf16")
    fp8 = precision == "fp8" and hardware.fp8 > 0
    linear = hardware.fp8 if fp8 else peak
    traffic = amount.get("bytes", 0.0) + (FP8_CASTS * amount.get("cast", 0.0) if fp8 else 0.0)
    device = (
        amount.get("matrix", 0.0) / (MATRIX * peak)
        + amount.get("linear", 0.0) / (MATRIX * linear)
        + amount.get("attention", 0.0) / (ATTENTION[hardware.generation] * peak)
        + traffic / (COPY * hardware.bandwidth)
    )
    return max(device, LAUNCH * amount.get("kernels", 0.0))
