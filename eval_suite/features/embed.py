"""Features of every sample of a data set, computed once by any number of processes and kept on disk."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from data_pipeline.dataset.index import Corrupt, Dataset
from data_pipeline.decoders.pixels import convertible
from data_pipeline.transforms.physical import Scales, Square, check_square
from data_pipeline.transforms.views import center_view
from eval_suite import progress
from eval_suite.attempts import refused
from eval_suite.features.cache import Features, load, save
from eval_suite.features.representation import Representation
from isotorus.errors import UserError

View = tuple[int, int, Square | None]
"""Number of channels and side in pixels of a representation's images, and the part that they show."""


def one_process(state: PartialState, command: str) -> None:
    """Raise UserError if a command that runs in one process was started in several."""
    if state.num_processes > 1:
        raise UserError(
            f"{command} runs in one process, not in {state.num_processes}; start it without torchrun"
        )


def check_channels(channels: int, dataset: Dataset) -> None:
    """Raise UserError if images of the data set cannot be converted to what the encoder takes."""
    if not convertible(dataset.channels, channels):
        raise UserError(
            f"{dataset.path} has images of {dataset.channels} channels, but the encoder was trained on "
            f"{channels}; evaluate it on images with the same channels"
        )


def check(r: Representation) -> None:
    """Embed one image on the CPU; raises UserError if the encoder cannot, or gives another width."""
    with torch.inference_mode():
        blank(r, torch.device("cpu"))


def read_views(
    dataset: Dataset,
    i: int,
    channels: int,
    sizes: Sequence[int],
    square: Square | None = None,
    scales: Scales | None = None,
) -> list[Tensor]:
    """Return the centre crop of sample `i` at each size, uint8 or uint16 (channels, size, size).

    With a `square` the crop has that physical size. `scales` holds the pixel spacing; None reads it here.

    Raises Corrupt for a sample that is damaged, and UserError for one that cannot be read.
    """
    try:
        image = dataset.pixels(i, channels, dataset.depth)
    except ValueError as error:
        raise Corrupt(
            f"sample {i} of {dataset.path} cannot be decoded ({error}); pack the images again"
        ) from None
    if square is None:
        return [center_view(image, size) for size in sizes]
    spacing = (scales or Scales(dataset, square.unit)).of(i)
    return [center_view(image, size, square, spacing) for size in sizes]


def extract(
    representations: Sequence[Representation],
    dataset: Dataset,
    cache: Path,
    state: PartialState,
    *,
    batch_size: int = 64,
    workers: int = 0,
    force: bool = False,
    rows: NDArray[np.int64] | None = None,
) -> dict[str, Features]:
    """Return the features of all samples, or of those with the numbers `rows`, by name of the representation.

    The folder `cache` keeps features by `Representation.key` and data; features in it are not computed again
    except with `force`. All processes must call this: each embeds its share of the samples once. The first
    one returns the features of all samples, the others an empty dict. Raises UserError on all processes for
    unreadable images, and for features that are not finite: the pretrained embedding, and sets that were
    named. Other sets are returned as they are.
    """
    for r in representations:
        check_channels(r.channels, dataset)
    for square in {r.square for r in representations}:
        check_square(square, dataset)
    samples = np.arange(len(dataset)) if rows is None else rows
    chosen = "" if rows is None else f"-{hashlib.sha256(rows.astype('<i8').tobytes()).hexdigest()[:16]}"
    keys = [f"{r.key(state.device)}-{dataset.fingerprint}{chosen}" for r in representations]
    features: dict[str, Features] = {}
    if state.is_main_process and not force:
        found = {key: load(cache / f"{key}.npz", len(samples)) for key in dict.fromkeys(keys)}
        features = {key: x for key, x in found.items() if x is not None}
    known: list[set[str]] = [set(features)]
    broadcast_object_list(known)
    named = list(zip(keys, representations, strict=True))
    missing = {key: r for key, r in named if key not in known[0]}
    fresh: dict[str, Features] = {}
    if missing:
        computed = _compute(list(missing.values()), dataset, samples, state, batch_size, workers)
        if state.is_main_process:
            fresh = dict(zip(missing, computed, strict=True))
            features |= fresh
    broken = [""]
    if state.is_main_process:
        failures = {key: why for key, r in named if (why := _broken(r, features[key], dataset))}
        broken = [next(iter(failures.values()), "")]
        for key, x in fresh.items():
            if key not in failures:
                save(cache / f"{key}.npz", x)
    broadcast_object_list(broken)  # because the others may not have what is cached
    if broken[0]:
        raise UserError(broken[0])
    return {r.name: features[key] for key, r in named if key in features}


def _broken(r: Representation, features: Features, dataset: Dataset) -> str:
    """Say which of the features that an evaluation cannot do without are not finite; empty if all are."""
    if r.name != "pretrained":
        return ""
    for name in ("embedding",) if r.sets is None else features:
        count = int((~np.isfinite(features[name]).all(axis=1)).sum())
        if count:
            return (
                f"{count} of {len(features[name])} images of {dataset.path} give NaN or infinite features "
                f"({name}) with the pretrained encoder; evaluate a checkpoint from before its training "
                "diverged"
            )
    return ""


def _compute(
    representations: list[Representation],
    dataset: Dataset,
    samples: NDArray[np.int64],
    state: PartialState,
    batch_size: int,
    workers: int,
) -> list[Features]:
    """Embed a share of the `samples` in each process; the first one returns all features, the others none."""
    with state.split_between_processes(torch.from_numpy(samples)) as share:
        indices = share.tolist()
    local, failure = _embed(representations, dataset, indices, state, batch_size, workers)
    reports: list[tuple[str, int]] = gather_object([(failure, len(indices))])
    if failures := [message for message, _ in reports if message]:
        raise UserError(failures[0])
    if state.num_processes == 1:
        return [{name: rows.numpy() for name, rows in sets.items()} for sets in local]
    # The features lie on the host, from where NCCL cannot send them.
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    counts = [count for _, count in reports]
    gathered = [{name: _gather(rows, counts, group) for name, rows in sets.items()} for sets in local]
    dist.destroy_process_group(group)
    return [{name: x for name, x in sets.items() if x is not None} for sets in gathered]


def _gather(rows: Tensor, counts: list[int], group: dist.ProcessGroup) -> NDArray[np.float32] | None:
    """Return the rows of all processes, on the host and in their order, in the first process alone."""
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts] if dist.get_rank() == 0 else None
    dist.gather(padded, parts, dst=0, group=group)
    if parts is None:
        return None
    whole: NDArray[np.float32] = torch.cat([x[:n] for x, n in zip(parts, counts, strict=True)]).numpy()
    return whole


@torch.inference_mode()
def _embed(
    representations: list[Representation],
    dataset: Dataset,
    indices: list[int],
    state: PartialState,
    batch_size: int,
    workers: int,
) -> tuple[list[dict[str, Tensor]], str]:
    """Return the features of this process's samples, and an error message, which is empty on success.

    The features lie on the host: those of a large data set take more memory than the encoder.
    """
    parts: list[dict[str, list[Tensor]]] = []
    for r in representations:
        # A process without samples must also know which feature sets the others gather.
        try:
            parts.append({name: [x.cpu()] for name, x in blank(r, state.device).items()})
        except UserError as error:
            return [], str(error)
    title, share = f"embedding {Path(dataset.path).name}", " of a process" * (state.num_processes > 1)
    finished = 0
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    try:
        for batch in stream(representations, dataset, batches, state.device, workers):
            if batch.damaged:
                return [], next(iter(batch.damaged.values()))
            progress.doing(f"{title}, {finished:,} of {len(indices):,} images{share}")
            for vectors, kept in zip(batch.vectors, parts, strict=True):
                for name, x in vectors.items():
                    kept[name].append(x)
            finished += len(batch.samples)
    except UserError as error:
        return [], str(error)
    return [{name: torch.cat(rows) for name, rows in sets.items()} for sets in parts], ""


class Batch(NamedTuple):
    """The features of some samples."""

    samples: list[int]
    """The samples that have features, in their order."""
    damaged: dict[int, str]
    """Why the other samples have no features, by sample."""
    vectors: list[dict[str, Tensor]]
    """Features (samples, width) on the host by name, for each representation; empty without samples."""


@torch.inference_mode()
def stream(
    representations: Sequence[Representation],
    dataset: Dataset,
    batches: Iterable[list[int]],
    device: torch.device,
    workers: int,
) -> Iterator[Batch]:
    """Yield the features of `batches` of samples, which this process reads, in their order.

    Damaged samples are named in their batch. The models must be on the `device`. Raises UserError if the
    samples cannot be read.
    """
    loader = DataLoader(
        _Images(dataset, representations),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        if isinstance(batch, str):
            raise UserError(batch)
        views = {view: x.to(device, non_blocking=True) for view, x in batch.views.items()}
        described = iter(batch.described)
        vectors = []
        for r in representations if batch.samples else ():
            sets = r.embed(views[r.channels, r.size, r.square]) if r.describe is None else next(described)
            vectors.append({name: x.cpu() for name, x in sets.items()})
        yield Batch(batch.samples, batch.damaged, vectors)


def blank(r: Representation, device: torch.device) -> dict[str, Tensor]:
    """Put the model on the device; return empty features (0, width) by name, made from those of one image.

    Raises UserError if the model cannot embed it, or for a width that is not the described one.
    """
    if r.describe is None:
        r.model.to(device)
    what = (
        f"{r.described.get('name', r.name)} cannot embed an image of {r.size}×{r.size} with {r.channels} "
        "channels"
    )
    with refused(lambda reason: f"{what} ({reason}); correct its description"):
        vectors = _of_one_image(r, device)
    if r.width is not None and vectors["embedding"].shape[1:] != (r.width,):
        shape = tuple(vectors["embedding"].shape[1:])
        raise UserError(f"the encoder gives vectors of {shape}, its description says {r.width}")
    return {name: x[:0] for name, x in vectors.items()}


def _of_one_image(r: Representation, device: torch.device) -> dict[str, Tensor]:
    """Return the features (1, width) of an image whose pixels rise from 0 to 255, repeatedly."""
    values = torch.arange(r.channels * r.size**2).remainder(256).to(torch.uint8)
    image = values.view(r.channels, r.size, r.size)
    if r.describe is not None:
        return {name: torch.from_numpy(x)[None].to(device) for name, x in r.describe(image).items()}
    return r.embed(image[None].to(device))


class _Item(NamedTuple):
    """The result of decoding one image, or the stacked results of a batch of images."""

    views: dict[View, Tensor]
    """Centre crops (channels, size, size)."""
    described: list[dict[str, Tensor]]
    """Vectors of the representations that need no model, in their order; computed where images are
    decoded."""
    samples: list[int]
    """The samples that the crops and vectors come from."""
    damaged: dict[int, str]
    """What is wrong with the damaged samples, by sample."""


def _view(r: Representation) -> View:
    return r.channels, r.size, r.square


class _Images(TorchDataset[_Item | str]):
    """Centre crops and descriptions of samples; what cannot be read gives an error message.

    The message is returned, because an exception would reach the main process with a worker's traceback.
    """

    def __init__(self, dataset: Dataset, representations: Sequence[Representation]) -> None:
        self.dataset = dataset
        self.embedded: set[View] = {_view(r) for r in representations if r.describe is None}
        self.describe = [(_view(r), r.describe) for r in representations if r.describe is not None]
        self.sizes: dict[tuple[int, Square | None], list[int]] = {}
        for channels, size, square in sorted(self.embedded | {view for view, _ in self.describe}, key=str):
            self.sizes.setdefault((channels, square), []).append(size)
        self.scales = {square: square and Scales(dataset, square.unit) for _, square in self.sizes}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> _Item | str:
        views: dict[View, Tensor] = {}
        try:
            for (channels, square), sizes in self.sizes.items():
                crops = read_views(self.dataset, i, channels, sizes, square, self.scales[square])
                views |= {(channels, size, square): crop for size, crop in zip(sizes, crops, strict=True)}
        except Corrupt as error:
            return _Item({}, [], [], {i: str(error)})
        except UserError as error:
            return str(error)
        described = [
            {name: torch.from_numpy(x) for name, x in describe(views[view]).items()}
            for view, describe in self.describe
        ]
        return _Item({view: x for view, x in views.items() if view in self.embedded}, described, [i], {})


def _collate(items: list[_Item | str]) -> _Item | str:
    """Stack what the images of a batch give; return the first error message if there is one."""
    whole: list[_Item] = []
    damaged: dict[int, str] = {}
    for item in items:
        if isinstance(item, str):
            return item
        damaged |= item.damaged
        if item.samples:
            whole.append(item)
    if not whole:
        return _Item({}, [], [], damaged)
    first = whole[0]
    return _Item(
        {view: torch.stack([item.views[view] for item in whole]) for view in first.views},
        [
            {name: torch.stack([item.described[i][name] for item in whole]) for name in sets}
            for i, sets in enumerate(first.described)
        ],
        [i for item in whole for i in item.samples],
        damaged,
    )
