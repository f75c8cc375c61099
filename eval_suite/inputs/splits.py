"""The packed data sets of an evaluation and the purpose of each."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.dataset.index import Dataset
from eval_suite.inputs.targets import Kind, Targets, load_targets, of_labels
from isotorus.errors import UserError


@dataclass(frozen=True)
class Splits:
    """The data sets that probes are fitted on, settings chosen on, and scores reported on."""

    train: Dataset
    val: Dataset
    test: Dataset | None

    @property
    def reported(self) -> str:
        """The split that scores are reported on."""
        return "test" if self.test is not None else "val"

    def items(self) -> dict[str, Dataset]:
        """Return the data sets by name, train first."""
        named = {"train": self.train, "val": self.val}
        return named if self.test is None else {**named, "test": self.test}


def targets_of(
    splits: Splits, file: str | None, key_column: str, columns: Sequence[str], kind: Kind | None
) -> dict[str, Targets]:
    """Return the targets of each split: columns of a file, or without one the packed labels."""
    if file is None:
        return {name: of_labels(data) for name, data in splits.items().items()}
    return {
        name: load_targets(data, file, key_column, columns, kind) for name, data in splits.items().items()
    }


def open_splits(train: str, val: str, test: str | None) -> Splits:
    """Open the data sets; raises UserError if one cannot be opened or their classes differ."""
    splits = Splits(Dataset(train), Dataset(val), Dataset(test) if test else None)
    labelled = {name: data for name, data in splits.items().items() if data.classes}
    for name, data in labelled.items():
        first, reference = next(iter(labelled.items()))
        if data.classes != reference.classes:
            odd = sorted(set(data.classes) ^ set(reference.classes)) or data.classes
            raise UserError(
                f"{first} and {name} have different classes ({reference.path}, {data.path}: {_some(odd)}); "
                "pack both with the same labels"
            )
    return splits


def _some(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
