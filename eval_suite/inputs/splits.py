"""The packed data sets of an evaluation and the purpose of each."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.dataset.index import Dataset
from data_pipeline.targets.target_values import Kind
from data_pipeline.targets.targets import Targets, aligned, load_targets, of_labels
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
    splits: Splits,
    file: str | None,
    key_column: str,
    columns: Sequence[str],
    kind: Kind | None,
    missing: Sequence[str] | None = None,
) -> dict[str, Targets]:
    """Return the targets of each split: columns of a file, or without one the packed labels.

    Classes are the same in all splits, joined by name. Raises UserError if the labelled samples of a split
    have no class in common with those of train.
    """
    if file is None:
        targets = {name: of_labels(data, kind) for name, data in splits.items().items()}
    else:
        targets = {
            name: load_targets(data, file, key_column, columns, kind, missing)
            for name, data in splits.items().items()
        }
    try:
        joined = aligned(targets)
    except ValueError as error:
        raise UserError(f"{error}; give the kind with --target-kind, or labels with --targets") from None
    train = targets["train"]
    for name, of in targets.items():
        if train.kind == "multiclass" and train.names and of.names and not set(of.names) & set(train.names):
            raise UserError(
                f"train and {name} have different classes, none in common ({_some(train.names)}; "
                f"{_some(of.names)}); name data sets with the same labels"
            )
    return joined


def open_splits(train: str, val: str, test: str | None) -> Splits:
    """Open the data sets; raises UserError if one cannot be opened."""
    return Splits(Dataset(train), Dataset(val), Dataset(test) if test else None)


def _some(names: Sequence[str], limit: int = 4) -> str:
    """Return the first names, as one text."""
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
