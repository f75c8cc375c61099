"""Training on masks: which images have one, the classes of their pixels, and which views can have masks."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset import masks
from data_pipeline.dataset.description import MaskRule
from data_pipeline.dataset.index import Dataset
from data_pipeline.transforms.physical import Scales, Square
from data_pipeline.transforms.views import center_mask
from isotorus.errors import UserError, one_line
from isotorus.randomness import generator
from pretrain.config import Config
from pretrain.methods.config import CHOICE, SupervisedConfig, TargetsConfig


class Masked(NamedTuple):
    """The masks of several data sets."""

    names: list[str]
    """Names of the classes, in the order of their numbers."""
    known: dict[str, NDArray[np.bool_]]
    """Which samples (n,) have a mask, by the name of the data set."""
    classes: dict[str, set[int]]
    """The numbers of the classes that occur in each data set."""


def read_masks(sets: Mapping[str, Dataset]) -> Masked:
    """Return the masks of data sets whose names begin with that of their split: train, val or test.

    Raises UserError for a split without masks, with one class only, or with classes that train lacks, and for
    sets whose classes have other names or other pixel values.
    """
    found = {name: masks.find(dataset) for name, dataset in sets.items()}
    names = _names(sets, 1 + max((c for of in found.values() for c in of.classes), default=0))
    for name, of in found.items():
        if not of.known.any():
            raise UserError(f"{name}: {sets[name].path} has no masks; pack its images with --masks FOLDER")
    classes = {name: set(of.classes) for name, of in found.items()}
    _check_classes(classes, names, "train")
    return Masked(names, {name: of.known for name, of in found.items()}, classes)


def choose(masked: Masked, sets: Mapping[str, Dataset], of: TargetsConfig) -> Masked:
    """Return the masks with only `of.labels` of those of train known, or all.

    The masks that are chosen are read. Raises UserError if they have one class only, or lack classes that
    those of val or test have.
    """
    if of.labels is None:
        return masked
    train = [name for name in sets if name.startswith("train")]
    known = np.concatenate([masked.known[name] for name in train])
    rows = generator(of.seed, CHOICE).permutation(np.flatnonzero(known))[: of.labels]
    parts = np.split(
        np.isin(np.arange(len(known)), rows), np.cumsum([len(sets[name]) for name in train])[:-1]
    )
    used = masked.known | dict(zip(train, parts, strict=True))
    classes = dict(masked.classes)
    for name in train:
        pixels = masks.count_pixels(sets[name], tuple(np.flatnonzero(used[name]).tolist()))
        classes[name] = set(np.flatnonzero(pixels[: masks.IGNORED]).tolist())
    _check_classes(classes, masked.names, f"train (the {len(rows)} that are used)")
    return Masked(masked.names, used, classes)


def pixels_of_train(masked: Masked, sets: Mapping[str, Dataset]) -> NDArray[np.int64]:
    """Return the number of pixels of each class (classes,) in the masks that are learned from."""
    counts = [
        masks.count_pixels(sets[name], tuple(np.flatnonzero(of).tolist()))
        for name, of in masked.known.items()
        if name.startswith("train")
    ]
    return np.sum(counts, axis=0)[: len(masked.names)]


def _check_classes(classes: Mapping[str, set[int]], names: list[str], train: str) -> None:
    """Raise UserError for a split with fewer than two classes, or with classes that train lacks.

    `classes` are the numbers that occur in each data set. `train` says which masks of train are meant.
    """
    learned = {c for name, of in classes.items() if name.startswith("train") for c in of}
    splits = {train: learned} | {name: of for name, of in classes.items() if not name.startswith("train")}
    for split, of in splits.items():
        if len(of) < 2:
            only = f"one class, {one_line(names[min(of)])}" if of else "no class"
            raise UserError(
                f"the masks of {split} hold {only}, so nothing can be learned or measured on them; use masks "
                f"with several classes (where {masks.IGNORED} is an object and not 'not labelled': pack with "
                f"--mask-classes 0=background,{masks.IGNORED}=object)"
            )
        if unknown := [names[c] for c in sorted(of - learned)]:
            some = ", ".join(map(one_line, unknown[:5])) + ", …" * (len(unknown) > 5)
            raise UserError(
                f"{split} has masks with classes that no mask of {train} has: {some}; use masks of train "
                "that have them, or leave them out"
            )


def check_scored(
    split: str,
    dataset: Dataset,
    samples: NDArray[np.int64],
    size: int,
    square: Square | None,
    names: Sequence[str],
) -> None:
    """Raise UserError if the pixels that are scored have fewer than two classes.

    Without a class there is no mIoU, and with a single one it measures nothing. The pixels are those of the
    centred views of samples with a mask, of side `size`; they show a `square` if the images have a physical
    size.
    """
    scales, seen = square and Scales(dataset, square.unit), set[int]()
    for i in samples.tolist():
        mask = masks.read(dataset, i)
        assert mask is not None, "only samples with a mask are scored"
        view = center_mask(mask, size, square, scales.of(i) if scales else None)
        seen |= set(np.unique(view).tolist()) - {masks.IGNORED}
        if len(seen) > 1:
            return
    which = f"one class, {one_line(names[min(seen)])}," if seen else "no class"
    raise UserError(
        f"the masks of {split} ({dataset.path}) hold {which} within the centred squares of the images, which "
        "alone are scored; name another set, or crop its images"
    )


def _names(sets: Mapping[str, Dataset], count: int) -> list[str]:
    """Return the names of at least `count` classes; raises UserError for sets with different classes.

    Masks in tars that others made have no rule, and fit to any set.
    """
    rules = {name: of.description.masks.rule for name, of in sets.items() if of.description.masks is not None}
    first = next(iter(rules), "")
    for name, rule in rules.items():
        own = rules[first]
        same = own.names == rule.names if own.names and rule.names else _plain(own) and _plain(rule)
        if not same:
            both = (", ".join(map(one_line, of.names)) or "0, 1, …" for of in (own, rule))
            raise UserError(
                f"the masks of {first} have the classes {next(both)}, and those of {name} {next(both)}; pack "
                "both with the same --mask-classes"
            )
    # Those of test alone do not count, because the training does not see test.
    given = (rule.names for name, rule in rules.items() if name != "test" and rule.names)
    names = next(given, [])
    return [*names, *map(str, range(len(names), count))]


def _plain(rule: MaskRule) -> bool:
    """Return whether the values of the packed files are the numbers of the classes."""
    return rule.values == list(range(len(rule.values)))


def fingerprint(dataset: Dataset, names: list[str], known: NDArray[np.bool_]) -> str:
    """Return a hash of the masks of a data set that a run learns from or is scored on."""
    digest = hashlib.sha256(json.dumps([dataset.fingerprint, names]).encode())
    digest.update(np.ascontiguousarray(known).tobytes())
    return digest.hexdigest()[:16]


def check_views_of_masks(config: Config, objective: SupervisedConfig) -> None:
    """Raise UserError for views of images whose masks cannot be cut, where masks are predicted."""
    if not objective.segments:
        return
    resolutions = config.views.resolutions()
    if len(resolutions) > 1 or resolutions[0].views > 1:
        raise UserError(
            "objective.task=segmentation learns from one view of each image; set views.global_views=1 "
            "views.local_views=0"
        )
    if config.augment.rotation_probability or config.views.actions:
        raise UserError(
            "objective.task=segmentation cannot turn masks by any angle; set augment.rotation_probability=0 "
            "views.actions=[], and use augment.quarter_turns"
        )
