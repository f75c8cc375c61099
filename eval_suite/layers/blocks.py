"""What passes through the blocks of an encoder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isotorus.errors import UserError
from pretrain.models.blocks import Block

Observer = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


@dataclass(frozen=True)
class Call:
    """A block as it was called in a forward pass: a map from its first argument to its first output.

    Some blocks take more, such as the size of the feature map that their tokens are, and return that too.
    """

    module: nn.Module
    x: Tensor
    """The first argument."""
    others: tuple[Any, ...]
    named: dict[str, Any]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the first output for another first argument."""
        return first(self.module(x, *self.others, **self.named))


@dataclass
class Observed:
    """Measurements of a block's outputs for n images."""

    vectors: NDArray[np.float64]
    """A vector for each image, (n, d): class token or mean over tokens or pixels, as the encoder does."""
    residual: float | None
    """Mean of ‖f(x) - x‖ / ‖x‖ over the images, for the block f; None if f changes the shape."""
    magnitude: NDArray[np.float64] | None
    """Mean |h| of each unit after a nonlinearity, (units,); None if the block has no nonlinearity."""
    positive: NDArray[np.bool_] | None
    """Whether each unit is above 0 at the middle token or pixel of each image, (n, units)."""


class Places:
    """The layout of an encoder's activations: which axes are tokens or pixels, and which are features."""

    def __init__(self, encoder: Any) -> None:
        self.prefix = int(getattr(encoder, "num_prefix_tokens", 0))
        self.class_token = getattr(encoder, "global_pool", "") == "token" and self.prefix > 0
        self.channels_last = getattr(encoder, "output_fmt", "NCHW") == "NHWC"

    def vector(self, x: Tensor) -> Tensor:
        """Reduce tokens (N, T, d) or feature maps (N, d, H, W) to a vector for each image; keep (N, d)."""
        if x.ndim == 3:
            return x[:, 0] if self.class_token else x[:, self.prefix :].mean(1)
        if x.ndim == 2:
            return x
        return x.mean((1, 2)) if self.channels_last else x.mean((2, 3))

    def middle(self, x: Tensor, channels_last: bool) -> Tensor:
        """Return the features (N, d) at the middle token or pixel."""
        if x.ndim == 3:
            return x[:, self.prefix + (x.shape[1] - self.prefix) // 2]
        if x.ndim == 2:
            return x
        height, width = (1, 2) if channels_last else (2, 3)
        middle = x.select(width, x.shape[width] // 2)
        return middle.select(height, x.shape[height] // 2)


def observe(encoder: nn.Module, blocks: list[Block], batches: Iterator[Tensor]) -> list[Observed]:
    """Run batches of normalised images through the encoder, and return what was observed of each block."""
    places = Places(encoder)
    kept = [_Kept(block, places) for block in blocks]
    with torch.inference_mode(), hooked([(x.block.module, x.see) for x in kept]):
        activations = [(module, x.see_units(last)) for x in kept for module, last in nonlinear(x.block)]
        with hooked(activations):
            for images in batches:
                encoder(images)
    return [x.observed() for x in kept]


@torch.no_grad()
def calls_of(encoder: nn.Module, blocks: list[Block], images: Tensor) -> list[Call]:
    """Return how each block is called for a batch of normalised `images`."""
    seen: dict[nn.Module, Call] = {}

    def see(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], _: Any) -> None:
        seen[module] = Call(module, inputs[0].clone(), inputs[1:], named)

    with hooked([(block.module, see) for block in blocks]):
        encoder(images)
    return [seen[block.module] for block in blocks]


@torch.no_grad()
def measurable(encoder: nn.Module, blocks: list[Block], images: Tensor) -> list[Block]:
    """Return the blocks that are called once in a forward pass and give features of each image.

    `images` are two or more, normalised. Raises UserError if there is no such block.
    """
    calls: dict[nn.Module, list[bool]] = {block.module: [] for block in blocks}

    def see(module: nn.Module, inputs: tuple[Any, ...], _: dict[str, Any], out: Any) -> None:
        out = first(out)
        of_images = isinstance(out, Tensor) and out.ndim in (2, 3, 4) and len(out) == len(images)
        calls[module].append(of_images and bool(inputs) and isinstance(inputs[0], Tensor))

    with hooked([(block.module, see) for block in blocks]):
        encoder(images)
    kept = [block for block in blocks if calls[block.module] == [True]]
    if not kept:
        raise UserError(
            f"{type(encoder).__name__} has no block that maps features of an image to features of the same "
            "image; name checkpoints of a ViT, ConvNeXt, ResNet or the like"
        )
    return kept


def first(out: Any) -> Any:
    """Return a module's output, or the first of several."""
    return out[0] if isinstance(out, tuple | list) and out else out


def nonlinear(block: Block) -> list[tuple[nn.Module, bool]]:
    """Return a block's activation functions, each with whether its output is channels-last (N, H, W, d)."""
    activations = []
    for name, module in block.module.named_modules():
        origin = type(module).__module__
        if not origin.startswith(("torch.nn.modules.activation", "timm.layers.activations")):
            continue
        if isinstance(module, nn.Softmax | nn.MultiheadAttention):
            continue
        parent = block.module.get_submodule(name.rpartition(".")[0])
        activations.append((module, isinstance(getattr(parent, "fc1", None), nn.Linear)))
    return activations


@contextmanager
def hooked(observers: list[tuple[nn.Module, Observer]]) -> Iterator[None]:
    """Within a `with`, call each module's observer with (module, inputs, named inputs, output)."""
    handles: list[RemovableHandle] = []
    try:
        for module, observer in observers:
            handles.append(module.register_forward_hook(observer, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Kept:
    """Collects the observations of one block over batches."""

    def __init__(self, block: Block, places: Places) -> None:
        self.block, self.places = block, places
        self.vectors: list[Tensor] = []
        self.residuals: list[Tensor] = []
        self.units: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def see(self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
        """Keep the vectors and residuals of a batch; the observer of the block itself."""
        x, out = inputs[0], first(out)
        self.vectors.append(self.places.vector(out).double().cpu())
        if x.shape == out.shape:
            change = (out - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1).clamp_min(1e-30)
            self.residuals.append(change.double().cpu())

    def see_units(self, channels_last: bool) -> Observer:
        """Return the observer of an activation function, which keeps sizes and signs of its units."""

        def see(module: nn.Module, _: tuple[Any, ...], __: dict[str, Any], out: Tensor) -> None:
            if out.ndim not in (2, 3, 4):
                return
            features = 1 if out.ndim == 4 and not channels_last else out.ndim - 1
            others = [d for d in range(1, out.ndim) if d != features]
            size = out.abs().mean(others) if others else out.abs()
            positive = self.places.middle(out, channels_last) > 0
            self.units.setdefault(module, []).append((size.sum(0).double().cpu(), positive.cpu()))

        return see

    def observed(self) -> Observed:
        """Combine the batches."""
        vectors = torch.cat(self.vectors).numpy()
        residual = float(torch.cat(self.residuals).mean()) if self.residuals else None
        # Some nonlinearities work on windows of images, or on positions alone: they have no row an image.
        units = [x for x in self.units.values() if sum(len(sign) for _, sign in x) == len(vectors)]
        if not units:
            return Observed(vectors, residual, None, None)
        sizes = [torch.stack([size for size, _ in seen]).sum(0) for seen in units]
        signs = [torch.cat([sign for _, sign in seen]) for seen in units]
        magnitude = torch.cat(sizes).numpy() / len(vectors)
        return Observed(vectors, residual, magnitude, torch.cat(signs, dim=1).numpy())
