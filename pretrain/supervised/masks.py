"""Training on masks: which images have one, the classes of their pixels, and which views can have masks."""

import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset import masks
from data_pipeline.dataset.index import Dataset
from isotorus.errors import UserError, one_line
from pretrain.config import Config
from pretrain.methods.config import SupervisedConfig


class Masked(NamedTuple):
    """The masks of several data sets."""

    names: list[str]
    """Names of the classes, in the order of their numbers."""
    known: dict[str, NDArray[np.bool_]]
    """Which samples (n,) have a mask, by the name of the data set."""


def read_masks(sets: Mapping[str, Dataset]) -> Masked:
    """Return the masks of data sets whose names begin with that of their split: train, val or test.

    Raises UserError for a split without masks, with one class only, or with classes that train lacks, and for
    sets whose classes have other names.
    """
    found = {name: masks.find(dataset) for name, dataset in sets.items()}
    learned = {c for name, of in found.items() if name.startswith("train") for c in of.classes}
    names = _names(sets, 1 + max((c for of in found.values() for c in of.classes), default=0))
    for name, (known, classes) in found.items():
        if not known.any():
            raise UserError(f"{name}: {sets[name].path} has no masks; pack its images with --masks FOLDER")
        if len(classes) < 2:
            only = f"one class, {names[classes[0]]}" if classes else "no class"
            raise UserError(
                f"the masks of {name} hold {only}, so nothing can be learned or measured on them; name a set "
                f"with several classes (where {masks.IGNORED} is an object and not 'not labelled': pack with "
                f"--mask-classes 0=background,{masks.IGNORED}=object)"
            )
        if unknown := [names[c] for c in classes if c not in learned]:
            some = ", ".join(map(one_line, unknown[:5])) + ", …" * (len(unknown) > 5)
            raise UserError(
                f"{name} has masks with classes that no mask of train has: {some}; add such images to train, "
                "or leave them out"
            )
    return Masked(names, {name: of.known for name, of in found.items()})


def _names(sets: Mapping[str, Dataset], count: int) -> list[str]:
    """Return the names of at least `count` classes; raises UserError for sets that name them differently."""
    given: dict[str, list[str]] = {}
    for name, dataset in sets.items():
        if dataset.description.masks is not None and dataset.description.masks.rule.names:
            given[name] = dataset.description.masks.rule.names
    first = next(iter(given), "")
    own = given.get(first, [])
    for name, theirs in given.items():
        if theirs != own:
            both = (", ".join(map(one_line, of)) for of in (own, theirs))
            raise UserError(
                f"the masks of {first} have the classes {next(both)}, and those of {name} {next(both)}; pack "
                "both with the same --mask-classes"
            )
    return [*own, *map(str, range(len(own), count))]


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
