"""The target network: an exponential moving average of encoder and projector, without gradient."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pretrain.models.drop_path import KeyedDropPath


class Target(nn.Module):
    """A copy of `encoder` (a `ViewEncoder`) and `projector` that slowly follows them (Grill et al. 2020)."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.projector = copy.deepcopy(projector).requires_grad_(False)
        for module in self.encoder.modules():
            if isinstance(module, KeyedDropPath):
                module.probability = 0.0

    def forward(self, batches: list[list[Tensor]], keys: list[Tensor]) -> Tensor:
        """Return the projections (G, N, K) of the global views of all micro-batches.

        The projector sees the whole batch at once, as its batch norm needs it.
        """
        pieces = [self.encoder(views, k) for views, k in zip(batches, keys, strict=True)]
        return self.projector(torch.cat(pieces, dim=1))

    @torch.no_grad()
    def follow(self, encoder: nn.Module, projector: nn.Module, momentum: float, accepted: Tensor) -> None:
        """Set each parameter to momentum · itself + (1 − momentum) · the online one, and copy the buffers.

        Parameters stay if the update was not `accepted`, a scalar on the device. Where parameters are
        sharded, those of the target are sharded in the same way, and each rank updates its own shards.
        """
        for mine, online in ((self.encoder, encoder), (self.projector, projector)):
            old, new = ([_shard(p) for p in module.parameters()] for module in (mine, online))
            weight = (1 - momentum) * accepted.float()
            torch._foreach_lerp_(old, new, [weight.to(p.device) for p in old])
            for buffer, online_buffer in zip(mine.buffers(), online.buffers(), strict=True):
                buffer.copy_(online_buffer)


def _shard(parameter: nn.Parameter) -> Tensor:
    """Return this rank's part of a parameter: a shard of FSDP or ZeRO-3, or all of it."""
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    return getattr(parameter, "ds_tensor", parameter).detach()


def target_momentum(step: int, steps: int, initial: float) -> float:
    """Return the momentum of a step: it rises from `initial` to 1 at the last step along a cosine.

    Grill et al. 2020, arXiv:2006.07733.
    """
    progress = step / max(1, steps - 1)
    return 1 - (1 - initial) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
