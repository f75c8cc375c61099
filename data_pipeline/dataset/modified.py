"""modified.npy: when each image file was last modified before it was packed; a packed set may lack it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.description import Generation
from isotorus.files import atomic

MODIFIED = "modified.npy"


def read(folder: Path, generation: Generation) -> NDArray[np.int64]:
    """Return the times (n,) of a generation of the set in `folder`, in nanoseconds since the epoch, in the
    order of the index; 0 where a time is not known.
    """
    count = generation.count
    try:
        times = np.load(folder / generation.table(MODIFIED), allow_pickle=False)
    except (OSError, ValueError, EOFError):  # missing, or damaged: then files are compared byte by byte
        times = np.zeros(0, np.int64)
    if times.dtype != np.int64 or times.ndim != 1:
        times = np.zeros(0, np.int64)
    return np.pad(times[:count], (0, max(count - len(times), 0)))  # longer if there are newer generations


def write(path: Path, times: NDArray[np.int64]) -> None:
    """Write the times of a set."""
    with atomic(path) as file:
        np.save(file, times)
