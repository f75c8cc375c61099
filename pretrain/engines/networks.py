"""What an engine spreads over ranks: the networks, their arithmetic, and their first weights."""

import contextlib
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
from pretrain.models.target import Target


class Networks(nn.Module):
    """Encoder, head and, where the method has one, the target network.

    Names in here are those of the checkpoint, whatever the engine. `forward` runs one of the parts by
    name, as DeepSpeed's hooks hang on one module.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        with_target: bool,
        config: EngineConfig,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.deterministic, self.device_type = config.deterministic, device.type
        self.bf16 = uses_bf16(config, device)
        # What is recomputed must not find casts that another pass left in autocast's cache.
        self.cache_casts = config.activation_checkpointing != "selective"
        self.encoder = ViewEncoder(encoder, config.packed)
        self.head = head
        if with_target:
            self.target = Target(self.encoder, head.get_submodule("projector"))
        self.train()

    @property
    def has_target(self) -> bool:
        return "target" in self._modules

    def encoders(self) -> list[nn.Module]:
        """The trained `ViewEncoder` and, where there is one, the target's."""
        return [self.encoder, self.target.encoder] if self.has_target else [self.encoder]

    def forward(self, part: str, *inputs: Any) -> Any:
        with self.arithmetic():
            return self.get_submodule(part)(*inputs)

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Within it, the networks are computed as the configuration asks."""
        with (
            torch.autocast(self.device_type, torch.bfloat16, self.bf16, self.cache_casts),
            Resize() if self.deterministic else contextlib.nullcontext(),
        ):
            yield

    def follow(self, momentum: float, accepted: Tensor) -> None:
        """Move the target, if there is one, towards encoder and projector after an accepted update."""
        if self.has_target:
            self.target.follow(self.encoder, self.head.get_submodule("projector"), momentum, accepted)

    def online_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained, by name."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)


def build_on_meta(
    encoder: Callable[[], nn.Module],
    head: nn.Module,
    with_target: bool,
    config: EngineConfig,
    device: torch.device,
) -> Networks:
    """Networks whose encoder has no weights yet (the small head has), its blocks ready to be sharded."""
    with torch.device("meta"):
        built = encoder()
    if device.type == "cpu":
        unfuse_attention(built)
    if config.precision == "fp8":
        convert_to_fp8(built)
    networks = Networks(built, head, with_target, config, device)
    if config.activation_checkpointing != "none":
        checkpoint_blocks(networks.encoder.encoder, config.activation_checkpointing)
    if config.compile:
        for copy in networks.encoders():
            compile_blocks(copy.get_submodule("encoder"))
    return networks


def materialize(networks: Networks, encoder: Callable[[], nn.Module], device: torch.device) -> None:
    """Put networks, whole or sharded, onto `device` with the weights that `encoder()` has on rank 0.

    Tensor by tensor, so that no rank but the first ever holds a whole model beside its part of it.
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
    """Rank 0's weights, which it gives away one by one."""

    def __init__(self, encoder: Callable[[], nn.Module]) -> None:
        self.left = tensors(ViewEncoder(encoder())) if rank() == 0 else {}

    def take(self, name: str, like: Tensor, device: torch.device) -> Tensor:
        """The whole tensor `name`, of the shape and type of `like`, on every rank; once for each name."""
        if rank() == 0:
            given = self.left.pop(name)
            whole = given.detach().to(device, like.dtype)
            given.data = given.data.new_empty(0)
        else:
            whole = torch.empty(like.shape, dtype=like.dtype, device=device)
        if world_size() > 1:
            dist.broadcast(whole, 0)
        return whole


@torch.no_grad()
def assign(tensor: Tensor, whole: Tensor) -> None:
    """Fill a tensor, or this rank's shard of it, from the whole of it."""
    if isinstance(tensor, DTensor):
        shard = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
        tensor.to_local().copy_(shard.to_local())
    else:
        tensor.copy_(whole)


def tensors(module: nn.Module, recurse: bool = True) -> dict[str, Tensor]:
    """Parameters and all buffers, those too that are not in the state dict."""
    return {
        **dict(module.named_parameters(recurse=recurse)),
        **dict(module.named_buffers(recurse=recurse)),
    }


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices faster than fp32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = Path("/proc/cpuinfo")
    return flags.exists() and bool({"avx512_bf16", "amx_bf16"} & set(flags.read_text().split()))


def uses_bf16(config: EngineConfig, device: torch.device) -> bool:
    return config.precision in ("bf16", "fp8") or (config.precision == "auto" and computes_bf16(device))


def unfuse_attention(encoder: nn.Module) -> None:
    """Attention as two matrix products: on CPUs faster than the fused kernel at image sizes.

    1.1 to 1.4 times the training speed in fp32 and 1.6 to 2 times in bf16, at 36 to 144 tokens.
    """
    for module in encoder.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
