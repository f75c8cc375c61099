"""Ways to spread one train step over processes.

The train loop sees `Engine` alone: `build_engine` makes the one that `engine.kind` names.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pretrain.engines.config import EngineConfig
from pretrain.engines.deterministic import be_deterministic
from pretrain.engines.networks import Networks, build_on_meta
from pretrain.engines.optimizer import OptimizerConfig
from pretrain.methods.base import HeadOutput


class Engine(Protocol):
    """What the train step and the checkpoints ask of an engine; all ranks call all of it alike."""

    networks: Networks
    """For what is not computed in them: names, settings. Parameters may be sharded."""
    config: EngineConfig
    device: torch.device

    def encode(self, views: list[Tensor], keys: Tensor) -> Tensor:
        """Views, one (v, N, C, H, W) for each size, and keys (V, N) to float32 embeddings (V, N, D)."""

    def target(self, batches: list[list[Tensor]], keys: list[Tensor]) -> Tensor | None:
        """The target's projections (G, N, K) of all micro-batches' global views; None without a target."""

    def head(self, embeddings: Tensor, step: int, target: Tensor | None) -> HeadOutput:
        """Embeddings (V, N, D) to the global batch's loss, its parts and projections."""

    def backward(self, loss: Tensor, gradient: Tensor | None = None) -> None:
        """Add to the gradients, averaged over ranks; a `loss` that is no scalar comes with its `gradient`."""

    def no_sync(self) -> AbstractContextManager[None]:
        """Around every backward pass of a step but the last."""

    def step(self, lr: float, momentum: float = 1.0, limit: Tensor | None = None) -> Tensor:
        """Clip, update, clear, and move the target; returns the gradient norm before clipping, a scalar.

        A norm that is not finite, or above `limit` (a finite scalar on the device), refuses the update on all
        ranks: parameters, moments and the target stay as they are.
        """

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, for DCP to save, or to load into and hand to `load`.

        {"model": {name: tensor}, "optimizer": {"state": {name: {"step", "exp_avg", "exp_avg_sq"}}}}, names
        being those of `networks`, so that no engine or world size is in them. Tensors are whole and equal
        on all ranks, or DTensors. They may be the ones that train: copy them before the next step.
        """

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what was loaded into the tensors of `state()`."""


def build_engine(
    encoder: Callable[[], nn.Module],
    head: nn.Module,
    config: EngineConfig,
    optimizer: OptimizerConfig,
    device: torch.device,
    with_target: bool = False,
) -> Engine:
    """The engine that the configuration names, with the weights of `encoder()` and `head` on all ranks.

    `encoder` builds a timm model. It is called on the meta device by every rank and for its weights by
    rank 0 alone. `head` is whole on every rank. The order is: meta, activation checkpointing, compiled
    blocks, shards, weights.
    """
    if config.deterministic:
        be_deterministic()
    networks = build_on_meta(encoder, head, with_target, config, device)
    if config.kind == "ddp":
        from pretrain.engines.ddp import DDPEngine

        return DDPEngine(networks, encoder, config, optimizer, device)
    if config.kind == "fsdp":
        from pretrain.engines.fsdp import FSDPEngine

        return FSDPEngine(networks, encoder, config, optimizer, device)
    from pretrain.engines.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(networks, encoder, config, optimizer, device)
