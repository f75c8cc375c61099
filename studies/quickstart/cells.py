"""The cells of the study: pixels, labels, groups of near copies, and the parts that they are put into.

The parts are the study's own, so that nothing is chosen on a test split that earlier work has looked at:
15 % of the groups by a hash are the final test, 15 % val, the others train.
"""

import csv
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse.csgraph import connected_components

from data_pipeline.demo.cells import CLASSES

WORK = Path("runs/study")
"""The folder of what can be made again: packed cells, runs, predictions."""
CLASS_NAMES = {-1: "", 0: "intact", 1: "defective"}
SIDE = 150
COARSE = 50
CORRELATION = 0.9
"""Two cells that correlate at least so much are near copies: see `groups`."""


@dataclass(frozen=True)
class Cells:
    names: list[str]
    labels: NDArray[np.int64]
    """1 for a defect probability of 2/3 or 1, 0 for 0, -1 for 1/3, as in `data_pipeline.demo.cells`."""
    groups: NDArray[np.int64]
    """Near copies share a number."""
    parts: NDArray[np.str_]
    """train, val or test."""

    @property
    def scored(self) -> NDArray[np.int64]:
        """Indices of the labelled cells of train and val."""
        return np.flatnonzero((self.labels >= 0) & (self.parts != "test"))

    @property
    def test(self) -> NDArray[np.int64]:
        """Indices of the labelled cells of the final test."""
        return np.flatnonzero((self.labels >= 0) & (self.parts == "test"))


def folder() -> Path:
    """Return the folder of elpv-dataset's images and labels."""
    found = find_spec("elpv_dataset")
    assert found is not None and found.origin is not None, "pip install elpv-dataset"
    return Path(found.origin).parent / "data"


@cache
def cells() -> Cells:
    """Return all 2,624 cells, in the order of labels.csv."""
    rows = [line.split() for line in (folder() / "labels.csv").read_text().splitlines()]
    names = [row[0] for row in rows]
    numbers = {name: number for number, name in CLASS_NAMES.items()}
    labels = np.array([numbers[CLASSES[row[1]]] for row in rows])
    grouped = groups()
    first = {int(group): names[i] for i, group in reversed(list(enumerate(grouped)))}
    parts = np.array([_part(first[int(group)]) for group in grouped])
    return Cells(names, labels, grouped, parts)


def _part(name: str) -> str:
    place = int.from_bytes(hashlib.sha256(f"fresh-1{name}".encode()).digest()[:8]) / 2**64
    return "test" if place < 0.15 else "val" if place < 0.30 else "train"


@cache
def pixels() -> NDArray[np.uint8]:
    """Return all cells (n, 150, 150), each pixel the mean of 2 × 2."""
    file = WORK / "cells150.npy"
    if not file.exists():
        rows = [line.split()[0] for line in (folder() / "labels.csv").read_text().splitlines()]
        size = (SIDE, SIDE)
        images = [
            np.asarray(Image.open(folder() / row).convert("L").resize(size, Image.Resampling.BOX))
            for row in rows
        ]
        WORK.mkdir(parents=True, exist_ok=True)
        np.save(file, np.stack(images))
    return np.load(file)


def correlations() -> NDArray[np.float32]:
    """Return (n, n): the correlation of every two cells, as they are or with one turned by 180°, the larger.

    Cells are taken at 50 × 50 pixels, with what all cells have in common removed: each image is
    standardised, then the first ten principal components of all images (bars, vignette, brightness) are
    left out, so that only what sets a cell apart is compared.
    """
    small = pixels().reshape(-1, COARSE, 3, COARSE, 3).mean(axis=(2, 4)).astype(np.float32)
    best = np.full((len(small), len(small)), -1, dtype=np.float32)
    rows = _standardised(small.reshape(len(small), -1))
    centre = rows.mean(axis=0)
    _, _, basis = np.linalg.svd((rows - centre)[::4], full_matrices=False)
    own = _special(rows - centre, basis[:10])
    for view in (small, small[:, ::-1, ::-1]):
        other = _special(_standardised(view.reshape(len(small), -1)) - centre, basis[:10])
        np.maximum(best, own @ other.T, out=best)
    np.fill_diagonal(best, 1)
    return best


def _special(rows: NDArray[np.float32], basis: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = _standardised(rows - rows @ basis.T @ basis)
    return (rows / np.sqrt(rows.shape[1])).astype(np.float32)


def _standardised(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(rows.std(axis=1, keepdims=True), 1e-6)


def groups() -> NDArray[np.int64]:
    """Return the number of each cell's group (n,); chains of near copies form one group."""
    file = WORK / "groups.npy"
    if not file.exists():
        _, grouped = connected_components(correlations() >= CORRELATION, directed=False)
        WORK.mkdir(parents=True, exist_ok=True)
        np.save(file, grouped.astype(np.int64))
    return np.load(file)


def prepare() -> None:
    """Write what `data_pipeline pack` reads: the cells at 150 × 150 pixels, and a list of those of train."""
    known = cells()
    images = WORK / "images150" / "images"
    images.mkdir(parents=True, exist_ok=True)
    with (WORK / "train.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "defect"])
        for i in np.flatnonzero(known.parts == "train"):
            Image.fromarray(pixels()[i]).save(WORK / "images150" / known.names[i])
            writer.writerow([known.names[i], CLASS_NAMES[int(known.labels[i])]])


if __name__ == "__main__":
    prepare()
