"""Cached features on disk: one file for each representation and data set, with an array for each set."""

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isotorus.errors import from_os_error
from isotorus.files import atomic

Features = dict[str, NDArray[np.float32]]
"""Features (n, width) by the name of the feature set, see `eval_suite.features.feature_sets`."""


def load(file: Path, samples: int) -> Features | None:
    """Return cached features; None if there are none or the file is damaged."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            features: Features = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return features if features and all(len(x) == samples for x in features.values()) else None


def save(file: Path, x: Features) -> None:
    """Write features to the cache; raises UserError where the disk refuses."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as stream:
            np.savez(stream, **x)  # type: ignore[arg-type]
    except OSError as error:
        raise from_os_error(error, "keeping features") from error
