"""Exponential moving averages of encoder and projector, without gradient: target network and average."""

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pretrain.distributed import own_part
from pretrain.models.drop_path import KeyedDropPath

PIECE = 2**26
"""Elements in a piece of the parameters. Pieces are moved one after another, as each needs its size again."""


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
    def follow(
        self, encoder: nn.Module, projector: nn.Module, momentum: Tensor | float, accepted: Tensor
    ) -> None:
        """Set each parameter to momentum · itself + (1 − momentum) · the online one, and copy the buffers.

        Parameters stay if the update was not `accepted`, a scalar on the device. Where parameters are
        sharded, those of the target are sharded in the same way, and each rank updates its own shards.
        """
        for mine, online in ((self.encoder, encoder), (self.projector, projector)):
            old, new = ([own_part(p) for p in module.parameters()] for module in (mine, online))
            _approach(old, new, (1 - momentum) * accepted.float())
            _copy(list(mine.buffers()), list(online.buffers()))


def _approach(old: list[Tensor], new: list[Tensor], weight: Tensor) -> None:
    """Move each old tensor towards the new one by `weight`, in a few operations for all of them.

    torch's own `_foreach_lerp_` needs one operation for each tensor where the weight is a tensor.
    """
    weight = weight.to(old[0].device)
    for first, last in _pieces([x.numel() for x in old]):
        change = torch._foreach_sub(new[first:last], old[first:last])
        torch._foreach_mul_(change, weight)
        torch._foreach_add_(old[first:last], change)


def _copy(old: list[Tensor], new: list[Tensor]) -> None:
    """Set each old tensor to the new one, with one operation for all of one type."""
    for dtype in dict.fromkeys(x.dtype for x in old):
        chosen = [i for i, x in enumerate(old) if x.dtype == dtype]
        torch._foreach_copy_([old[i] for i in chosen], [new[i] for i in chosen])


def _pieces(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Divide tensors of these sizes into runs (first, last + 1) that end once they have `PIECE` elements."""
    first = elements = 0
    for i, size in enumerate(sizes):
        elements += size
        if elements >= PIECE or i == len(sizes) - 1:
            yield first, i + 1
            first, elements = i + 1, 0


def average_momentum(updates: Tensor, momentum: float) -> Tensor:
    """Return the momentum of the average at its next update, after so many `updates`, a scalar.

    (1 + n) / (10 + n) lets early weights count less, until that is `momentum`: TensorFlow's rule for
    `ExponentialMovingAverage` with `num_updates`.
    """
    return ((1 + updates) / (10 + updates)).clamp(max=momentum)


def target_momentum(step: int, steps: int, initial: float) -> float:
    """Return the momentum of a step: it rises from `initial` to 1 at the last step along a cosine.

    Grill et al. 2020, arXiv:2006.07733.
    """
    progress = step / max(1, steps - 1)
    return 1 - (1 - initial) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
