"""Stochastic depth whose masks depend on (seed, step, sample, view, layer) alone.

timm draws masks from the generator's state. They would change with the number of ranks and micro-batches, and
a micro-batch that is computed a second time would get other masks than the first time.
"""

import timm.layers
import torch
from torch import Tensor, nn

from isotorus.device import numbers


class KeyedDropPath(nn.Module):
    """Drops a residual branch for whole samples with `probability`, and scales it up for the others.

    Scaling keeps the mean (Huang et al. 2016, arXiv:1603.09382). `draw_masks` sets `scale` before each
    forward pass: a factor for each sample (N,), or for each token (1, T) where samples are packed into one
    sequence. It is a tensor and not a key, so that all layers can share one compiled block.
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
    """Replace a timm model's DropPath modules by keyed ones, in place, and return these."""
    keyed: list[KeyedDropPath] = []
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, timm.layers.DropPath):
                keyed.append(KeyedDropPath(child.drop_prob))
                module.register_module(name, keyed[-1])
    return keyed


def draw_masks(modules: list[KeyedDropPath], keys: Tensor) -> None:
    """Set the masks of all modules for the next forward pass.

    `keys`, int64, are one for each sample (N,), or for each token the key of its sample (1, T).
    """
    if not modules:
        return
    by_layer = len(modules), *[1] * keys.ndim
    probabilities = numbers(keys.device, *(module.probability for module in modules)).view(by_layer)
    layers = torch.arange(len(modules), device=keys.device).view(by_layer)
    scales = (uniform(keys, layers) >= probabilities) / (1 - probabilities)
    for module, scale in zip(modules, scales, strict=True):
        module.scale = scale if module.probability else None


def sample_keys(seed: int, step: int, first: int, count: int, views: int) -> Tensor:
    """Return keys (views, count) for the batch positions first, first + 1, … of a step."""
    positions = torch.arange(first, first + count, dtype=torch.int64)
    keys = _mix(_mix(positions + _signed(seed * 2**40 % 2**64)) + step)
    return _mix(keys + torch.arange(views)[:, None])


def uniform(keys: Tensor, stream: int | Tensor) -> Tensor:
    """Return float32 numbers in [0, 1) that depend on int64 keys and a stream alone; the shapes broadcast."""
    return (_mix(keys + stream) >> 40 & 0xFFFFFF).float() / 2**24


def _mix(x: Tensor) -> Tensor:
    """Apply one step of SplitMix64 to int64, which wraps around on every device.

    Steele, Lea & Flood 2014.
    """
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift to the right and fill with zeros; int64's own shift fills with the sign."""
    return x >> bits & (1 << 64 - bits) - 1


def _signed(word: int) -> int:
    """Return the int64 with the same bits as an unsigned 64-bit word."""
    return word - 2**64 if word >= 2**63 else word
