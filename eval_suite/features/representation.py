"""The functions from images to vectors that an evaluation compares: encoders, pixels and descriptors."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_pipeline.dataset.index import Dataset
from data_pipeline.transforms.physical import Square
from eval_suite.features import handmade as descriptors
from eval_suite.features.feature_sets import FeatureSets
from eval_suite.features.images import normalise, unit_range
from eval_suite.inputs.checkpoints import Checkpoint
from isotorus.randomness import generator

FORMAT = 4
"""Version of cached features; it increases when this code computes other features from the same inputs."""
INITIALISATIONS = 0x1517
"""Stream of the random numbers that seed further initialisations of an encoder."""


def made_by(device: torch.device) -> dict[str, Any]:
    """Return what features depend on beside the encoder and the images: versions and precision."""
    precision = "bfloat16" if device.type == "cuda" else "float32"
    versions = {"torch": str(torch.__version__), "timm": timm.__version__}
    return {"format": FORMAT, "precision": precision, **versions}


@dataclass(frozen=True)
class Representation:
    """A function from images (N, C, size, size) to vectors, such as the pretrained encoder."""

    name: str
    build: Callable[[], nn.Module] = field(compare=False)
    """Builds a model that gives vectors by feature set, as `FeatureSets` does. It is built on first use,
    because cached features need no model."""
    described: dict[str, Any]
    """What the model is built from: the encoder's name and arguments, and the projector."""
    weights: str
    """Hash of the model's weights, or the seed that they are drawn from."""
    width: int | None
    """Width of the embedding; None if it follows from the images."""
    sets: tuple[str, ...] | None
    """Feature sets to keep besides the embedding; None keeps all."""
    size: int
    """Side of the images, in pixels."""
    channels: int
    mean: tuple[float, ...]
    """Mean of each channel, with pixels in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation of each channel, with pixels in [0, 1]."""
    square: Square | None = None
    """The square of physical size that is cropped from an image; None for the largest centred square."""
    describe: Callable[[Tensor], dict[str, NDArray[np.float32]]] | None = None
    """Replaces the model: computes the vectors of one image (C, size, size) in the process that decodes
    it."""

    @cached_property
    def model(self) -> nn.Module:
        """The model, in evaluation mode; raises UserError if its weights cannot be loaded."""
        return self.build().eval()

    def key(self, device: torch.device) -> str:
        """Return a hash of everything that the features depend on, except the images."""
        parts: list[Any] = [self.described, self.weights, self.width, self.sets, self.size, self.channels]
        parts += [self.mean, self.std, made_by(device)]
        parts += [self.square] if self.square else []
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def embed(self, images: Tensor) -> dict[str, Tensor]:
        """Return float32 vectors by feature set for uint8 or uint16 images (N, C, size, size)."""
        return self.embed_normalised(normalise(unit_range(images), self.mean, self.std))

    def embed_normalised(self, images: Tensor) -> dict[str, Tensor]:
        """Return float32 vectors by feature set for normalised images; CUDA computes them in bf16."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
            vectors = self.model(images)
        kept = vectors if self.sets is None else ("embedding", *self.sets)
        return {name: x for name, x in vectors.items() if name in kept}


def pretrained(checkpoint: Checkpoint, sets: tuple[str, ...] | None = None) -> Representation:
    """Return the trained encoder, with the projector and the angles if the checkpoint has them."""
    described = checkpoint.encoder.projector

    def build() -> FeatureSets:
        projector = checkpoint.projector()
        angles = described.angles if projector and described else None
        content = checkpoint.content_projector()
        return FeatureSets(checkpoint.pretrained(), projector, angles, checkpoint.pose_width, content)

    return _encoder("pretrained", checkpoint, build, checkpoint.weights_sha256, sets)


def untrained(checkpoint: Checkpoint, sets: tuple[str, ...] | None = None, number: int = 1) -> Representation:
    """Return the same encoder at an initialisation, which shows what the architecture alone gives.

    The first one, called `untrained`, is that of the run; `number` 2 gives `untrained-2`, drawn from another
    seed that depends on the run's, and so on.
    """
    seed = checkpoint.encoder.seed
    if number > 1:
        seed = int(generator(seed, INITIALISATIONS, (0, number, 0, 0)).integers(2**31))
    name = "untrained" if number == 1 else f"untrained-{number}"
    return _encoder(name, checkpoint, lambda: FeatureSets(checkpoint.untrained(seed)), f"seed {seed}", sets)


def pixels(checkpoint: Checkpoint, size: int = 32) -> Representation:
    """Return the images themselves, scaled to `size` × `size` and flattened: a baseline without encoder."""
    channels = checkpoint.encoder.channels
    blank, unit = (0.0,) * channels, (1.0,) * channels
    width = channels * size**2
    return Representation(
        "pixels", lambda: FeatureSets(nn.Flatten()), {}, "none", width, None, size, channels, blank, unit,
        checkpoint.encoder.square,
    )  # fmt: skip


def handmade(checkpoint: Checkpoint, train: Dataset, *, grey: bool) -> Representation:
    """Return the descriptors of `eval_suite.features.handmade`, with histograms that suit `train`.

    `grey` says that the images have one channel, which the encoder may take three times.
    """
    channels = checkpoint.encoder.channels
    mean, std = train.statistics(1 if grey else channels)
    describe = descriptors.Handmade(descriptors.ranges(train.depth, mean, std))
    return Representation(
        name="handmade",
        build=lambda: FeatureSets(nn.Flatten()),
        described={"handmade": asdict(describe), "skimage": version("scikit-image")},
        weights="none",
        width=None,
        sets=None,
        size=descriptors.SIZE,
        channels=channels,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        square=checkpoint.encoder.square,
        describe=describe,
    )


def _encoder(
    name: str,
    checkpoint: Checkpoint,
    build: Callable[[], FeatureSets],
    weights: str,
    sets: tuple[str, ...] | None,
) -> Representation:
    described = checkpoint.encoder
    return Representation(
        name=name,
        build=build,
        described={
            "name": described.name,
            "kwargs": described.kwargs,
            "projector": asdict(described.projector) if described.projector else None,
            "pose_width": checkpoint.pose_width,
            **({"channels": checkpoint.channel_names} if checkpoint.channel_names else {}),
        },
        weights=weights,
        width=described.embedding_width,
        sets=sets,
        size=described.image_size,
        channels=described.channels,
        mean=tuple(described.mean),
        std=tuple(described.std),
        square=described.square,
    )
