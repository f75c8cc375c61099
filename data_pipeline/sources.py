"""The data that a run reads: one packed data set, or several that are mixed by weight."""

import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, field_validator, model_validator

from data_pipeline.dataset import channel_names
from data_pipeline.dataset.channel_names import Placement, placed
from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.pixels import convertible
from data_pipeline.order import Order
from data_pipeline.storage.cache import CacheConfig
from isotorus.errors import UserError, one_line
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
    channels: PositiveInt | Literal["union"] | list[str] = 3
    """Channels of the encoder's input. A number: images with 1 channel (grey) and 3 channels (RGB) are
    converted into each other; any other number must be the number that the images have. union: the channels
    of all sets, found by the names that the sets give them; an image may lack some of these channels, and the
    encoder uses those that it has. A list of names: these channels, for example to add other sets later."""
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

    @field_validator("channels")
    @classmethod
    def _names_that_differ(cls, channels: int | str | list[str]) -> int | str | list[str]:
        """Refuse an empty list, and names that are empty or given twice."""
        if channels == []:
            raise ValueError("an empty list of channels; name them, or give their number")
        return channel_names.checked(channels) if isinstance(channels, list) else channels

    @functools.cached_property
    def channel_names(self) -> list[str] | None:
        """The names of the encoder's channels in their order; None if `channels` is a number.

        With `union` this reads the descriptions of the data sets. Raises `UserError` if a set does not name
        its channels, or if there is only one set.
        """
        if isinstance(self.channels, int):
            return None
        if isinstance(self.channels, list):
            return self.channels
        if len(self.sources) < 2:
            raise UserError(
                "data.channels=union joins the channels of several sets, and the data are one set; name "
                "several in data.sources, or give the number of channels"
            )
        return channel_names.union(self._datasets())

    @property
    def channel_count(self) -> int:
        """The number of the encoder's channels; raises `UserError` as `channel_names` does."""
        if isinstance(self.channels, int):
            return self.channels
        names = self.channel_names
        assert names is not None
        return len(names)

    def _datasets(self) -> list[Dataset]:
        """Open the data sets."""
        sources = self.sources or [SourceConfig(path=str(self.path))]
        return [Dataset(s.path, generation=s.generation, cache=self.cache) for s in sources]

    def open(self) -> "Sources":
        """Open the data sets.

        Raises `UserError` if a data set cannot be opened, if its images cannot be converted to `channels`, or
        if `order` is uniform and the remote data does not fit into the cache.
        """
        datasets, names = self._datasets(), self.channel_names
        for dataset in datasets:
            if names is None and not convertible(dataset.channels, self.channel_count):
                raise UserError(
                    f"data.channels={self.channels}, but the images in {dataset.path} have "
                    f"{dataset.channels}; use data.channels={dataset.channels}"
                )
        if names is not None:
            _refuse_unfit(datasets, names)
        remote_bytes = sum(dataset.description.bytes for dataset in datasets if dataset.remote)
        if self.order == "uniform" and remote_bytes > self.cache.size:
            raise UserError(
                f"data.order=uniform reads {remote_bytes / 1e9:.0f} GB of remote shards in any order, "
                f"many times if data.cache.size={self.cache.size / 1e9:.0f}GB does not hold them; "
                "use data.order=windowed"
            )
        weights = [source.weight for source in self.sources] or [1.0]
        return Sources(datasets, weights, channel_names=names)


def _refuse_unfit(datasets: Sequence[Dataset], names: Sequence[str]) -> None:
    """Raise `UserError` if these data sets cannot be combined by the channels `names`."""
    for dataset in datasets:
        own = channel_names.required(dataset)
        if dataset.depth != datasets[0].depth:
            raise UserError(
                f"{datasets[0].path} has {datasets[0].depth} bits a channel and {dataset.path} has "
                f"{dataset.depth}, so equal numbers would mean different brightness; pack both with one "
                "--intensity, such as percentile:0.5,99.5"
            )
        # A channel that equals its mean everywhere is zero after normalisation, as an absent channel is.
        for name, std in zip(own, dataset.description.moments.std, strict=True):
            if std > 0 or name not in names:
                continue
            raise UserError(
                f"the channel {one_line(name)} of {dataset.path} has one value in all images, which "
                "tells an encoder nothing; leave it out with a list, such as data.channels=[a,b]"
            )


class Sources:
    """Several data sets seen as one: sample indices are concatenated, classes are merged by name.

    With `chosen`, a run visits only some samples, whose indices stay those in the whole sets.
    """

    def __init__(
        self,
        datasets: list[Dataset],
        weights: list[float],
        chosen: list[NDArray[np.int64]] | None = None,
        channel_names: list[str] | None = None,
    ) -> None:
        self.datasets, self.weights, self.chosen = datasets, weights, chosen
        self.channel_names = channel_names
        """The names of the encoder's channels, by which the channels of the images are found; None if the
        encoder has a number of channels without names."""
        self.placements: list[Placement] | None = None
        """For each source, the positions of its channels in the encoder; None without names."""
        if channel_names is not None:
            self.placements = [placed(dataset, channel_names) for dataset in datasets]
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
        chosen = [np.flatnonzero(part) for part in parts]
        return Sources(self.datasets, self.weights, chosen, self.channel_names)

    def sample(self, source: int, number: int) -> int:
        """Return the index in its data set of the sample that is the `number`-th that a run visits."""
        return number if self.chosen is None else int(self.chosen[source][number])

    def label(self, source: int, index: int) -> int:
        """Return the label of a sample of one source as an index into `classes`; -1 if it has none."""
        return int(self.class_numbers[source][self.datasets[source].labels[index]])

    def present(self, sources: Sequence[int]) -> NDArray[np.bool_] | None:
        """Return which of the encoder's channels an image of each of n sources has (n, C); None without
        names.
        """
        if self.placements is None:
            return None
        return np.stack([self.placements[source].present for source in sources])

    def statistics(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of the pixels in each channel, with each source counted by its
        weight.

        The mixture's variance is the weighted mean of (variance + mean²), minus the square of the mixture's
        mean. With names, only the sources that have a channel count for it; a channel that no source has gets
        mean 0 and standard deviation 1.
        """
        if self.placements:
            return self._of_named(channels, self.placements)
        parts = [dataset.statistics(channels) for dataset in self.datasets]
        if len(parts) == 1:
            return parts[0]
        means, stds = (np.array(x) for x in zip(*parts, strict=True))
        shares = np.array(self.weights)[:, None] / sum(self.weights)
        mean = (shares * means).sum(0)
        std = np.sqrt((shares * (stds**2 + means**2)).sum(0) - mean**2)
        return tuple(mean.tolist()), tuple(std.tolist())

    def _of_named(
        self, channels: int, placements: list[Placement]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the `statistics` of channels that have names."""
        shares, means, stds = np.zeros((3, len(self.datasets), channels))
        for row, (dataset, placement) in enumerate(zip(self.datasets, placements, strict=True)):
            for place, *of_channel in zip(placement.places, dataset.mean, dataset.std, strict=True):
                if place >= 0:
                    shares[row, place] = self.weights[row]
                    means[row, place], stds[row, place] = of_channel
        total = shares.sum(0)
        shares /= np.where(total > 0, total, 1)
        mean = (shares * means).sum(0)
        # The variance within the sets plus the variance between them: unlike the formula above, this sum
        # loses no digits to cancellation.
        variance = (shares * (stds**2 + (means - mean) ** 2)).sum(0)
        std = np.where(total > 0, np.sqrt(variance), 1)
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
