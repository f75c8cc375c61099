"""Cached features on disk: one file for each representation and data set, with an array for each set."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval_suite.features.npz import NotRows, Rows
from eval_suite.inputs import seals
from isotorus import foreign_files
from isotorus.errors import UserError, from_os_error
from isotorus.files import atomic, remove_leftovers

FOLDER = "cache"
"""Folder of the features that evaluations share, beside the folders of their results."""
Features = dict[str, NDArray[np.float32]]
"""Features (n, width) by the name of the feature set, see `eval_suite.features.feature_sets`."""


def load(file: Path, samples: int) -> Features | None:
    """Return cached features; None if there are none, or if they are damaged or another user made them."""
    if not seals.holds(_seal(file), [file]):
        return None
    try:
        with foreign_files.open_binary(file) as stream, np.load(stream, allow_pickle=False) as stored:
            features: Features = {name: stored[name] for name in stored.files}
    except (OSError, UserError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return features if features and all(len(x) == samples for x in features.values()) else None


def rows(file: Path, samples: int, name: str, count: int) -> Iterator[NDArray[np.float32]] | None:
    """Return cached features (at most `count`, width) of one set, piece after piece, without reading all of
    them; None if there are not any, or if they are damaged or another user made them.
    """
    if not seals.holds(_seal(file), [file]):
        return None
    try:
        stored = Rows(file, name)
    except (OSError, UserError, NotRows):
        return None
    return stored.pieces(count) if stored.shape[0] == samples and len(stored.shape) == 2 else None


def save(file: Path, x: Features) -> None:
    """Write features to the cache; raises UserError where the disk refuses."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(file.parent, ("*.npz", "*.npz.seal"))
        with atomic(file) as stream:
            np.savez(stream, **x)  # type: ignore[arg-type]
        seals.write(_seal(file), [file])
    except OSError as error:
        raise from_os_error(error, "keeping features") from error


def _seal(file: Path) -> Path:
    """Return the path of the seal beside a file of features."""
    return file.with_name(f"{file.name}.seal")
