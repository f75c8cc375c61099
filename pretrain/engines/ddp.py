"""Replicas on every rank, gradients averaged in buckets as backward produces them.

An engine is what the train loop sees of it: `encode`, `target`, `head`, `backward` and `no_sync` for
the gradient, `step` for the update, `state` and `load` for checkpoints. One process runs the same
code without the wrapper.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

from pretrain.distributed import world_size
from pretrain.methods.base import HeadOutput
from pretrain.models.encoder import ViewEncoder
from pretrain.models.target import Target
from pretrain.optimizer import OptimizerConfig, build_optimizer


class EngineConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    kind: Literal["ddp"] = "ddp"
    """How the step is spread over processes; ddp: a full replica on each rank."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of encoder and projector; auto is bf16 on GPUs and CPUs that compute in it, else fp32.
    Statistics and parameters stay fp32."""
    accumulation: PositiveInt = 1
    """Micro-batches that a rank's share of the batch is cut into, to save memory."""
    accumulate: Literal["exact", "microbatch"] = "exact"
    """exact: loss and gradient of the whole batch, for a second forward pass (a third more time);
    microbatch: a mean of the micro-batches' losses, another objective for statistics of the batch."""


class DDPEngine:
    """`encoder` and `head` are wrapped apart, because with accumulation the head runs once a step."""

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        device: torch.device,
        with_target: bool = False,
    ) -> None:
        self.config, self.device = config, device
        self.timm_model = encoder
        self.online = nn.ModuleDict({"encoder": ViewEncoder(encoder), "head": head}).to(device)
        self.optimizer = build_optimizer(self.online["encoder"], self.online["head"], optimizer)
        self.clip_grad = optimizer.clip_grad
        self.model = nn.ModuleDict({name: _replicate(m, device) for name, m in self.online.items()})
        self.ema: Target | None = None
        if with_target:
            self.ema = self.model["target"] = Target(*self._followed())
        self.model.train()
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and computes_bf16(device))
        if device.type == "cpu":
            unfuse_attention(encoder)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def encode(self, views: list[Tensor], keys: Tensor) -> Tensor:
        """Views, one (v, N, C, H, W) for each size, and keys (V, N) to float32 embeddings (V, N, D)."""
        with self.autocast():
            return self.model["encoder"](views, keys)

    @torch.no_grad()
    def target(self, batches: list[list[Tensor]], keys: list[Tensor]) -> Tensor | None:
        """The target's projections (G, N, K) of all micro-batches' global views; None without a target."""
        if self.ema is None:
            return None
        with self.autocast():
            pieces = [self.ema.encoder(views, k) for views, k in zip(batches, keys, strict=True)]
            return self.ema.project(torch.cat(pieces, dim=1))

    def head(self, embeddings: Tensor, step: int, target: Tensor | None) -> HeadOutput:
        """Embeddings (V, N, D) to the global batch's loss, its parts and projections."""
        with self.autocast():
            return self.model["head"](embeddings, step, *([] if target is None else [target]))

    def backward(self, loss: Tensor, gradient: Tensor | None = None) -> None:
        """Add to the gradients, averaged over ranks unless within `no_sync`."""
        loss.backward(gradient)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within it, gradients stay on this rank."""
        with contextlib.ExitStack() as stack:
            for module in self.model.values():
                if isinstance(module, DistributedDataParallel):
                    stack.enter_context(module.no_sync())
            yield

    def step(self, lr: float, momentum: float = 1.0) -> Tensor:
        """Clip, update, clear, and move the target; returns the gradient norm before clipping, a scalar.

        A norm that is not finite refuses the update: parameters and moments stay as they are. It is
        the global norm, so all ranks agree without asking each other.
        """
        norm = nn.utils.clip_grad_norm_(self.online.parameters(), self.clip_grad)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # The fused kernels look at this flag on the device, so the host need not wait for the norm.
        self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.follow(*self._followed(), momentum)
        return norm

    def _followed(self) -> tuple[nn.Module, nn.Module]:
        """What the target is an average of: encoder and projector."""
        return self.online["encoder"], self.online["head"].get_submodule("projector")

    def state(self) -> dict[str, Any]:
        """Parameters, buffers and optimizer state under names that no engine or world size is in."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load(self, state: dict[str, Any]) -> None:
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )

    def encoder_state(self) -> dict[str, Tensor]:
        """The timm model's own state dict, whole and on the CPU."""
        return {name: value.detach().cpu() for name, value in self.timm_model.state_dict().items()}


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices faster than fp32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = Path("/proc/cpuinfo")
    return flags.exists() and bool({"avx512_bf16", "amx_bf16"} & set(flags.read_text().split()))


def unfuse_attention(encoder: nn.Module) -> None:
    """Attention as two matrix products: on CPUs faster than the fused kernel at image sizes.

    1.1 to 1.4 times the training speed in fp32 and 1.6 to 2 times in bf16, at 36 to 144 tokens.
    """
    for module in encoder.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]


def _replicate(module: nn.Module, device: torch.device) -> nn.Module:
    if world_size() == 1:
        return module
    with warnings.catch_warnings():
        # Newer torch has another name for broadcast_buffers, which torch 2.11 does not know.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            module,
            device_ids=[device.index] if device.type == "cuda" else None,
            # Buffers are batch-norm statistics of the global batch, equal on all ranks as they are.
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
