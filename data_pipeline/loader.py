"""A rank's batches, as a pure function of (data, configuration, seed, step).

Step t consumes the global positions [t·B, (t+1)·B) of the endless order, rank r of W its contiguous
B/W of them. Workers read, decode once and cut all views as uint8; the photometric parameters travel
beside them and are applied on the training device (`augment.apply`). The whole state is one integer.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from data_pipeline import augment as augmentation
from data_pipeline.augment import AugmentConfig
from data_pipeline.decode import decode
from data_pipeline.errors import UserError
from data_pipeline.index import Dataset
from data_pipeline.order import sample_index
from data_pipeline.views import ViewsConfig, random_view


class DataConfig(BaseModel):
    """What a run is fed with."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    path: Path
    """Folder of the packed data set."""
    batch_size: int = Field(256, ge=1)
    """Images in the global batch, over all ranks; must divide by their number."""
    workers: int = Field(2, ge=0)
    """Processes a rank that decode and crop; 0 does it in the training process."""
    channels: Literal[1, 3] = 3
    """Channels the encoder sees: 1 (greyscale) or 3 (RGB); images are converted."""


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch: b images, v views of each at every resolution."""

    step: int
    indices: NDArray[np.int64]
    """Sample indices in the data set (b,)."""
    epochs: NDArray[np.int64]
    """The epoch that each sample is seen in (b,)."""
    labels: Tensor
    """Class indices, int64 (b,); -1 where there is none."""
    views: list[Tensor]
    """uint8 (v, b, C, H, W) a resolution: the global views, then the local ones if there are any."""
    parameters: list[Tensor]
    """float32 (v, b, P) beside the views, for `augment.apply`; stay on the CPU."""

    def pin_memory(self) -> "Batch":
        return replace(self, labels=self.labels.pin_memory(), views=[v.pin_memory() for v in self.views])

    def to(self, device: torch.device) -> "Batch":
        return replace(
            self,
            labels=self.labels.to(device, non_blocking=True),
            views=[v.to(device, non_blocking=True) for v in self.views],
        )


@dataclass(frozen=True)
class _Batches(TorchDataset[Batch | UserError]):
    """Item t is step t's batch: what a worker process does."""

    dataset: Dataset
    batch_size: int
    views: ViewsConfig
    augment: AugmentConfig
    channels: int
    seed: int
    rank: int
    world_size: int

    def __getitem__(self, step: int) -> Batch | UserError:
        try:
            return self._batch(step)
        except UserError as error:  # as a value: an exception would arrive wrapped in a worker's traceback
            return error

    def _batch(self, step: int) -> Batch:
        share = self.batch_size // self.world_size
        positions = step * self.batch_size + self.rank * share + np.arange(share, dtype=np.int64)
        indices = sample_index(positions, len(self.dataset), self.seed)
        epochs = positions // len(self.dataset)

        resolutions = self.views.resolutions()
        flips = (self.augment.horizontal_flip, self.augment.vertical_flip)
        views = [
            torch.empty((r.views, share, self.channels, r.size, r.size), dtype=torch.uint8)
            for r in resolutions
        ]
        parameters = [torch.empty((r.views, share, len(augmentation.PARAMETERS))) for r in resolutions]
        for place, (index, epoch) in enumerate(zip(indices.tolist(), epochs.tolist(), strict=True)):
            image = self._image(index)
            for number, resolution in enumerate(resolutions):
                for view in range(resolution.views):
                    rng = _generator(self.seed, epoch, index, number, view)
                    pixels = random_view(rng, image, resolution, self.views.ratio, flips)
                    views[number][view, place] = pixels
                    parameters[number][view, place] = torch.from_numpy(augmentation.draw(rng, self.augment))
        labels = torch.from_numpy(self.dataset.labels[indices].astype(np.int64))
        return Batch(step, indices, epochs, labels, views, parameters)

    def _image(self, index: int) -> NDArray[np.uint8]:
        try:
            return decode(self.dataset.read(index), self.channels)
        except ValueError as error:
            name = f"sample {index} ({self.dataset.key(index)}) of {self.dataset.path}"
            raise UserError(f"{name} cannot be decoded: {error}; pack the images again") from None


def _generator(seed: int, epoch: int, index: int, resolution: int, view: int) -> np.random.Generator:
    """A view's own stream of random numbers, addressed rather than advanced to."""
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)  # a list would go through floats
    return np.random.Generator(np.random.Philox(key=key, counter=[0, view, resolution, index]))


class Loader:
    """Endless batches of this rank from `start_step` on; the pixels do not depend on ranks or workers.

    `batch_size` is the global one. Raises `UserError` if it does not divide by `world_size`, and
    while iterating if a sample no longer has the packed bytes.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        views: ViewsConfig,
        augment: AugmentConfig,
        channels: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        workers: int = 0,
    ) -> None:
        if batch_size % world_size:
            lower = batch_size // world_size * world_size
            near = f"{lower} or {lower + world_size}" if lower else str(world_size)
            raise UserError(
                f"a global batch of {batch_size} does not divide by {world_size} ranks; use {near}"
            )
        self._batches = _Batches(dataset, batch_size, views, augment, channels, seed, rank, world_size)
        self._workers = workers
        self._next_step = start_step

    @property
    def state(self) -> int:
        """The next step to be consumed: `start_step` of a loader that carries on from here."""
        return self._next_step

    def __iter__(self) -> Iterator[Batch]:
        steps = DataLoader(
            self._batches,
            batch_size=None,
            sampler=range(self._next_step, 2**62),
            num_workers=self._workers,
            worker_init_fn=_ignore_signals,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own, so that the process's generator is left alone
        )
        for batch in steps:
            if isinstance(batch, UserError):
                raise batch
            self._next_step = batch.step + 1
            yield batch


def _ignore_signals(worker: int) -> None:
    """Only the training process decides when to stop: it still needs batches until all ranks agree."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
