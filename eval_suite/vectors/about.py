"""What a file of vectors says about itself: which encoder made the vectors, of which images, and how."""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.intensity import NONE, Intensity
from data_pipeline.decoders.pixels import PixelRules
from data_pipeline.storage.reader import is_remote
from eval_suite.features.representation import Representation, made_by
from eval_suite.inputs.checkpoints import Checkpoint
from isotorus.section import Section

KEY = "isotorus"
"""Where a file has its `About` as JSON: a key of the Parquet schema's metadata, or an array in .npz."""


class Neighbours(Section):
    """How the nearest rows were found."""

    k: int
    recall: float = 1.0
    """Share of the true neighbours that were found: 1 for an exact search."""


class Anomaly(Section):
    """What anomaly scores were measured against."""

    k: int
    against: str
    """The file of vectors, as an absolute path."""
    identity: str
    """The identity of its vectors."""
    rows: int


class Maps(Section):
    """How the token maps of a store lie in their images."""

    grid: tuple[int, int]
    """Number of rows and columns of tokens."""
    patch: tuple[float, float]
    """Height and width, in pixels of the encoder's image, of the cell that a token stands for."""
    dtype: Literal["float16"] = "float16"


class About(Section):
    """The metadata of a file of vectors, or of a store of token maps."""

    format: Literal[1] = 1
    version: str
    """Version of isotorus."""
    checkpoint: str
    """The weights file, as an absolute path."""
    weights_sha256: str
    encoder: str
    """Name of the timm model."""
    step: int
    shards: str
    """The data set: an absolute path, or a URL."""
    set_fingerprint: str
    feature_set: str
    width: int = Field(ge=1)
    image_size: int = Field(ge=1, le=2**14)
    """Side of the images that the encoder saw, in pixels."""
    channels: int = Field(ge=1)
    """Number of channels that the encoder takes."""
    depth: Literal[8, 16]
    """Bits per channel in the data set."""
    pixel_rules: PixelRules
    """Version of the rules by which the image files became pixels."""
    intensity: Intensity = NONE
    """The rule by which their numbers became brightness."""
    made_by: dict[str, Any]
    """Versions of torch and timm, and the precision."""
    identity: str
    """Hash of everything that the vectors and their rows depend on."""
    rows: int = 0
    left_out: int = 0
    """Number of samples without a row: damaged images, and those whose vectors are not finite."""
    neighbours: Neighbours | None = None
    anomaly: Anomaly | None = None
    maps: Maps | None = None
    """For token maps; `width` is then that of a token."""


def describe(
    checkpoint: Checkpoint,
    dataset: Dataset,
    r: Representation,
    name: str,
    width: int,
    device: torch.device,
    part_rows: int,
    maps: Maps | None = None,
) -> About:
    """Return the description of a file with the feature set `name`, of `width` numbers each; embeds nothing.

    `r` is the representation of the checkpoint with this feature set alone.
    """
    depends = [r.key(device), dataset.fingerprint, name, part_rows]
    return About(
        version=_version(),
        checkpoint=str(checkpoint.weights.absolute()),
        weights_sha256=checkpoint.weights_sha256,
        encoder=checkpoint.encoder.name,
        step=checkpoint.step,
        shards=dataset.path if is_remote(dataset.path) else str(Path(dataset.path).absolute()),
        set_fingerprint=dataset.fingerprint,
        feature_set=name,
        width=width,
        image_size=r.size,
        channels=r.channels,
        depth=dataset.depth,
        pixel_rules=dataset.pixel_rules,
        intensity=dataset.intensity,
        made_by=made_by(device),
        maps=maps,
        identity=hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16],
    )


def _version() -> str:
    try:
        return version("isotorus")
    except PackageNotFoundError:  # run from a clone that is not installed
        return "unknown"
