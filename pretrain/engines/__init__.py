"""Engines: ways to spread one training step over processes.

The training loop sees `Engine` alone; `build_engine` builds the one that `engine.kind` names. It imports what
it needs itself, so that `config.py` can be read without torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from pretrain.engines.config import EngineConfig, OptimizerConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pretrain.engines.networks import Networks
    from pretrain.methods.base import HeadOutput

log = logging.getLogger(__name__)


class Engine(Protocol):
    """What the training step and checkpoints need of an engine.

    All ranks make the same calls in the same order.
    """

    networks: Networks
    """The networks, for their names and settings. Parameters may be sharded."""
    config: EngineConfig
    device: torch.device

    def encode(self, views: list[Tensor], keys: Tensor) -> Tensor:
        """Return float32 embeddings (V, N, D).

        `views` has one (v, N, C, H, W) for each size, `keys` is (V, N).
        """

    def target(self, batches: list[list[Tensor]], keys: list[Tensor]) -> Tensor | None:
        """Return the target's projections (G, N, K) of all global views; None without a target network."""

    def head(self, embeddings: Tensor, step: int, beside: Tensor | None) -> HeadOutput:
        """Return the loss of the global batch, its parts and the projections for embeddings (V, N, D).

        `beside` is the other input that some heads take: the target's projections (G, N, K), or the radians
        (V, N, actions) by which views were turned.
        """

    def backward(self, loss: Tensor, gradient: Tensor | None = None) -> None:
        """Add the gradients of `loss`, averaged over ranks.

        A `loss` that is not a scalar needs its `gradient`.
        """

    def no_sync(self) -> AbstractContextManager[None]:
        """Return the context for every backward pass of a step but the last one."""

    def step(self, lr: float, momentum: float = 1.0, limit: Tensor | None = None) -> Tensor:
        """Clip gradients, update, clear gradients and move target and average; return the gradient norm.

        The norm is that before clipping, a scalar tensor. If it is not finite, or above `limit` (a finite
        scalar on the device), the update is refused on all ranks: parameters, moments, target and average
        stay as they are.
        """

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds: DCP saves it, or loads into it before it is passed to `load`.

        The form is {"model": {name: tensor}, "optimizer": {"state": {name: {"step", "exp_avg",
        "exp_avg_sq"}}}} with the names of `networks`, so that it depends on no engine and no number of ranks.
        Tensors are DTensors, or whole and equal on all ranks. They may be the tensors that train: copy them
        before the next step.
        """

    def load(self, state: dict[str, Any]) -> None:
        """Continue from the values that were loaded into the tensors of `state()`."""


def build_engine(
    encoder: Callable[[], nn.Module],
    head: nn.Module,
    config: EngineConfig,
    optimizer: OptimizerConfig,
    device: torch.device,
    with_target: bool = False,
    average: float | None = None,
) -> Engine:
    """Build the engine that `config` names, with the weights of `encoder()` and `head` on all ranks.

    `encoder` builds a timm model; every rank calls it on the meta device, and rank 0 alone for its weights.
    `head` is whole on every rank, and `average` is the momentum of averaged weights, where there are to be
    some. The order is: meta device, settings that are `auto`, activation checkpointing, compiled blocks,
    shards, weights. Raises `UserError` for what this machine cannot do.
    """
    import torch

    from pretrain.engines.automatic import decide_here, in_words
    from pretrain.engines.deterministic import be_deterministic
    from pretrain.engines.fp8 import check_fp8
    from pretrain.engines.networks import build_on_meta
    from pretrain.models.float32 import exact_float32

    exact_float32()
    if config.precision == "fp8":
        check_fp8(device)
    with torch.device("meta"):
        built = encoder()
    given, (config, reasons) = config, decide_here(config, built, device)
    if said := in_words(given, config, reasons):
        log.info(", ".join(said))
    if config.deterministic:
        be_deterministic()
    networks = build_on_meta(built, head, with_target, config, device, average)
    if config.kind == "ddp":
        from pretrain.engines.ddp import DDPEngine

        return DDPEngine(networks, encoder, config, optimizer, device)
    if config.kind == "fsdp":
        from pretrain.engines.fsdp import FSDPEngine

        return FSDPEngine(networks, encoder, config, optimizer, device)
    from pretrain.engines.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(networks, encoder, config, optimizer, device)
