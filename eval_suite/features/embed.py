"""Features of every sample of a data set, computed once by any number of processes and kept on disk."""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, gather_object, pad_across_processes
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.pixels import convertible
from data_pipeline.transforms.views import center_view
from eval_suite import progress
from eval_suite.features.feature_sets import FeatureSets
from eval_suite.features.images import normalise, unit_range
from eval_suite.inputs.checkpoints import Checkpoint, state_sha256
from isotorus.errors import UserError, from_os_error
from isotorus.files import atomic

Features = dict[str, NDArray[np.float32]]
"""Features (n, width) by the name of the feature set, see `eval_suite.features.feature_sets`."""

FORMAT = 4
"""Version of cached features; it increases when this code computes other features from the same inputs."""


def made_by(device: torch.device) -> dict[str, Any]:
    """Return what features depend on beside the encoder and the images: versions and precision."""
    precision = "bfloat16" if device.type == "cuda" else "float32"
    versions = {"torch": str(torch.__version__), "timm": timm.__version__}
    return {"format": FORMAT, "precision": precision, **versions}


@dataclass(frozen=True)
class Representation:
    """A function from images (N, C, size, size) to vectors, such as the pretrained encoder."""

    name: str
    model: FeatureSets
    described: dict[str, Any]
    """What the model is built from: the encoder's name and arguments, and the projector."""
    weights: str
    """Hash of the model's weights."""
    width: int
    """Width of the embedding."""
    sets: tuple[str, ...] | None
    """Feature sets to keep besides the embedding; None keeps all."""
    size: int
    """Side of the images, in pixels."""
    channels: int
    mean: tuple[float, ...]
    """Mean of each channel, with pixels in [0, 1]."""
    std: tuple[float, ...]

    def key(self, device: torch.device) -> str:
        """Return a hash of everything that the features depend on, except the images."""
        parts = [self.described, self.weights, self.width, self.sets, self.size, self.channels]
        parts += [self.mean, self.std, made_by(device)]
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
    projector, described = checkpoint.projector(), checkpoint.encoder.projector
    angles = described.angles if projector and described else None
    model = FeatureSets(checkpoint.pretrained(), projector, angles)
    return _encoder("pretrained", checkpoint, model, checkpoint.weights_sha256, sets)


def untrained(checkpoint: Checkpoint, sets: tuple[str, ...] | None = None) -> Representation:
    """Return the same encoder at its initialisation, which shows what the architecture alone gives."""
    model = checkpoint.untrained()
    return _encoder("untrained", checkpoint, FeatureSets(model), state_sha256(model), sets)


def pixels(checkpoint: Checkpoint, size: int = 32) -> Representation:
    """Return the images themselves, scaled to `size` × `size` and flattened: a baseline without encoder."""
    channels = checkpoint.encoder.channels
    blank, unit = (0.0,) * channels, (1.0,) * channels
    width, model = channels * size**2, FeatureSets(nn.Flatten())
    return Representation("pixels", model, {}, "none", width, None, size, channels, blank, unit)


def _encoder(
    name: str, checkpoint: Checkpoint, model: FeatureSets, weights: str, sets: tuple[str, ...] | None
) -> Representation:
    described = checkpoint.encoder
    return Representation(
        name=name,
        model=model.eval(),
        described={
            "name": described.name,
            "kwargs": described.kwargs,
            "projector": asdict(described.projector) if described.projector else None,
        },
        weights=weights,
        width=described.embedding_width,
        sets=sets,
        size=described.image_size,
        channels=described.channels,
        mean=tuple(described.mean),
        std=tuple(described.std),
    )


def check_channels(channels: int, dataset: Dataset) -> None:
    """Raise UserError if images of the data set cannot be converted to what the encoder takes."""
    if not convertible(dataset.channels, channels):
        raise UserError(
            f"{dataset.path} has images of {dataset.channels} channels, but the encoder was trained on "
            f"{channels}; evaluate it on images with the same channels"
        )


def read_views(dataset: Dataset, i: int, channels: int, sizes: Sequence[int]) -> list[Tensor]:
    """Return the centre crop of sample `i` at each size, uint8 or uint16 (channels, size, size).

    Raises UserError for a sample that cannot be read.
    """
    try:
        image = dataset.pixels(i, channels, dataset.depth)
    except ValueError as error:
        raise UserError(
            f"sample {i} of {dataset.path} cannot be decoded ({error}); pack the images again"
        ) from None
    return [center_view(image, size) for size in sizes]


def extract(
    representations: Sequence[Representation],
    dataset: Dataset,
    cache: Path,
    state: PartialState,
    *,
    batch_size: int = 64,
    workers: int = 0,
    force: bool = False,
) -> dict[str, Features]:
    """Return the features of all samples, in order, by name of the representation.

    The folder `cache` keeps them by `Representation.key` and data, and what is there is not computed again
    except with `force`. All processes must call this: each embeds its share of the samples once, and all
    return the features of all samples (cached ones only the first process). Raises UserError on all processes
    for unreadable images, and for features that are not finite: the pretrained embedding, and sets that were
    named. Other sets are returned as they are.
    """
    check_channels(representations[0].channels, dataset)
    files = {r.name: cache / f"{r.key(state.device)}-{dataset.fingerprint}.npz" for r in representations}
    features = {}
    if state.is_main_process and not force:
        features = {name: x for name, file in files.items() if (x := _load(file, len(dataset))) is not None}
    known: list[set[str]] = [set(features)]
    broadcast_object_list(known)
    missing = [r for r in representations if r.name not in known[0]]
    if missing:
        fresh = _compute(missing, dataset, state, batch_size, workers)
        if state.is_main_process:
            for name, x in fresh.items():
                _save(files[name], x)
        features |= fresh
    return features


def _compute(
    representations: list[Representation],
    dataset: Dataset,
    state: PartialState,
    batch_size: int,
    workers: int,
) -> dict[str, Features]:
    """Embed a share of the samples in each process and gather all of them in all processes."""
    with state.split_between_processes(torch.arange(len(dataset))) as share:
        indices = share.tolist()
    local, failure = _embed(representations, dataset, indices, state, batch_size, workers)
    failures = [message for message in gather_object([failure]) if message]
    if failures:
        raise UserError(failures[0])
    features: dict[str, Features] = {r.name: {} for r in representations}
    counts = gather(torch.tensor([len(indices)], device=state.device)).tolist()
    for r in representations:
        for name, rows in local[r.name].items():
            padded = gather(pad_across_processes(rows))
            whole = torch.cat([part[:n] for part, n in zip(padded.chunk(len(counts)), counts, strict=True)])
            broken = int((~whole.isfinite().all(dim=1)).sum())
            if broken and r.name == "pretrained" and (name == "embedding" or r.sets is not None):
                raise UserError(
                    f"{broken} of {len(whole)} images of {dataset.path} give NaN or infinite features "
                    f"({name}) with the {r.name} encoder; evaluate a checkpoint from before its training "
                    "diverged"
                )
            features[r.name][name] = whole.cpu().numpy()
    return features


@torch.inference_mode()
def _embed(
    representations: list[Representation],
    dataset: Dataset,
    indices: list[int],
    state: PartialState,
    batch_size: int,
    workers: int,
) -> tuple[dict[str, dict[str, Tensor]], str]:
    """Return the features of this process's samples, and an error message, which is empty on success."""
    sizes = sorted({r.size for r in representations})
    images = _Images(dataset, indices, sizes, representations[0].channels)
    loader = DataLoader(images, batch_size=batch_size, num_workers=workers, collate_fn=_collate)
    parts: dict[str, dict[str, list[Tensor]]] = {}
    for r in representations:
        r.model.to(state.device)
        # A process without samples must also know which feature sets the others gather.
        ramp = torch.arange(r.channels * r.size**2, device=state.device).remainder(256).to(torch.uint8)
        blank = r.embed(ramp.view(1, r.channels, r.size, r.size))
        if blank["embedding"].shape[1:] != (r.width,):
            shape = tuple(blank["embedding"].shape[1:])
            return {}, f"the encoder gives vectors of {shape}, its description says {r.width}"
        parts[r.name] = {name: [x[:0]] for name, x in blank.items()}
    title, share = f"embedding {Path(dataset.path).name}", " of a process" * (state.num_processes > 1)
    finished = 0
    for batch in loader:
        if isinstance(batch, str):
            return {}, batch
        progress.doing(f"{title}, {finished:,} of {len(indices):,} images{share}")
        views = {s: x.to(state.device, non_blocking=True) for s, x in zip(sizes, batch, strict=True)}
        for r in representations:
            for name, x in r.embed(views[r.size]).items():
                parts[r.name][name].append(x)
        finished += len(batch[0])
    return {r: {name: torch.cat(rows) for name, rows in sets.items()} for r, sets in parts.items()}, ""


class _Images(TorchDataset[list[Tensor] | str]):
    """Centre crops of chosen samples, one for each size; an unreadable sample gives an error message.

    The message is returned, because an exception would reach the main process with a worker's traceback.
    """

    def __init__(self, dataset: Dataset, indices: list[int], sizes: list[int], channels: int) -> None:
        self.dataset, self.indices, self.sizes, self.channels = dataset, indices, sizes, channels

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> list[Tensor] | str:
        try:
            return read_views(self.dataset, self.indices[position], self.channels, self.sizes)
        except UserError as error:
            return str(error)


def _collate(items: list[list[Tensor] | str]) -> list[Tensor] | str:
    """Stack the crops of each size; return the first error message if there is one."""
    for item in items:
        if isinstance(item, str):
            return item
    return [torch.stack(views) for views in zip(*items, strict=True)]


def _load(file: Path, samples: int) -> Features | None:
    """Return cached features; None if there are none or the file is damaged."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            features: Features = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    whole = "embedding" in features and all(len(x) == samples for x in features.values())
    return features if whole else None


def _save(file: Path, x: Features) -> None:
    """Write features to the cache; raises UserError where the disk refuses."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as stream:
            np.savez(stream, **x)  # type: ignore[arg-type]
    except OSError as error:
        raise from_os_error(error, "keeping features") from error
