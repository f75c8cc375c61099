"""The encoder as a graph without Python code, by torch.export: what ONNX, `.pt2` files and MLflow hold.

The graph takes pixels in [0, 1] and normalises them itself, so that nobody can forget it or use another mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from isotorus.errors import UserError
from pretrain.checkpoint.export.trained import Trained
from pretrain.models.encoder import patch_size
from pretrain.models.feature_sets import upsampled

INPUT = "image"
"""Name of the graph's input."""
LARGEST_DIFFERENCE = 1e-4
"""How far vectors of an exported file may be from torch's, relative to the largest number in them. Float32
rounds by 6e-8; sums in another order differ by 1e-6, and a wrong operator by more than 1e-2."""
BATCHES = (1, 3)
"""Sizes of the batches on which an exported file is compared with torch."""


class FromPixels(nn.Module):
    """An encoder that takes pixels in [0, 1], (N, C, H, W) in float32, and returns vectors (N, D).

    After training with labels it returns the outputs of the layer on it, and after training on masks the
    logits of the classes of all pixels (N, classes, H, W).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        masks: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.masks = encoder, head, masks
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        output: Tensor = self.head(self.encoder((image - self.mean) / self.std))
        return upsampled(output, image.shape[2:]) if self.masks else output


@dataclass(frozen=True)
class Graph:
    """A traced encoder, and the encoder itself to compare with."""

    program: ExportedProgram
    model: FromPixels
    channels: int
    sizes: tuple[int, ...]
    """Sides in pixels of the images that it is compared on: the checkpoint's, and others if it takes any."""
    output: str
    """Name of the graph's output: what it gives for an image."""
    multiple: int
    """Every side is a multiple of this number."""

    @property
    def any_size(self) -> bool:
        """Whether the graph takes images of other sizes than the checkpoint's."""
        return len(self.sizes) > 1

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(x.nbytes for x in self.program.state_dict.values())

    @property
    def shape(self) -> list[str | int]:
        """The shape of the input, with names for what may vary."""
        sides: list[str | int] = ["height", "width"] if self.any_size else [self.sizes[0]] * 2
        return ["batch", self.channels, *sides]

    def images(self, size: int, batch: int) -> Tensor:
        """Return images to compare on: a black one, a white one, and random pixels; `batch` of them."""
        generator = torch.Generator().manual_seed(size)
        images = torch.rand(batch, self.channels, size, size, generator=generator)
        images[1:2], images[2:3] = 0.0, 1.0
        return images

    def difference(self, what: str, run: Callable[[Tensor], Tensor]) -> str:
        """Compare a file's vectors with torch's and return in words how far they are apart.

        Raises UserError if that is further than `LARGEST_DIFFERENCE`.
        """
        furthest = largest = 0.0
        for size in self.sizes:
            for batch in BATCHES:
                images = self.images(size, batch)
                expected = self.model(images)
                found = run(images)
                if found.shape != expected.shape:
                    raise UserError(
                        f"{what} gives {tuple(found.shape)} for {tuple(images.shape)}, torch "
                        f"{tuple(expected.shape)}; use --format timm"
                    )
                furthest = max(furthest, (found - expected).abs().max().item())
                largest = max(largest, expected.abs().max().item())
        if not furthest <= LARGEST_DIFFERENCE * largest:
            raise UserError(
                f"{what} differs from torch by {furthest:.2g} in outputs of up to {largest:.2g}, more than "
                f"{LARGEST_DIFFERENCE:g} of them; use --format timm, and report the encoder"
            )
        sides = ", ".join(f"{size}²" for size in self.sizes)
        return (
            f"checked against torch on images of {sides} in batches of {BATCHES[0]} and {BATCHES[-1]}: the "
            f"largest difference is {furthest:.1e} in outputs of up to {largest:.2g}"
        )


def trace(trained: Trained) -> Graph:
    """Trace the encoder, for any batch, and for any image size where it allows that.

    Raises UserError, naming the module, if it cannot be traced.
    """
    described = trained.described
    masks = described.predicts_masks
    model = FromPixels(trained.encoder(), trained.head(), described.mean, described.std, masks).eval()
    size, multiple = described.image_size, patch_size(trained.on_meta)
    step = multiple if multiple > 1 else 5  # an odd size, as halving may depend on it
    for sizes in ((size, size + step, 2 * size), (size,)):
        dynamic = {0: Dim.DYNAMIC} | ({2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if len(sizes) > 1 else {})
        example = torch.rand(2, described.channels, size, size)
        try:
            program = torch.export.export(model, (example,), dynamic_shapes=(dynamic,))
            graph = Graph(program, model, described.channels, sizes, trained.gives, multiple)
            takes = program.module()
            for side in sizes:
                for batch in BATCHES:
                    takes(graph.images(side, batch))
        except Exception as error:  # what cannot be traced fails in many ways
            if len(sizes) > 1:
                continue  # it may be traced for one size
            where = _where(error, model)
            raise UserError(
                f"torch.export cannot trace {described.name}, {where}; use --format timm"
            ) from error
        return graph
    raise AssertionError("the last try either returns or raises")


def _where(error: BaseException, model: nn.Module) -> str:
    """Say in which module an error arose, and what it was."""
    names = {id(module): name for name, module in model.named_modules()}
    inner: Any = None
    step = error.__traceback__
    while step:
        module = step.tb_frame.f_locals.get("self")
        if id(module) in names and module is not model:
            inner = module
        step = step.tb_next
    said = " ".join(str(error).split())[:200]
    if inner is None:
        return f"{type(error).__name__}: {said}"
    return f"in {names[id(inner)].removeprefix('encoder.')} ({type(inner).__name__}): {said}"
