"""The data sets of a folder, seen together: a single one, or those of a split."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.description import subsets
from data_pipeline.dataset.index import Dataset
from data_pipeline.sources import Sources

Numbers = NDArray[np.int64]
"""An array of indices or counts."""


class Sets:
    """Opens all data sets in `path`; the one called "train" comes first. Raises `UserError` as `Dataset`
    does.
    """

    def __init__(self, path: str) -> None:
        folders = sorted(subsets(path), key=lambda folder: Path(folder).name != "train") or [path]
        self.datasets = [Dataset(folder) for folder in folders]
        self.names = [Path(folder).name for folder in folders]
        self._together = Sources(self.datasets, [1.0] * len(self.datasets))
        self.classes = self._together.classes
        self.depth = self._together.depth

    def __len__(self) -> int:
        return len(self._together)

    def labels(self, dataset: Numbers, index: Numbers) -> Numbers:
        """Return the labels of samples `index` (n,) of sets `dataset` (n,) as indices into `classes`; -1
        for no label.
        """
        labels = np.empty(len(index), dtype=np.int64)
        for number, classes in enumerate(self._together.class_numbers):
            here = dataset == number
            labels[here] = classes[self.datasets[number].labels[index[here]]]
        return labels

    def class_counts(self) -> Numbers:
        """Return the number of samples by set and class, (sets, classes)."""
        counts = np.zeros((len(self.datasets), len(self.classes)), dtype=np.int64)
        for row, classes, dataset in zip(counts, self._together.class_numbers, self.datasets, strict=True):
            row[classes[:-1]] = dataset.description.class_counts
        return counts

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of the index for all samples of all sets."""
        return np.concatenate([dataset.rows[name] for dataset in self.datasets])

    def place(self, dataset: int, index: int) -> str:
        """Describe a sample by its set, if there are several, and its class, if there are any."""
        label = int(self.labels(np.array([dataset]), np.array([index]))[0])
        words = [self.names[dataset]] if len(self.datasets) > 1 else []
        if self.classes:
            words.append(self.classes[label] if label >= 0 else "unlabelled")
        return " · ".join(words)
