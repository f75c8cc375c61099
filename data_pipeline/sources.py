"""What a run is fed with: one packed data set, or several mixed by weight, seen as one."""

import hashlib
import json
from typing import Literal, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.pixels import convertible
from data_pipeline.order import Order
from data_pipeline.storage.cache import CacheConfig
from isotorus.errors import UserError
from isotorus.section import Section


class SourceConfig(Section):
    path: str
    """Folder or URL of a packed data set."""
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Its share of the images is this over the sum of all weights; a small set is repeated more often."""
    generation: PositiveInt | None = None
    """The data set as it was before later `pack --append`s; `info` lists them. Default: the newest."""


class DataConfig(Section):
    """What a run is fed with."""

    path: str | None = None
    """Folder or URL (s3://bucket/set) of the packed data set; or give `sources`."""
    sources: list[SourceConfig] = []
    """Several data sets to be mixed: [{path: a, weight: 3}, {path: b, weight: 1}]."""
    batch_size: PositiveInt = 256
    """Images in the global batch, over all ranks, whose shares are equal to within one image."""
    workers: int = Field(2, ge=0)
    """Processes a rank that decode and crop; 0 does it in the training process."""
    channels: PositiveInt = 3
    """Channels the encoder sees. 1 (greyscale) and 3 (RGB) are converted into each other, any other number
    must be the images' own."""
    order: Literal["uniform", "windowed"] = "uniform"
    """uniform: any image may follow any other, for local disks. windowed: shuffled inside windows of the
    shards, so that reads are long and each rank reads its own part, for object stores and slow disks."""
    max_corrupt: float = Field(1e-3, ge=0, le=1)
    """The run stops when more than this share of the images read is damaged (the first ten are free); till
    then each is replaced by another image and named in corrupt.jsonl."""
    cache: CacheConfig = CacheConfig()

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.path is None) == (not self.sources):
            raise ValueError("give either data.path or data.sources")
        return self

    def open(self) -> "Sources":
        """Raises UserError if a data set is none, or cannot give these channels or this order."""
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
    """Data sets as one: sample indices run through them one after another, classes are told by name."""

    def __init__(self, datasets: list[Dataset], weights: list[float]) -> None:
        self.datasets, self.weights = datasets, weights
        self.sizes = [len(dataset) for dataset in datasets]
        self.starts: list[int] = np.cumsum([0, *self.sizes[:-1]]).tolist()
        """The first index of each source."""
        self.classes = list(dict.fromkeys(name for dataset in datasets for name in dataset.classes))
        self.class_numbers = [
            np.array([*map(self.classes.index, dataset.classes), -1]) for dataset in datasets
        ]
        """For each source, the index into `classes` of each of its own classes (classes + 1,). The last
        entry is -1, so that label -1 (no label) maps to -1."""

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def remote(self) -> bool:
        """Whether any of it comes over a network."""
        return any(dataset.remote for dataset in self.datasets)

    @property
    def depth(self) -> Literal[8, 16]:
        """Bits of a channel: 16 if any of the sets has such images."""
        return 16 if any(dataset.depth == 16 for dataset in self.datasets) else 8

    @property
    def fingerprint(self) -> str:
        """Identifies the data and the weights; that of the data set itself if there is only one."""
        prints = [dataset.fingerprint for dataset in self.datasets]
        if len(prints) == 1:
            return prints[0]
        return hashlib.sha256(json.dumps([prints, self.weights]).encode()).hexdigest()[:16]

    def label(self, source: int, index: int) -> int:
        """Index into `classes` of a sample of one source; -1 if it has no label."""
        return int(self.class_numbers[source][self.datasets[source].labels[index]])

    def statistics(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std a channel of all pixels, each source counted by its weight."""
        parts = [dataset.statistics(channels) for dataset in self.datasets]
        if len(parts) == 1:
            return parts[0]
        means, stds = (np.array(x) for x in zip(*parts, strict=True))
        shares = np.array(self.weights)[:, None] / sum(self.weights)
        mean = (shares * means).sum(0)
        std = np.sqrt((shares * (stds**2 + means**2)).sum(0) - mean**2)
        return tuple(mean.tolist()), tuple(std.tolist())

    def order(self, kind: Literal["uniform", "windowed"], batch_size: int, seed: int) -> Order:
        """Which sample comes when. Raises UserError if a weight is too small."""
        bytes_ = [dataset.description.bytes for dataset in self.datasets]
        return Order(self.sizes, self.weights, seed, kind, batch_size=batch_size, bytes=bytes_)
