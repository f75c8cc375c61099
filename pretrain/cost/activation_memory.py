"""Measure the memory that a step needs besides the model's state, on tensors with shapes but no bytes.

The encoder runs forward and backward on fake tensors, with its precision, activation checkpointing and
micro-batch, while every storage is followed from its creation to its end. So nothing about timm and autograd
is written down here that could become wrong.
"""

import functools
import json
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.cost.by_depth import by_depth
from pretrain.cost.remembered import remembered
from pretrain.engines.blocks import blocks, checkpoint_blocks
from pretrain.engines.config import EngineConfig, reduces_by_size
from pretrain.engines.networks import unfuse_attention
from pretrain.methods import blank_embeddings, build_head, inputs_beside
from pretrain.methods.config import ONE_CELL, Grid, ObjectiveConfig, Turned
from pretrain.models.encoder import ViewEncoder, create_on_meta
from pretrain.objectives.sigreg import SIGReg

CAST = torch.ops.aten._to_copy.default
DEVICE = torch.ops.prim.device.default
"""Operation by which torch asks a fake tensor for its device. It is the most frequent one, so it is answered
first."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages created inside this mode: alive now, and at each phase's peak.

    Storages that existed before have to be named, as views of them are not new.
    """

    def __init__(self, there_before: Iterable[Tensor]) -> None:
        """Start counting; the storages of the tensors `there_before` are left out."""
        super().__init__()
        self.label = self.phase = ""
        # Storages created from now on are counted under `label`, but copies of parameters as "weight copies".
        self.alive: Counter[str] = Counter()
        self.peaks: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._known = {tensor.untyped_storage()._cdata: ("", 0) for tensor in there_before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DEVICE:
            return args[0].fake_device
        result = func(*args, **(kwargs or {}))
        copied = func is CAST and isinstance(args[0], nn.Parameter)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage(), "weight copies" if copied else self.label)
        if self.alive.total() > self.peaks[self.phase].total():
            self.peaks[self.phase] = self.alive.copy()
        return result

    def begin(self, phase: str) -> None:
        """Begin another phase, with a peak of its own."""
        self.phase = phase

    def relabel(self, tensor: Tensor, label: str) -> None:
        """Count a tensor that was created inside under another label from now on."""
        key = tensor.untyped_storage()._cdata
        old, size = self._known[key]
        self._known[key] = label, size
        self.alive[old] -= size
        self.alive[label] += size

    def _follow(self, storage: torch.UntypedStorage, label: str) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known[key] = label, storage.nbytes()
            self.alive[label] += storage.nbytes()
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        label, size = self._known.pop(key)
        self.alive[label] -= size


def encoder_footprint(
    name: str,
    kwargs: dict[str, Any],
    views: list[tuple[int, int]],
    channels: int,
    images: int,
    engine: EngineConfig,
    device: str,
    bf16: bool,
    gradients_made: float,
    kept_whole: float = 0.0,
    buffers: tuple[float, float] = (0.0, 0.0),
) -> dict[str, float]:
    """Return the bytes at the peak of an encoder's forward and backward pass on a micro-batch, by part.

    `views` are (views, size in pixels) for each size; the micro-batch has `images` images. Parts:
    activations; weight copies, i.e. autocast's casts to bf16; workspace of the backward pass, with what it
    recomputes and gradients that wait for those of another view; gradients, of which the share
    `gradients_made` is made during the backward pass and stays on this rank; and gathered. The part gathered
    has the parameters of all blocks whose gradients are not made yet; `kept_whole` is the number of bytes of
    all blocks. It also has the communication buffers. `buffers` states the bytes of those that gather, which
    count in the forward pass, and of those that reduce, which count in the backward pass and have at most
    twice the bytes of the gradients made. `device` is "cuda" or "cpu".
    """
    setting = _Setting(
        views=tuple(views),
        channels=channels,
        images=images,
        checkpointing=engine.activation_checkpointing,
        accumulated=engine.accumulation > 1,
        device=device,
        bf16=bf16,
        gathered_in_bf16=bf16 and gathers_in_bf16(engine),
        keep_gradients=gradients_made > 0,
        # On GPUs packed attention is one call with the memory of the calls for each size, which are measured.
        packed=engine.packed is True and device == "cpu",
        size_by_size=reduces_by_size(engine) or (engine.packed is True and device == "cuda"),
    )
    phases = defaultdict[str, dict[str, float]](dict)
    for key, size in _measure_encoder(name, json.dumps(kwargs), setting).items():
        phase, part = key
        phases[phase][part] = size
    all_made = max((parts.get("gradients", 0.0) for parts in phases.values()), default=0.0)
    for phase, parts in phases.items():
        gradients = parts.get("gradients", 0.0)
        parts["gathered"] = kept_whole * (1 - gradients / all_made if all_made else 1.0)
        parts["gathered"] += buffers[0] if phase == "forward" else min(buffers[1], 2 * gradients)
        parts["gradients"] = gradients * gradients_made
    return max(phases.values(), key=lambda parts: sum(parts.values()))


def gathers_in_bf16(engine: EngineConfig) -> bool:
    """Return whether the engine gathers matrices in bf16, in a bf16 run; otherwise autocast casts them."""
    return engine.kind == "fsdp" and hasattr(MixedPrecisionPolicy, "param_dtype_override_fn")


class _Setting(NamedTuple):
    """Everything besides the encoder that the memory of a pass depends on."""

    views: tuple[tuple[int, int], ...]
    channels: int
    images: int
    checkpointing: Literal["none", "selective", "full"]
    accumulated: bool
    device: str
    bf16: bool
    gathered_in_bf16: bool
    keep_gradients: bool
    packed: bool
    size_by_size: bool
    """Whether views of each size go backward in a pass of their own, as in `pretrain.engines.fsdp`."""


@remembered
def _measure_encoder(name: str, kwargs: str, setting: _Setting) -> dict[tuple[str, str], float]:
    """Measure bytes by (phase, part); `kwargs` is JSON, so that results can be cached."""

    def measure(kwargs: dict[str, Any]) -> dict[tuple[str, str], float]:
        timm_model = create_on_meta(name, kwargs)
        if setting.device == "cpu":
            unfuse_attention(timm_model)
        encoder = ViewEncoder(timm_model, setting.packed).train()
        if setting.checkpointing != "none":
            checkpoint_blocks(timm_model, setting.checkpointing)
        with FakeTensorMode(allow_non_fake_inputs=True):
            without_bytes(encoder, setting.gathered_in_bf16)
            return _forward_and_backward(encoder, setting)

    return by_depth(measure, name, json.loads(kwargs))


def without_bytes(network: nn.Module, matrices_in_bf16: bool = False) -> None:
    """Replace parameters and buffers by fake tensors, in place."""
    for module in network.modules():
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = torch.empty(buffer.shape, dtype=buffer.dtype)
        for key, parameter in module._parameters.items():
            if parameter is not None:
                in_bf16 = matrices_in_bf16 and parameter.ndim in (2, 4)
                empty = torch.empty(parameter.shape, dtype=torch.bfloat16 if in_bf16 else parameter.dtype)
                module._parameters[key] = nn.Parameter(empty)


def _forward_and_backward(encoder: ViewEncoder, setting: _Setting) -> dict[tuple[str, str], float]:
    """Do what `step.accumulated_backward` does with one micro-batch; return bytes by phase and part.

    Phases are the forward pass and, for each size of views, the backward passes of the last block, of the
    blocks between, and of the first two. In each phase the peak is linear in the number of blocks.
    """
    pixels = []
    for count, size in setting.views:
        x = torch.empty(count, setting.images * (1 + setting.accumulated), setting.channels, size, size)
        pixels.append(x[:, : setting.images])
    keys = torch.empty(sum(count for count, _ in setting.views), setting.images, dtype=torch.int64)
    with LiveBytes([*encoder.parameters(), *encoder.buffers(), *pixels, keys]) as live:
        for parameter in encoder.parameters():
            # Gradients in buckets or shards that exist all the time are counted elsewhere.
            keep = functools.partial(_keep_gradient, live) if setting.keep_gradients else _drop_gradient
            parameter.register_post_accumulate_grad_hook(keep)
        each = blocks(encoder.encoder)
        for place in sorted({0, 1, len(each) - 2, len(each) - 1} & set(range(len(each)))):
            name = {0: "first", 1: "second"}.get(place, f"last but {len(each) - 1 - place}")
            each[place].register_forward_hook(functools.partial(_mark_backward, live, name))
        live.phase, live.label = "forward", "activations"
        # Recomputed blocks must not use casts of an earlier pass in autocast's cache.
        cached = setting.checkpointing != "selective"
        with torch.autocast("cpu", torch.bfloat16, enabled=setting.bf16, cache_enabled=cached):
            if setting.size_by_size:
                keys_of_sizes = keys.split([len(x) for x in pixels])
                passes = [encoder([x], k) for x, k in zip(pixels, keys_of_sizes, strict=True)]
            else:
                passes = [encoder(pixels, keys)]
        live.phase, live.label = "backward", "workspace"
        while passes:
            embeddings = passes.pop()
            embeddings.backward(torch.empty_like(embeddings))
    return {(phase, part): float(x) for phase, parts in live.peaks.items() for part, x in parts.items()}


def _mark_backward(live: LiveBytes, block: str, module: nn.Module, _: Any, output: Any) -> None:
    """Begin a phase when the gradient arrives at this block's output."""
    if isinstance(output, Tensor) and output.requires_grad:
        phase = f"backward from {block} block, {tuple(output.shape)}"
        output.register_hook(lambda _: live.begin(phase))  # a reference to the output would keep it alive


def _keep_gradient(live: LiveBytes, parameter: Tensor) -> None:
    """Count a gradient as such."""
    assert parameter.grad is not None
    live.relabel(parameter.grad, "gradients")


def _drop_gradient(parameter: Tensor) -> None:
    """Free a gradient that is counted elsewhere."""
    parameter.grad = None


@remembered
def head_footprint(
    objective: str,
    width: int,
    n_global: int,
    views: int,
    images: int,
    bf16: bool,
    turned: Turned | None = None,
    grid: Grid = ONE_CELL,
) -> dict[str, float]:
    """Return the bytes at the peak of the head's forward and backward pass on a rank's images, by part.

    The parts are the MLPs and the regularizer; `objective` is the configuration in JSON. The head runs on
    tensors without bytes, so its computation must not depend on values.
    """
    config: ObjectiveConfig = TypeAdapter(ObjectiveConfig).validate_json(objective)
    with FakeTensorMode(allow_non_fake_inputs=True):
        return _head_forward_and_backward(config, width, n_global, views, images, bf16, turned, grid)


def _head_forward_and_backward(
    config: ObjectiveConfig,
    width: int,
    n_global: int,
    views: int,
    images: int,
    bf16: bool,
    turned: Turned | None,
    grid: Grid,
) -> dict[str, float]:
    head = build_head(config, width, n_global, 0, turned)
    for module in head.modules():
        if isinstance(module, SIGReg):
            module.implementation = "shapes"
    without_bytes(head)
    for parameter in head.parameters():
        parameter.register_post_accumulate_grad_hook(_drop_gradient)
    beside = inputs_beside(config, n_global, views, images, turned, grid)
    embeddings = torch.randn_like(blank_embeddings(config, views, images, width, grid)).requires_grad_()
    inputs = [embeddings, *(torch.randn_like(x) if x.is_floating_point() else x for x in beside)]
    through_mlps = [0]
    with LiveBytes([*head.parameters(), *head.buffers(), *inputs]) as live:
        for name, module in head.named_modules():
            if name.rpartition(".")[2] in ("projector", "predictor"):
                module.register_forward_hook(lambda *_: through_mlps.append(live.alive.total()))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = head(inputs[0], 0, *inputs[1:])
        output.parts["loss"].backward()
    mlps = max(through_mlps)
    return {"projector": float(mlps), "regularizer": float(live.peaks[""].total() - mlps)}
