"""The batches of one rank, as a pure function of (data, configuration, seed, step).

Step t uses the positions [t·B, (t+1)·B) of the endless sample order, where B is the global batch size. Each
rank takes a contiguous share of them (`order.share`); the shares are equal to within one image, so the images
of a step do not depend on the number of ranks. Worker processes read and decode each image once and cut all
its views as integers. The parameters of the photometric augmentation are drawn there too, and `augment.apply`
uses them on the training device. The state of a loader is one integer, the next step.

A damaged image is replaced by another image, which is drawn from (seed, epoch, sample index). All other
images keep their places.
"""

import signal
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from data_pipeline.dataset import masks as mask_files
from data_pipeline.dataset.index import Corrupt
from data_pipeline.dataset.masks import IGNORED
from data_pipeline.order import Order, share
from data_pipeline.sources import Sources
from data_pipeline.storage.shared_memory import require_room
from data_pipeline.transforms import augment as augmentation
from data_pipeline.transforms.columns import IDENTITY, PARAMETERS
from data_pipeline.transforms.config import AugmentConfig, ViewsConfig
from data_pipeline.transforms.physical import Scales, Spacing
from data_pipeline.transforms.views import Crop, cut, cut_masks, draw, draw_angles, scaled, turn_by_quarters
from isotorus.device import to_device
from isotorus.errors import UserError
from isotorus.randomness import generator

_CROPS, _PHOTOMETRY, _SUBSTITUTE, _ACTIONS, _INSTRUMENT, _QUARTERS, _ROTATIONS = range(7)
"""The purposes of a sample's random numbers; each purpose has its own stream."""
_SUBSTITUTES = 100
_PREFETCHED_BATCHES = 8
_BATCHES_OF_A_WORKER = 2
"""How many batches a worker prepares ahead; they lie in shared memory."""


class Replaced(NamedTuple):
    """A damaged sample that was replaced by another one."""

    sample: int
    name: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch: b images, and of each image v views at every resolution."""

    step: int
    indices: NDArray[np.int64]
    """Index of each sample in the concatenated sources (b,)."""
    epochs: NDArray[np.int64]
    """Epoch of each sample within its own source (b,)."""
    labels: Tensor
    """Class indices, int64 (b,); -1 for images without a label."""
    views: list[Tensor]
    """One tensor for each resolution, uint8 or uint16 (v, b, C, H, W): global views, then local and turned
    views if there are any."""
    parameters: list[Tensor]
    """Augmentation parameters for `augment.apply`, one float32 tensor (v, b, P) for each of `views`, on the
    CPU."""
    replaced: list[Replaced]
    """The damaged samples that were replaced in this batch."""
    actions: list[Tensor] = field(default_factory=list)
    """Angles in radians by which the m actions of the recipe turned the views, one float32 tensor (v, b, m)
    for each of `views`, on the CPU; zeros for views that are not turned. Empty without actions."""
    present: Tensor | None = None
    """Which channels each image has, bool (b, C) on the CPU; None if the encoder's channels have no names."""
    masks: list[Tensor] = field(default_factory=list)
    """The classes of the pixels of each of `views`, one uint8 tensor (v, b, H, W) for each resolution, on the
    CPU; 255 for pixels without a class. Empty unless the loader reads masks."""

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory, for faster copies to a GPU; PyTorch's `DataLoader` calls
        this.
        """
        views, masks = ([x.pin_memory() for x in each] for each in (self.views, self.masks))
        return replace(self, labels=self.labels.pin_memory(), views=views, masks=masks)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with labels and views copied to `device`; all else stays on the CPU."""
        return replace(
            self,
            labels=to_device(self.labels, device),
            views=[to_device(v, device) for v in self.views],
        )


class Place(NamedTuple):
    """The source of a sample, its index in that source, and the epoch of the source in which it is seen."""

    source: int
    epoch: int
    sample: int


@dataclass(frozen=True)
class _Batches(TorchDataset[Batch | UserError]):
    """A dataset for PyTorch's `DataLoader` whose item t is the batch of step t; this code runs in the
    workers.
    """

    sources: Sources
    order: Order
    batch_size: int
    views: ViewsConfig
    augment: AugmentConfig
    channels: int
    rank: int
    world_size: int
    ahead: int
    """How many steps before its use a batch is prefetched from remote storage; 0 for local data."""
    scales: tuple[Scales, ...] = ()
    """The spacing of the images of each source; empty where crops are counted in shares of the area."""
    with_masks: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the views of this rank's largest batch."""
        images = len(share(self.batch_size, self.rank, self.world_size))
        values = sum(r.views * r.size**2 for r in self.views.resolutions())
        return images * values * (self.channels * self.sources.depth // 8 + self.with_masks)

    def __getitem__(self, step: int) -> Batch | UserError:
        """Return the batch of a step, or the `UserError` that prevented it."""
        try:
            if self.ahead:
                for source, _, sample in self._locate(step + self.ahead):
                    self.sources.datasets[source].prefetch(sample)
            return self._batch(step)
        except UserError as error:  # returned: a raised exception would arrive with a worker's traceback
            return error

    def _locate(self, step: int) -> Iterator[Place]:
        """Return the places of this rank's samples in a step."""
        mine, first = share(self.batch_size, self.rank, self.world_size), step * self.batch_size
        located = self.order.locate(np.arange(first + mine.start, first + mine.stop, dtype=np.int64))
        for source, epoch, number in zip(*(column.tolist() for column in located), strict=True):
            yield Place(source, epoch, self.sources.sample(source, number))

    def _batch(self, step: int) -> Batch:
        """Build the batch of a step."""
        places = list(self._locate(step))
        resolutions = self.views.resolutions()
        dtype = torch.uint8 if self.sources.depth == 8 else torch.uint16
        views = [
            torch.empty((r.views, len(places), self.channels, r.size, r.size), dtype=dtype)
            for r in resolutions
        ]
        parameters = [torch.empty((r.views, len(places), len(PARAMETERS))) for r in resolutions]
        actions = len(self.views.actions)
        angles = [torch.empty((r.views, len(places), actions)) for r in resolutions if actions]
        # The pixels of an image without a mask stay as they are here.
        masks = [torch.full_like(x[:, :, 0], IGNORED, dtype=torch.uint8) for x in views if self.with_masks]
        replaced: list[Replaced] = []
        for slot, place in enumerate(places):
            turns = draw_angles(self._generator(place, _ACTIONS), self.views)
            for drawn, turn in zip(angles, turns, strict=True):
                drawn[:, slot] = torch.from_numpy(turn)
            pixels, classes = [x[:, slot] for x in views], [x[:, slot] for x in masks]
            places[slot] = self._cut(place, pixels, classes, turns, replaced)
            if chance := self.augment.quarter_turns:
                turn_by_quarters(self._generator(place, _QUARTERS), pixels, self.views, chance)
                if classes:
                    as_images = [x[:, None] for x in classes]
                    turn_by_quarters(self._generator(place, _QUARTERS), as_images, self.views, chance)
            for drawn, rows in zip(parameters, self._photometry(place, turns), strict=True):
                drawn[:, slot] = torch.from_numpy(rows)
        indices = [self.sources.starts[place.source] + place.sample for place in places]
        labels = [self.sources.label(place.source, place.sample) for place in places]
        present = self.sources.present([place.source for place in places])
        return Batch(
            step=step,
            indices=np.array(indices, dtype=np.int64),
            epochs=np.array([place.epoch for place in places], dtype=np.int64),
            labels=torch.tensor(labels),
            views=views,
            parameters=parameters,
            replaced=replaced,
            actions=angles,
            present=None if present is None else torch.from_numpy(present),
            masks=masks,
        )

    def _cut(
        self,
        place: Place,
        out: list[Tensor],
        masks: list[Tensor],
        angles: list[NDArray[np.float32]],
        replaced: list[Replaced],
    ) -> Place:
        """Write the views of a sample, or of its replacement if it is damaged, into `out`, and their masks.

        `masks` is empty if masks are not read; `angles` are those of `views.draw_angles`. Returns the place
        of the sample that was used, and appends damaged samples to `replaced`. Raises `UserError` after 100
        damaged samples in a row.
        """
        dataset = self.sources.datasets[place.source]
        sample = place.sample
        for attempt in range(_SUBSTITUTES):
            try:
                rng = self._generator(place, _CROPS)
                data, rules, intensity = dataset.read(sample), dataset.pixel_rules, dataset.intensity
                spacing, rotations = self._spacing(place.source, sample), self._rotations(place)
                own = self._of_own_channels(place.source, out)
                cut(rng, data, self.views, self._flips, own, rules, angles, intensity, spacing, rotations)
                if self.sources.placements:
                    for views, cropped in zip(out, own, strict=True):
                        views.copy_(self.sources.placements[place.source].spread(cropped))
                if masks and (mask := mask_files.read(dataset, sample)) is not None:
                    # A new generator is in the state from which the crops of the image were drawn.
                    rng = self._generator(place, _CROPS)
                    cut_masks(rng, mask, self.views, self._flips, masks, spacing)
                return place._replace(sample=sample)
            except (Corrupt, ValueError) as error:
                index = self.sources.starts[place.source] + sample
                replaced.append(Replaced(index, dataset.name(sample), str(error)))
            sample = int(self._generator(place, _SUBSTITUTE, attempt).integers(len(dataset)))
        raise UserError(
            f"{_SUBSTITUTES} images of {dataset.path} in a row are damaged, first: {replaced[0].name}: "
            f"{replaced[0].reason}; run: isotorus verify {dataset.path}"
        )

    def _of_own_channels(self, source: int, out: list[Tensor]) -> list[Tensor]:
        """Return tensors like `out` for the channels of a source; `out` itself if channels have no names."""
        if self.sources.placements is None:
            return out
        own = self.sources.placements[source].own
        return [x.new_empty((len(x), own, *x.shape[2:])) for x in out]

    def _photometry(self, place: Place, angles: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Draw the augmentation parameters of a sample: (views, P) for each resolution.

        `angles` are those of `views.draw_angles`.
        """
        rng, actions, drawn = self._generator(place, _PHOTOMETRY), self.views.actions, []
        for number, resolution in enumerate(self.views.resolutions()):
            rows = np.stack([augmentation.draw(rng, self.augment) for _ in range(resolution.views)])
            if any(augmentation.probabilities(self.augment)):
                instrument = self._generator(place, _INSTRUMENT, number)
                placements = self.sources.placements
                channels = placements[place.source].kept if placements else range(self.channels)
                augmentation.draw_instrument(instrument, rows, self.augment, channels)
            if resolution.kind == "turned" and not self.augment.turned:
                rows[:] = IDENTITY
            if resolution.turned and "hue" in actions:
                augmentation.turn_hue(rows, angles[number][:, actions.index("hue")])
            drawn.append(rows)
        return drawn

    def _rotations(self, place: Place) -> list[NDArray[np.float32]]:
        """Draw the angles by which views of a sample are rotated: (views,) for each resolution.

        [] if none is.
        """
        if not self.augment.rotation_probability:
            return []
        rng = self._generator(place, _ROTATIONS)
        return [augmentation.draw_rotations(rng, r.views, self.augment) for r in self.views.resolutions()]

    def crops(self, batch: Batch, slot: int, height: int, width: int) -> list[list[Crop]]:
        """Return the crops of the image at position `slot` of a batch; see `Loader.crops`."""
        place = list(self._locate(batch.step))[slot]
        spacing = self.spacing(batch, slot, height, width)
        return draw(self._generator(place, _CROPS), height, width, self.views, self._flips, spacing)

    def spacing(self, batch: Batch, slot: int, height: int, width: int) -> Spacing | None:
        """Return the spacing by which an image of a batch was cropped; see `Loader.spacing`."""
        source = list(self._locate(batch.step))[slot].source
        sample = int(batch.indices[slot]) - self.sources.starts[source]
        return scaled(height, width, self.views, self._spacing(source, sample))

    def _spacing(self, source: int, sample: int) -> Spacing | None:
        """Return the spacing of a sample in the unit of the views; None if it is not needed or not known."""
        return self.scales[source].of(sample) if self.scales else None

    @property
    def _flips(self) -> tuple[float, float]:
        """Probabilities of a horizontal and of a vertical flip."""
        return self.augment.horizontal_flip, self.augment.vertical_flip

    def _generator(self, place: Place, purpose: int, attempt: int = 0) -> np.random.Generator:
        """Return the random generator of one sample for one purpose; it depends on (seed, epoch, sample)
        alone.
        """
        seed = self.order.seeds[place.source]
        return generator(seed, place.epoch, (0, attempt, purpose, place.sample))


class Loader:
    """Yields the batches of this rank without end, beginning at `start_step`.

    `batch_size` is the global batch size. With `masks`, batches have the masks of the views. Pixels do not
    depend on the number of ranks or workers. Raises `UserError` if there are more ranks than images in a
    batch, and during iteration if a shard is missing.
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
        masks: bool = False,
    ) -> None:
        if batch_size < world_size:
            raise UserError(
                f"a global batch of {batch_size} is not an image for each of {world_size} ranks; "
                f"use at most {batch_size} ranks"
            )
        placed = sources.order(order, batch_size, seed)
        ahead = _PREFETCHED_BATCHES * max(workers, 1) if sources.remote else 0
        unit = views.unit if views.scale_by == "spacing" else None
        scales = tuple(Scales(dataset, unit) for dataset in sources.datasets) if unit else ()
        self._batches = _Batches(
            sources, placed, batch_size, views, augment, channels, rank, world_size, ahead, scales, masks
        )
        self._workers = workers
        self._next_step = start_step

    @property
    def state(self) -> int:
        """The next step to be used; a new loader with this `start_step` continues from here."""
        return self._next_step

    def crops(self, batch: Batch, slot: int, height: int, width: int) -> list[list[Crop]]:
        """Return where the views of one image of a batch were cut: a list of crops for each resolution.

        `slot` is the position of the image in the batch; `height` and `width` are its size in pixels.
        """
        return self._batches.crops(batch, slot, height, width)

    def spacing(self, batch: Batch, slot: int, height: int, width: int) -> Spacing | None:
        """Return the distance between rows and between columns by which an image of a batch was cropped, in
        the unit of the views; None if it was cropped by area. The arguments are those of `crops`.
        """
        return self._batches.spacing(batch, slot, height, width)

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
                # Workers ignore SIGTERM, so without this the process would wait for them when it ends.
                steps._shutdown_workers()
                for worker in steps._workers:
                    worker.kill()  # it may hang, for example in a read

    def _steps(self) -> DataLoader[Batch | UserError]:
        """Return a `DataLoader` of this rank's batches from the next step on."""
        # The batches that the workers have ready, and the one that is trained on.
        require_room(self._workers, _BATCHES_OF_A_WORKER * self._workers + 1, self._batches.nbytes)
        return DataLoader(
            self._batches,
            batch_size=None,
            sampler=range(self._next_step, 2**62),
            num_workers=self._workers,
            prefetch_factor=_BATCHES_OF_A_WORKER if self._workers else None,
            worker_init_fn=_ignore_signals,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # so that the global generator of torch is not advanced
        )


def _ignore_signals(worker: int) -> None:
    """Let a worker ignore the signals that stop a run.

    The training process alone decides when to stop: it needs batches until all ranks have agreed on a step.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
