"""The data sets that lie in one folder, seen together: one, or the sides of a split."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.description import subsets
from data_pipeline.dataset.index import Dataset

Numbers = NDArray[np.int64]


class Sets:
    """Opens them all; raises what `Dataset` raises. The one called train comes first."""

    def __init__(self, path: str) -> None:
        folders = sorted(subsets(path), key=lambda folder: Path(folder).name != "train") or [path]
        self.datasets = [Dataset(folder) for folder in folders]
        self.names = [Path(folder).name for folder in folders]
        self.sizes = [len(dataset) for dataset in self.datasets]
        self.classes = list(dict.fromkeys(name for dataset in self.datasets for name in dataset.classes))
        # The last entry is that of label -1, no label.
        self._classes = [
            np.array([*map(self.classes.index, dataset.classes), -1]) for dataset in self.datasets
        ]

        self.depth: Literal[8, 16] = 16 if any(dataset.depth == 16 for dataset in self.datasets) else 8

    def __len__(self) -> int:
        return sum(self.sizes)

    def labels(self, dataset: Numbers, index: Numbers) -> Numbers:
        """Indices into `classes` of the samples `index` (n,) of sets `dataset` (n,); -1 without a label."""
        labels = np.empty(len(index), dtype=np.int64)
        for number, classes in enumerate(self._classes):
            here = dataset == number
            labels[here] = classes[self.datasets[number].labels[index[here]]]
        return labels

    def class_counts(self) -> Numbers:
        """Samples by set and class (sets, classes)."""
        counts = np.zeros((len(self.datasets), len(self.classes)), dtype=np.int64)
        for row, classes, dataset in zip(counts, self._classes, self.datasets, strict=True):
            row[classes[:-1]] = dataset.description.class_counts
        return counts

    def column(self, name: str) -> NDArray[Any]:
        """A column of the index, for all samples of all sets."""
        return np.concatenate([dataset.rows[name] for dataset in self.datasets])

    def place(self, dataset: int, index: int) -> str:
        """Where a sample belongs, in words: its set if there are several, its class if there are any."""
        label = int(self.labels(np.array([dataset]), np.array([index]))[0])
        words = [self.names[dataset]] if len(self.datasets) > 1 else []
        if self.classes:
            words.append(self.classes[label] if label >= 0 else "unlabelled")
        return " · ".join(words)
