"""The networks that an engine spreads over ranks, their precision, and their first weights."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from pretrain.distributed import rank, world_size
from pretrain.engines.blocks import checkpoint_blocks, compile_blocks
from pretrain.engines.config import EngineConfig
from pretrain.engines.deterministic import Resize
from pretrain.engines.fp8 import convert_to_fp8
from pretrain.models.encoder import ViewEncoder
from pretrain.models.residual_norm import fuse
from pretrain.models.target import Target, average_momentum


class Networks(nn.Module):
    """Encoder, head and what follows them: a target network where the method has one, and an average.

    Names in this module are those of checkpoints, whatever the engine. `forward` runs one part by its name,
    because DeepSpeed's hooks belong to one module.
    """

    average_updates: Tensor
    """Number of accepted updates that the average has followed, where there is one."""

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        with_target: bool,
        config: EngineConfig,
        device: torch.device,
        average: float | None = None,
    ) -> None:
        """Put the networks together; `average` is the momentum of averaged weights, None for none."""
        super().__init__()
        self.deterministic, self.device_type = config.deterministic, device.type
        self.bf16 = uses_bf16(config, device)
        # With selective checkpointing, autocast's cache must not have casts from another pass.
        self.cache_casts = config.activation_checkpointing != "selective"
        self.encoder = ViewEncoder(encoder, config.packed is True)
        self.head = head
        if with_target:
            self.target = Target(self.encoder, head.get_submodule("projector"))
        self.average_momentum = average
        if average is not None:
            self.average = Target(self.encoder, head.get_submodule("projector"))
            self.register_buffer("average_updates", torch.zeros((), dtype=torch.int64))
        self.train()

    @property
    def has_target(self) -> bool:
        """Whether the method has a target network."""
        return "target" in self._modules

    def followers(self) -> list[Target]:
        """Return the target network and the average, as far as there are."""
        return [module for module in self.children() if isinstance(module, Target)]

    def encoders(self) -> list[nn.Module]:
        """Return the trained `ViewEncoder` and those of the followers."""
        return [self.encoder, *(follower.encoder for follower in self.followers())]

    def forward(self, part: str, *inputs: Any) -> Any:
        """Run one part, "encoder", "head" or "target", in the configured precision."""
        with self.arithmetic():
            return self.get_submodule(part)(*inputs)

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Compute in the configured precision inside this context."""
        with (
            torch.autocast(self.device_type, torch.bfloat16, self.bf16, self.cache_casts),
            Resize() if self.deterministic else contextlib.nullcontext(),
        ):
            yield

    def follow(self, momentum: float, accepted: Tensor) -> None:
        """Move the followers towards encoder and projector after an accepted update.

        `momentum` is that of the target; the average's depends on its number of updates.
        """
        online = self.encoder, self.head.get_submodule("projector")
        if self.has_target:
            self.target.follow(*online, momentum, accepted)
        if self.average_momentum is not None:
            slow = average_momentum(self.average_updates, self.average_momentum)
            self.average.follow(*online, slow, accepted)
            self.average_updates += accepted

    def online_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the trained parameters with their names."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)


def build_on_meta(
    built: nn.Module,
    head: nn.Module,
    with_target: bool,
    config: EngineConfig,
    device: torch.device,
    average: float | None = None,
) -> Networks:
    """Build networks whose encoder, on the meta device, has no weights yet, with blocks ready to be sharded.

    The head, which is small, has its weights.
    """
    if device.type == "cpu":
        unfuse_attention(built)
    if config.precision == "fp8":
        convert_to_fp8(built)
    networks = Networks(built, head, with_target, config, device, average)
    zero_3 = config.kind == "deepspeed" and config.zero_stage == 3
    # Under ZeRO-3 a parameter exists only while its own module is called. Fused blocks use some without.
    if device.type == "cuda" and importlib.util.find_spec("triton") and not zero_3:
        fuse(networks.encoders(), device)
    if config.activation_checkpointing != "none":
        checkpoint_blocks(networks.encoder.encoder, config.activation_checkpointing)
    if config.compile:
        for copy in networks.encoders():
            compile_blocks(copy.get_submodule("encoder"))
    return networks


def materialize(networks: Networks, encoder: Callable[[], nn.Module], device: torch.device) -> None:
    """Put networks, whole or sharded, onto `device` with the weights that `encoder()` has on rank 0.

    Tensors are sent one by one, so that no rank but the first ever holds a whole model in addition to its
    part of it.
    """
    copies = networks.encoders()
    for copy in copies:
        copy.to_empty(device=device)
        for tensor in tensors(copy).values():
            if tensor.is_floating_point():
                torch.nn.init.constant_(tensor, torch.nan)
    networks.to(device)
    weights = Weights(encoder)
    for name, *own in zip(tensors(copies[0]), *(tensors(copy).values() for copy in copies), strict=True):
        whole = weights.take(name, own[0], device)
        for tensor in own:
            assign(tensor, whole)
    assert not any(tensor.isnan().any() for copy in copies for tensor in tensors(copy).values())


class Weights:
    """Weights of rank 0, sent to all ranks one by one; rank 0 frees each one after it is sent."""

    def __init__(self, encoder: Callable[[], nn.Module]) -> None:
        self.left = tensors(ViewEncoder(encoder())) if rank() == 0 else {}

    def take(self, name: str, like: Tensor, device: torch.device) -> Tensor:
        """Return the whole tensor `name` on every rank; it can be taken once.

        `like` gives its shape and type.
        """
        if rank() == 0:
            own = self.left.pop(name)
            whole = own.detach().to(device, like.dtype)
            own.data = own.data.new_empty(0)
        else:
            whole = torch.empty(like.shape, dtype=like.dtype, device=device)
        if world_size() > 1:
            dist.broadcast(whole, 0)
        return whole


@torch.no_grad()
def assign(tensor: Tensor, whole: Tensor) -> None:
    """Fill a tensor, or this rank's shard of it, from the whole tensor."""
    if isinstance(tensor, DTensor):
        shard = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
        tensor.to_local().copy_(shard.to_local())
    else:
        tensor.copy_(whole)


def tensors(module: nn.Module, recurse: bool = True) -> dict[str, Tensor]:
    """Return parameters and all buffers, including buffers that are not in the state dict."""
    return {
        **dict(module.named_parameters(recurse=recurse)),
        **dict(module.named_buffers(recurse=recurse)),
    }


def computes_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bf16 matrices faster than fp32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = Path("/proc/cpuinfo")
    return flags.exists() and bool({"avx512_bf16", "amx_bf16"} & set(flags.read_text().split()))


def uses_bf16(config: EngineConfig, device: torch.device) -> bool:
    """Return whether networks compute in bf16 on this device."""
    return config.precision in ("bf16", "fp8") or (config.precision == "auto" and computes_bf16(device))


def unfuse_attention(encoder: nn.Module) -> None:
    """Compute attention as two matrix products, in place; on CPUs, the fused kernel is slower for images.

    Training is 1.1 to 1.4 times as fast in fp32 and 1.6 to 2 times in bf16, at 36 to 144 tokens.
    """
    for module in encoder.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
