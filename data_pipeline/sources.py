"""The data that a run reads: one packed data set, or several that are mixed by weight."""

import hashlib
import json
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.pixels import convertible
from data_pipeline.order import Order
from data_pipeline.storage.cache import CacheConfig
from isotorus.errors import UserError
from isotorus.paths import PathText
from isotorus.section import Section


class SourceConfig(Section):
    """One of several data sets that are mixed."""

    path: PathText
    """Folder or URL of a packed data set."""
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """This weight over the sum of all weights is the share of images taken from this set; a small set with a
    large weight is repeated more often."""
    generation: PositiveInt | None = None
    """Use the data set as it was before later `pack --append` commands; `info` lists the generations.
    Default: the newest."""


class DataConfig(Section):
    """The section `data` of a recipe: which data sets a run reads, and how."""

    path: PathText | None = None
    """Folder or URL (s3://bucket/set) of the packed data set; alternatively give `sources`."""
    sources: list[SourceConfig] = []
    """Several data sets to mix, for example [{path: a, weight: 3}, {path: b, weight: 1}]."""
    batch_size: PositiveInt = 256
    """Images in the global batch, over all ranks; the ranks' shares are equal to within one image."""
    workers: int = Field(2, ge=0, le=1024)
    """Processes of each rank that decode and crop images; 0 does this in the training process."""
    channels: PositiveInt = 3
    """Channels of the encoder's input. Images with 1 channel (grey) and 3 channels (RGB) are converted into
    each other; any other number must be the number that the images have."""
    order: Literal["uniform", "windowed"] = "uniform"
    """uniform: the samples are shuffled freely, for local disks. windowed: the samples are shuffled inside
    windows of the shards, so that reads are long and each rank reads its own part, for object stores and
    slow disks."""
    max_corrupt: float = Field(1e-3, ge=0, le=1)
    """The run stops when more than this share of the images read is damaged, not counting the first ten. Each
    damaged image is replaced by another image and listed in corrupt.jsonl."""
    cache: CacheConfig = CacheConfig()
    """The local cache for remote data."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        """Refuse a section that has both `path` and `sources`, or neither."""
        if (self.path is None) == (not self.sources):
            raise ValueError("give either data.path or data.sources")
        return self

    def open(self) -> "Sources":
        """Open the data sets.

        Raises `UserError` if a data set cannot be opened, if its images cannot be converted to `channels`, or
        if `order` is uniform and the remote data does not fit into the cache.
        """
        sources = self.sources or [SourceConfig(path=str(self.path))]
        datasets = [Dataset(s.path, generation=s.generation, cache=self.cache) for s in sources]
        for dataset in datasets:
            if not convertible(dataset.channels, self.channels):
                raise UserError(
                    f"data.channels={self.channels}, but the images in {dataset.path} have "
                    f"{dataset.channels}; use data.channels={dataset.channels}"
                )
        remote_bytes = sum(dataset.description.bytes for dataset in datasets if dataset.remote)
        if self.order == "uniform" and remote_bytes > self.cache.size:
            raise UserError(
                f"data.order=uniform reads {remote_bytes / 1e9:.0f} GB of remote shards in any order, "
                f"many times if data.cache.size={self.cache.size / 1e9:.0f}GB does not hold them; "
                "use data.order=windowed"
            )
        return Sources(datasets, [source.weight for source in sources])


class Sources:
    """Several data sets seen as one: sample indices are concatenated, classes are merged by name.

    With `chosen`, a run visits only some samples, whose indices stay those in the whole sets.
    """

    def __init__(
        self,
        datasets: list[Dataset],
        weights: list[float],
        chosen: list[NDArray[np.int64]] | None = None,
    ) -> None:
        self.datasets, self.weights, self.chosen = datasets, weights, chosen
        self.sizes = [len(samples) for samples in chosen or datasets]
        """Number of samples of each source that a run visits."""
        self.starts: list[int] = np.cumsum([0, *map(len, datasets[:-1])]).tolist()
        """Index of the first sample of each source."""
        self.classes = list(dict.fromkeys(name for dataset in datasets for name in dataset.classes))
        self.class_numbers = [
            np.array([*map(self.classes.index, dataset.classes), -1]) for dataset in datasets
        ]
        """For each source, the index into `classes` of each of its own classes (classes + 1,). The last entry
        is -1, so that label -1 (no label) maps to -1."""

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def remote(self) -> bool:
        """Whether any of the data sets is read over a network."""
        return any(dataset.remote for dataset in self.datasets)

    @property
    def depth(self) -> Literal[8, 16]:
        """Bits of a channel: 16 if any of the data sets has 16-bit images, else 8."""
        return 16 if any(dataset.depth == 16 for dataset in self.datasets) else 8

    @property
    def fingerprint(self) -> str:
        """A string that identifies the data and the weights; for a single data set its own fingerprint."""
        return mixed_fingerprint([dataset.fingerprint for dataset in self.datasets], self.weights)

    def only(self, wanted: NDArray[np.bool_]) -> "Sources":
        """Return the same data sets of which a run visits only the `wanted` samples (n,), in their order."""
        parts = np.split(wanted, self.starts[1:])
        return Sources(self.datasets, self.weights, [np.flatnonzero(part) for part in parts])

    def sample(self, source: int, number: int) -> int:
        """Return the index in its data set of the sample that is the `number`-th that a run visits."""
        return number if self.chosen is None else int(self.chosen[source][number])

    def label(self, source: int, index: int) -> int:
        """Return the label of a sample of one source as an index into `classes`; -1 if it has none."""
        return int(self.class_numbers[source][self.datasets[source].labels[index]])

    def statistics(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of the pixels in each channel, with each source counted by its
        weight.

        The mixture's variance is the weighted mean of (variance + mean²), minus the square of the mixture's
        mean.
        """
        parts = [dataset.statistics(channels) for dataset in self.datasets]
        if len(parts) == 1:
            return parts[0]
        means, stds = (np.array(x) for x in zip(*parts, strict=True))
        shares = np.array(self.weights)[:, None] / sum(self.weights)
        mean = (shares * means).sum(0)
        std = np.sqrt((shares * (stds**2 + means**2)).sum(0) - mean**2)
        return tuple(mean.tolist()), tuple(std.tolist())

    def order(self, kind: Literal["uniform", "windowed"], batch_size: int, seed: int) -> Order:
        """Return the sample order. Raises `UserError` if a weight is too small."""
        bytes_ = [dataset.description.bytes for dataset in self.datasets]
        return Order(self.sizes, self.weights, seed, kind, batch_size=batch_size, bytes=bytes_)


def mixed_fingerprint(fingerprints: list[str], weights: list[float]) -> str:
    """Return the fingerprint of a mixture of sets; of a single set, its own."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    return hashlib.sha256(json.dumps([fingerprints, weights]).encode()).hexdigest()[:16]
