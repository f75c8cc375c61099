"""Replicas on every rank, gradients averaged in buckets as backward produces them.

An engine is six things, and the train loop knows no more of it: `encode`, `head`, `backward`,
`step`, and `state` / `load` for checkpoints. One process runs the same code without the wrapper.
"""

import contextlib
import warnings
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

from pretrain.distributed import world_size
from pretrain.models.encoder import ViewEncoder
from pretrain.optimizer import OptimizerConfig, build_optimizer


class EngineConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    kind: Literal["ddp"] = "ddp"
    """How the step is spread over processes; ddp: a full replica on each rank."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of encoder and projector; auto is bf16 on GPUs that have it, else fp32. Statistics
    and parameters stay fp32."""
    accumulation: PositiveInt = 1
    """Micro-batches that a rank's share of the batch is cut into, to save memory; loss and gradient
    stay those of the whole batch, at the price of a second forward pass."""


class DDPEngine:
    """`encoder` and `head` are wrapped apart, because with accumulation the head runs once a step."""

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        device: torch.device,
    ) -> None:
        self.timm_model = encoder.to(device)
        modules = {"encoder": ViewEncoder(encoder).to(device), "head": head.to(device)}
        self.optimizer = build_optimizer(modules["encoder"], modules["head"], optimizer)
        self.clip_grad = optimizer.clip_grad
        if world_size() > 1:
            modules = {name: _replicate(module, device) for name, module in modules.items()}
        self.model = nn.ModuleDict(modules).train()
        self.device = device
        self.bf16 = config.precision == "bf16" or (
            config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
        )

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def encode(self, views: list[Tensor]) -> Tensor:
        """Views, one (v, N, C, H, W) for each size, to float32 embeddings (V, N, D)."""
        with self.autocast():
            return self.model["encoder"](views)

    def head(self, embeddings: Tensor, step: int) -> dict[str, Tensor]:
        """Embeddings (V, N, D) to the global batch's loss and its parts."""
        with self.autocast():
            return self.model["head"](embeddings, step)

    def backward(self, loss: Tensor, gradient: Tensor | None = None) -> None:
        """Add to the gradients, averaged over ranks unless within `no_sync`."""
        loss.backward(gradient)

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """Within it, the encoder's gradients stay on this rank."""
        encoder = self.model["encoder"]
        return encoder.no_sync() if isinstance(encoder, DistributedDataParallel) else contextlib.nullcontext()

    def step(self, lr: float) -> Tensor:
        """Clip, update, clear; returns the global gradient norm before clipping, a scalar."""
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

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


def _replicate(module: nn.Module, device: torch.device) -> DistributedDataParallel:
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
