"""Stochastic depth whose masks are a function of (seed, step, sample, view, layer).

timm draws them from the generator's state, so they would change with ranks and micro-batches, and a
replayed micro-batch would not be the one that was measured.
"""

import timm.layers
import torch
from torch import Tensor, nn


class KeyedDropPath(nn.Module):
    """Drop a residual branch of whole samples with `probability`, and scale it up to keep its mean.

    Huang et al. 2016, arXiv:1603.09382. `scale`, a factor a sample (N,), or a token (1, T) of samples in one
    sequence, is set before each forward pass by `draw_masks`: a tensor and no key, so that a compiled block
    is one for all layers.
    """

    scale: Tensor | None = None

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.scale is None:
            return x
        assert self.scale.shape == x.shape[: self.scale.ndim]
        return x * self.scale.to(x.dtype).view(*self.scale.shape, *[1] * (x.ndim - self.scale.ndim))


def key_drop_paths(encoder: nn.Module) -> list[KeyedDropPath]:
    """Put keyed modules in the place of a timm model's DropPath modules; returns them."""
    found: list[KeyedDropPath] = []
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, timm.layers.DropPath):
                found.append(KeyedDropPath(child.drop_prob))
                module.register_module(name, found[-1])
    return found


def draw_masks(modules: list[KeyedDropPath], keys: Tensor) -> None:
    """Decide what each module drops in the next forward pass.

    `keys`, int64, are those of the samples (N,), or of each token's sample (1, T) in one sequence.
    """
    if not modules:
        return
    of_layers = len(modules), *[1] * keys.ndim
    probabilities = torch.tensor([module.probability for module in modules]).view(of_layers)
    probabilities = probabilities.to(keys.device, non_blocking=True)
    layers = torch.arange(len(modules), device=keys.device).view(of_layers)
    scales = (uniform(keys, layers) >= probabilities) / (1 - probabilities)
    for module, scale in zip(modules, scales, strict=True):
        module.scale = scale if module.probability else None


def sample_keys(seed: int, step: int, first: int, count: int, views: int) -> Tensor:
    """Keys (views, count) of the batch positions first, first + 1, … in a step."""
    positions = torch.arange(first, first + count, dtype=torch.int64)
    keys = _mix(_mix(positions + _signed(seed * 2**40 % 2**64)) + step)
    return _mix(keys + torch.arange(views)[:, None])


def uniform(keys: Tensor, stream: int | Tensor) -> Tensor:
    """Numbers in [0, 1) from int64 keys, float32, independent between streams (shapes broadcast)."""
    return (_mix(keys + stream) >> 40 & 0xFFFFFF).float() / 2**24


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's step (Steele, Lea & Flood 2014) on int64, whose sums and products wrap on every device."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; int64's own keeps the sign."""
    return x >> bits & (1 << 64 - bits) - 1


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word
