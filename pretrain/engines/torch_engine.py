"""The part that DDP and FSDP have in common: tensors or DTensors, trained by torch's own optimizer."""

from typing import Any

import torch
from torch import Tensor, nn

from pretrain.engines.config import EngineConfig, OptimizerConfig
from pretrain.engines.networks import Networks
from pretrain.engines.optimizer import accepts, build_optimizer, optimizer_state, update
from pretrain.methods.base import HeadOutput


class TorchEngine:
    """An engine (see `pretrain.engines.Engine`) without `no_sync`; subclasses spread the networks."""

    def __init__(
        self,
        networks: Networks,
        encoder: nn.Module,
        head: nn.Module,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        device: torch.device,
    ) -> None:
        """Keep the networks and build the optimizer.

        `encoder` and `head` are those of `networks`, or wrap them.
        """
        self.networks, self.config, self.device = networks, config, device
        self._encoder, self._head = encoder, head
        self.optimizer = build_optimizer(networks.encoder, networks.head, optimizer)
        self.clip_grad = optimizer.clip_grad

    def encode(self, views: list[Tensor], keys: Tensor) -> Tensor:
        with self.networks.arithmetic():
            return self._encoder(views, keys)

    @torch.no_grad()
    def target(self, batches: list[list[Tensor]], keys: list[Tensor]) -> Tensor | None:
        if not self.networks.has_target:
            return None
        with self.networks.arithmetic():
            return self.networks.target(batches, keys)

    def head(self, embeddings: Tensor, step: int, beside: Tensor | None) -> HeadOutput:
        with self.networks.arithmetic():
            return self._head(embeddings, step, *([] if beside is None else [beside]))

    def backward(self, loss: Tensor, gradient: Tensor | None = None) -> None:
        loss.backward(gradient)

    def step(self, lr: float, momentum: float = 1.0, limit: Tensor | None = None) -> Tensor:
        norm = update(self.optimizer, lr, self.clip_grad, limit)
        self.networks.follow(momentum, accepts(norm, limit))
        return norm

    def state(self) -> dict[str, Any]:
        moments = optimizer_state(self.optimizer, self.networks.online_parameters())
        return {"model": self.networks.state_dict(), "optimizer": moments}

    def load(self, state: dict[str, Any]) -> None:
        """Do nothing: the tensors of `state` are the ones that train."""
