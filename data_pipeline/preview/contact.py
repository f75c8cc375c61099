"""A contact sheet: some images, and the views of them that the training loader makes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.decoders.decode import decode
from data_pipeline.loader import Loader
from data_pipeline.order import sample_index
from data_pipeline.preview import figures
from data_pipeline.preview.recipe import Recipe
from data_pipeline.sources import Sources
from data_pipeline.transforms import augment
from data_pipeline.transforms.config import Action
from data_pipeline.transforms.physical import ExactBox
from isotorus.randomness import generator

_POOL = 100_000  # positions from which images are chosen
_LONGEST_ORIGINAL = 320  # pixels
_LONGEST_VIEW = 256  # pixels
_LONGEST_CHANNEL = 160  # pixels


@dataclass(frozen=True)
class Cut:
    """The views of one image at one resolution."""

    kind: str
    """"global", "local" or "turned"."""
    size: int
    """Side of the views in pixels."""
    views: list[str]
    """The views as data URIs."""
    notes: list[str]
    """What is special about each view, such as "rotation 90°, hue 12°" or "20.5 mm"; "" if nothing is."""
    boxes: list[ExactBox]
    """Where each view lies in the original image."""


@dataclass(frozen=True)
class Card:
    """One image of the contact sheet, with its views."""

    key: str
    label: str
    """Class name; "" if the image has no label."""
    bytes: int
    """Size of the image file in bytes."""
    original: str
    """The image as a data URI."""
    channels: str
    """All its channels as a data URI, for images that are neither grey nor in colour; else ""."""
    width: int
    """Width of the original image in pixels."""
    height: int
    """Height of the original image in pixels."""
    cuts: list[Cut]


def choose(labels: NDArray[np.integer], count: int, run_seed: int, seed: int) -> NDArray[np.int64]:
    """Return positions of at most `count` samples in the first epoch of a run, sorted by class.

    The classes take turns, and unlabelled samples count as a class, which comes last. Samples are drawn by
    `seed` from 100,000 positions, so very rare classes may be missing.
    """
    n = len(labels)
    random = generator(seed)
    positions = random.choice(n, min(n, _POOL), replace=False)
    drawn = labels[sample_index(positions, n, run_seed)].astype(np.uint32)  # makes -1 the largest number
    label = np.unique(drawn, return_inverse=True)[1]
    order = np.argsort(label, kind="stable")
    starts = np.flatnonzero(np.diff(label[order], prepend=-1))
    turn = np.empty(len(label), dtype=np.int64)
    turn[order] = np.arange(len(label)) - np.repeat(starts, np.diff(starts, append=len(label)))
    chosen = np.argsort(turn, kind="stable")[:count]
    return positions[chosen[np.argsort(label[chosen], kind="stable")]]


def cards(recipe: Recipe, positions: NDArray[np.int64]) -> Iterator[Card]:
    """Yield the samples at these positions, cropped and augmented as in training.

    The loader is asked for batches of one image, as neither pixels nor parameters depend on the batch.
    """
    sources = recipe.data.open()
    for position in positions.tolist():
        loader = Loader(
            sources,
            batch_size=1,
            views=recipe.views,
            augment=recipe.augment,
            channels=recipe.data.channel_count,
            seed=recipe.seed,
            start_step=position,
        )
        yield _card(sources, recipe, loader)


def _in_degrees(actions: list[Action], angles: list[float]) -> str:
    """Name the actions with their angles, which are given in radians."""
    return ", ".join(
        f"{action.replace('_', ' ')} {math.degrees(angle):.0f}°"
        for action, angle in zip(actions, angles, strict=True)
    )


def _card(sources: Sources, recipe: Recipe, loader: Loader) -> Card:
    """Build the card of the first image that the loader returns."""
    batch = next(iter(loader))
    dataset, index, label = sources.datasets[0], int(batch.indices[0]), int(batch.labels[0])
    data = dataset.read(index)
    placement = sources.placements[0] if sources.placements else None
    own = placement.own if placement else recipe.data.channel_count
    original = figures.unit_scale(
        decode(
            data,
            own,
            sources.depth,
            rules=dataset.pixel_rules,
            intensity=dataset.intensity,
        )
    )
    if placement:  # channels that the image lacks are shown black
        spread = placement.spread(torch.from_numpy(original).permute(2, 0, 1))
        original = spread.permute(1, 2, 0).numpy()
    height, width, _ = original.shape
    limits = figures.display_range(original, sources.depth)
    # Mean 0 and deviation 1: views are shown without normalisation.
    zeros, ones = [0.0] * recipe.data.channel_count, [1.0] * recipe.data.channel_count
    crops = loader.crops(batch, 0, height, width)
    spacing = loader.spacing(batch, 0, height, width)
    many = placement is not None or original.shape[2] not in (1, 3)
    draw = figures.all_channels if many else figures.data_uri
    cuts = []
    actions = recipe.views.actions
    for number, (resolution, views, parameters, chosen) in enumerate(
        zip(recipe.views.resolutions(), batch.views, batch.parameters, crops, strict=True)
    ):
        seen = augment.apply(views[:, 0], parameters[:, 0], zeros, ones, batch.present)
        shown = [draw(v, *limits, _LONGEST_VIEW) for v in seen.permute(0, 2, 3, 1).numpy()]
        notes: list[list[str]] = [[] for _ in chosen]
        if spacing is not None:
            for note, crop in zip(notes, chosen, strict=True):
                note.append(f"{crop.box[2] * spacing[0]:.3g} {recipe.views.unit}")
        if resolution.turned:
            for note, view in zip(notes, batch.actions[number][:, 0], strict=True):
                note.append(_in_degrees(actions, view.tolist()))
        said = [", ".join(note) for note in notes]
        cuts.append(Cut(resolution.kind, resolution.size, shown, said, [crop.box for crop in chosen]))
    return Card(
        key=dataset.key(index),
        label=sources.classes[label] if label >= 0 else "",
        bytes=len(data),
        original=figures.data_uri(original, *limits, _LONGEST_ORIGINAL),
        channels=figures.all_channels(original, *limits, _LONGEST_CHANNEL) if many else "",
        width=width,
        height=height,
        cuts=cuts,
    )
