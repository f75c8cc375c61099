"""A rank's batches, as a pure function of (data, configuration, seed, step).

Step t consumes the global positions [t·B, (t+1)·B) of the endless order, rank r of W a contiguous share
of them (`order.share`), equal to within one image: what the run sees does not depend on W. Workers read,
decode once and cut all views in the images' own integers; the photometric parameters travel beside them
and are applied on the training device (`augment.apply`). The whole state is one integer.

A damaged sample leaves the others where they are: another one, drawn from (seed, epoch, index), takes
its place in the batch.
"""

import signal
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from data_pipeline.dataset.index import Corrupt
from data_pipeline.order import Order, share
from data_pipeline.sources import Sources
from data_pipeline.transforms import augment as augmentation
from data_pipeline.transforms.augment import PARAMETERS, AugmentConfig
from data_pipeline.transforms.views import Crop, ViewsConfig, cut, draw
from isotorus.errors import UserError
from isotorus.randomness import generator

_CROPS, _PHOTOMETRY, _SUBSTITUTE = range(3)
"""What a sample's random numbers are for."""
_SUBSTITUTES = 100
_PREFETCHED_BATCHES = 8


class Replaced(NamedTuple):
    """A damaged sample, in whose place another was taken."""

    sample: int
    name: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch: b images, v views of each at every resolution."""

    step: int
    indices: NDArray[np.int64]
    """Sample indices in the sources (b,)."""
    epochs: NDArray[np.int64]
    """The epoch of its source that each sample is seen in (b,)."""
    labels: Tensor
    """Class indices, int64 (b,); -1 where there is none."""
    views: list[Tensor]
    """uint8 or uint16 (v, b, C, H, W) a resolution: global views, then the local ones if there are any."""
    parameters: list[Tensor]
    """float32 (v, b, P) beside the views, for `augment.apply`; stay on the CPU."""
    replaced: list[Replaced]
    """Damaged samples that should have been in this batch."""

    def pin_memory(self) -> "Batch":
        return replace(self, labels=self.labels.pin_memory(), views=[v.pin_memory() for v in self.views])

    def to(self, device: torch.device) -> "Batch":
        return replace(
            self,
            labels=self.labels.to(device, non_blocking=True),
            views=[v.to(device, non_blocking=True) for v in self.views],
        )


class Place(NamedTuple):
    """Where a sample is, and the epoch of its source that it is seen in."""

    source: int
    epoch: int
    sample: int


@dataclass(frozen=True)
class _Batches(TorchDataset[Batch | UserError]):
    """Item t is step t's batch: what a worker process does."""

    sources: Sources
    order: Order
    batch_size: int
    views: ViewsConfig
    augment: AugmentConfig
    channels: int
    rank: int
    world_size: int
    ahead: int
    """Steps between fetching a batch's bytes from a remote store and using them."""

    def __getitem__(self, step: int) -> Batch | UserError:
        try:
            if self.ahead:
                for source, _, sample in self._locate(step + self.ahead):
                    self.sources.datasets[source].prefetch(sample)
            return self._batch(step)
        except UserError as error:  # as a value: an exception would arrive wrapped in a worker's traceback
            return error

    def _locate(self, step: int) -> Iterator[Place]:
        """Where this rank's samples of a step are."""
        mine, first = share(self.batch_size, self.rank, self.world_size), step * self.batch_size
        located = self.order.locate(np.arange(first + mine.start, first + mine.stop, dtype=np.int64))
        return map(Place, *(column.tolist() for column in located))

    def _batch(self, step: int) -> Batch:
        places = list(self._locate(step))
        resolutions = self.views.resolutions()
        dtype = torch.uint8 if self.sources.depth == 8 else torch.uint16
        views = [
            torch.empty((r.views, len(places), self.channels, r.size, r.size), dtype=dtype)
            for r in resolutions
        ]
        parameters = [torch.empty((r.views, len(places), len(PARAMETERS))) for r in resolutions]
        replaced: list[Replaced] = []
        for slot, place in enumerate(places):
            places[slot] = self._cut(place, [pixels[:, slot] for pixels in views], replaced)
            rng = self._generator(place, _PHOTOMETRY)
            for drawn in parameters:
                for view in drawn[:, slot]:
                    view.copy_(torch.from_numpy(augmentation.draw(rng, self.augment)))
        indices = [self.sources.starts[place.source] + place.sample for place in places]
        labels = [self.sources.label(place.source, place.sample) for place in places]
        return Batch(
            step=step,
            indices=np.array(indices, dtype=np.int64),
            epochs=np.array([place.epoch for place in places], dtype=np.int64),
            labels=torch.tensor(labels),
            views=views,
            parameters=parameters,
            replaced=replaced,
        )

    def _cut(self, place: Place, out: list[Tensor], replaced: list[Replaced]) -> Place:
        """Fill `out` with views of a sample, or if it is damaged of the one returned in its place."""
        dataset = self.sources.datasets[place.source]
        sample = place.sample
        for attempt in range(_SUBSTITUTES):
            try:
                cut(self._generator(place, _CROPS), dataset.read(sample), self.views, self._flips, out)
                return place._replace(sample=sample)
            except (Corrupt, ValueError) as error:
                index = self.sources.starts[place.source] + sample
                replaced.append(Replaced(index, dataset.name(sample), str(error)))
            sample = int(self._generator(place, _SUBSTITUTE, attempt).integers(len(dataset)))
        raise UserError(
            f"{_SUBSTITUTES} images of {dataset.path} in a row are damaged, first: {replaced[0].name}: "
            f"{replaced[0].reason}; run: python -m data_pipeline verify {dataset.path}"
        )

    def crops(self, step: int, slot: int, height: int, width: int) -> list[list[Crop]]:
        place = list(self._locate(step))[slot]
        return draw(self._generator(place, _CROPS), height, width, self.views, self._flips)

    @property
    def _flips(self) -> tuple[float, float]:
        return self.augment.horizontal_flip, self.augment.vertical_flip

    def _generator(self, place: Place, purpose: int, attempt: int = 0) -> np.random.Generator:
        """A sample's own stream of random numbers, addressed rather than advanced to."""
        seed = self.order.seeds[place.source]
        return generator(seed, place.epoch, (0, attempt, purpose, place.sample))


class Loader:
    """Endless batches of this rank from `start_step` on; the pixels do not depend on ranks or workers.

    `batch_size` is the global one. Raises `UserError` if it has no image for one of the ranks, and while
    iterating if a shard is gone.
    """

    def __init__(
        self,
        sources: Sources,
        *,
        batch_size: int,
        views: ViewsConfig,
        augment: AugmentConfig,
        channels: int,
        seed: int,
        order: Literal["uniform", "windowed"] = "uniform",
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        workers: int = 0,
    ) -> None:
        if batch_size < world_size:
            raise UserError(
                f"a global batch of {batch_size} is not an image for each of {world_size} ranks; "
                f"use at most {batch_size} ranks"
            )
        placed = sources.order(order, batch_size, seed)
        ahead = _PREFETCHED_BATCHES * max(workers, 1) if sources.remote else 0
        self._batches = _Batches(
            sources, placed, batch_size, views, augment, channels, rank, world_size, ahead
        )
        self._workers = workers
        self._next_step = start_step

    @property
    def state(self) -> int:
        """The next step to be consumed: `start_step` of a loader that carries on from here."""
        return self._next_step

    def crops(self, batch: Batch, slot: int, height: int, width: int) -> list[list[Crop]]:
        """Where the views of a batch's image were cut, a list for each of `views.resolutions()`.

        `slot` is the image's place in the batch, `height` and `width` its size in pixels.
        """
        return self._batches.crops(batch.step, slot, height, width)

    def __iter__(self) -> Generator[Batch, None, None]:
        steps: Any = iter(self._steps())
        try:
            for batch in steps:
                if isinstance(batch, UserError):
                    raise batch
                self._next_step = batch.step + 1
                yield batch
        finally:
            if self._workers:
                # The end of the process would ask them by SIGTERM, which they ignore, and wait for them.
                steps._shutdown_workers()
                for worker in steps._workers:
                    worker.kill()  # if it hangs, in a read say

    def _steps(self) -> DataLoader[Batch | UserError]:
        return DataLoader(
            self._batches,
            batch_size=None,
            sampler=range(self._next_step, 2**62),
            num_workers=self._workers,
            worker_init_fn=_ignore_signals,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own, so that the process's generator is left alone
        )


def _ignore_signals(worker: int) -> None:
    """Only the training process decides when to stop: it still needs batches until all ranks agree."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
