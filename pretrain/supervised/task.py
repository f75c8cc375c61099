"""What a supervised run predicts: the targets of its images, and the data set that it is scored on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.channel_names import placed
from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.pixels import convertible
from data_pipeline.targets.target_values import Kind
from data_pipeline.targets.targets import Targets, aligned, fingerprint, load_targets, of_labels
from isotorus.errors import UserError
from isotorus.randomness import generator
from pretrain.methods.config import CHOICE, SupervisedConfig, TargetsConfig
from pretrain.supervised.masks import choose, pixels_of_train, read_masks
from pretrain.supervised.masks import fingerprint as fingerprint_of_masks


@dataclass(frozen=True)
class Task:
    """The targets of a run's images, in the order of the concatenated data sets, and of val."""

    kind: Kind | Literal["segmentation"]
    names: list[str]
    """Names of the classes or columns."""
    targets: NDArray[np.float32]
    """One-hot classes, 0s and 1s, or standardised numbers (n, outputs); NaN for images without a target.
    (n, 0) where masks are predicted, which the loader reads with the images."""
    known: NDArray[np.bool_]
    """Which images (n,) have a target, and are trained on."""
    class_weight: NDArray[np.float32]
    """Weight of an image, or a pixel, of each class (outputs,) in the loss."""
    center: NDArray[np.float64]
    """Mean (outputs,) of the numbers of train, which is added to predictions again; 0 for other tasks."""
    scale: NDArray[np.float64]
    """Standard deviation (outputs,) of the numbers of train; 1 for other tasks."""
    val: Dataset
    val_rows: NDArray[np.int64]
    """The samples of val that have a target."""
    val_y: NDArray[Any]
    """Their targets, as in `Targets.values`; (n, 0) for masks."""
    fingerprint: str
    """A hash of all targets."""

    def describe(self) -> dict[str, Any]:
        """Return the entry `supervised` of encoder.json."""
        numbers = {"center": self.center.tolist(), "scale": self.scale.tolist()}
        return {"task": self.kind, "names": self.names, **numbers, "fingerprint": self.fingerprint}

    def in_units(self, predicted: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return predictions of standardised numbers (n, outputs) as numbers; others as they are."""
        if self.kind != "regression":
            return predicted.astype(np.float64)
        return predicted.astype(np.float64) * self.scale + self.center


def read_task(
    config: SupervisedConfig,
    datasets: Sequence[Dataset],
    channels: int,
    channel_names: list[str] | None = None,
) -> Task:
    """Read the targets of train and val; raises UserError for targets that no run can learn from.

    `channels` is the number of the encoder's channels, and `channel_names` are their names, if it has any.
    """
    val = Dataset(config.val)
    if channel_names is not None:
        placed(val, channel_names)
    elif not convertible(val.channels, channels):
        raise UserError(
            f"objective.val: the images in {val.path} have {val.channels} channels, those of train "
            f"{channels}; name data sets with the same channels"
        )
    sets = {f"train-{i}": dataset for i, dataset in enumerate(datasets)} | {"val": val}
    if config.segments:
        return _of_masks(config, sets)
    assert config.task != "segmentation"
    found = read_targets(config.targets, config.task, sets)
    train = some(_joined([found[name] for name in sets if name != "val"]), config.targets)
    check_targets({"train": train, "val": found["val"]})
    names = train.names
    _check_outputs(config, names)
    outputs = len(names)
    center, scale, weight = np.zeros(outputs), np.ones(outputs), np.ones(outputs)
    if config.task == "multiclass":
        values = np.eye(outputs)[np.where(train.known, train.values, 0)]
        if config.balanced:
            weight = _balancing(np.bincount(train.values[train.known], minlength=outputs))
    else:
        values = train.values.astype(np.float64)
        if config.task == "regression":
            center, deviation = values[train.known].mean(0), values[train.known].std(0)
            scale = np.where(deviation > 0, deviation, 1.0)
            values = (values - center) / scale
    values[~train.known] = np.nan
    judged = found["val"]
    return Task(
        kind=config.task,
        names=names,
        targets=values.astype(np.float32),
        known=train.known,
        class_weight=weight.astype(np.float32),
        center=center,
        scale=scale,
        val=val,
        val_rows=np.flatnonzero(judged.known),
        val_y=judged.values[judged.known],
        fingerprint=f"{fingerprint(train)}-{fingerprint(judged)}",
    )


def _of_masks(config: SupervisedConfig, sets: dict[str, Dataset]) -> Task:
    """Return the task of predicting the masks of data sets; raises UserError for masks that are unfit."""
    found = choose(read_masks(sets), sets, config.targets)
    names, used = found.names, found.known
    _check_outputs(config, names)
    trained = np.concatenate([of for name, of in used.items() if name != "val"])
    val_rows, outputs = np.flatnonzero(used["val"]), len(names)
    weight = _balancing(pixels_of_train(found, sets)) if config.balanced else np.ones(outputs)
    prints = [fingerprint_of_masks(sets[name], names, of) for name, of in used.items()]
    return Task(
        kind="segmentation",
        names=names,
        targets=np.zeros((len(trained), 0), np.float32),
        known=trained,
        class_weight=weight.astype(np.float32),
        center=np.zeros(outputs),
        scale=np.ones(outputs),
        val=sets["val"],
        val_rows=val_rows,
        val_y=np.zeros((len(val_rows), 0)),
        fingerprint=f"{'.'.join(prints[:-1])}-{prints[-1]}",
    )


def _balancing(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return weights of classes, given their numbers of images or pixels.

    In the sum over all images or pixels each class then counts the same, and the mean weight is 1.
    """
    weight: NDArray[np.float64] = counts.sum() / (len(counts) * np.maximum(counts, 1))
    return weight


def _check_outputs(config: SupervisedConfig, names: list[str]) -> None:
    """Raise UserError unless the configuration has an output for each class or column."""
    if len(names) != config.outputs:
        raise UserError(
            f"objective.outputs={config.outputs}, but train and val have {len(names)} "
            f"{'columns' if config.task in ('multilabel', 'regression') else 'classes'} "
            f"({', '.join(names[:5])}); use objective.outputs={len(names)}"
        )


def read_targets(of: TargetsConfig, kind: Kind | None, sets: dict[str, Dataset]) -> dict[str, Targets]:
    """Return the targets of data sets by name, with the classes of all of them; raises UserError.

    Without `kind`, the values decide it.
    """
    if of.file is None:
        found = {name: of_labels(dataset, kind) for name, dataset in sets.items()}
    else:
        arguments = Path(of.file), of.key_column, of.columns, kind, of.missing
        found = {name: load_targets(dataset, *arguments) for name, dataset in sets.items()}
    try:
        return aligned(found)
    except ValueError as error:
        raise UserError(f"{error}; name data sets with the same targets") from None


def some(train: Targets, of: TargetsConfig) -> Targets:
    """Return the targets of train with only `of.labels` of them known, the same share of each class."""
    known = generator(of.seed, CHOICE).permutation(np.flatnonzero(train.known))
    if of.labels is None or of.labels >= len(known):
        return train
    if train.kind == "multiclass":
        known = known[np.argsort(train.values[known], kind="stable")]
    # The rows are sorted by class, so rows at equal distances have the same share of each class.
    chosen = known[np.arange(of.labels) * len(known) // of.labels]
    return replace(train, known=np.isin(np.arange(len(train.known)), chosen))


def check_targets(targets: dict[str, Targets]) -> None:
    """Raise UserError for a split without targets, with one class only, or with classes that train lacks."""
    for split in sorted(targets, key=lambda name: name != "train"):
        of = targets[split]
        if not of.known.any():
            raise UserError(
                f"{split} has no labels; pack it with --labels, or masks with --masks, or name a table with "
                "--targets and --target-columns"
            )
        values = np.unique(of.values[of.known], axis=0)
        if len(values) == 1:
            only = f"one class, {of.names[values[0]]}" if of.kind == "multiclass" else "the same targets"
            raise UserError(
                f"all labelled images of {split} have {only}, so nothing can be learned or measured on it; "
                "name a data set with several"
            )
        if of.kind == "multiclass" and split != "train":
            learned = np.unique(targets["train"].values[targets["train"].known])
            if unknown := sorted(set(values.tolist()) - set(learned.tolist())):
                names = ", ".join(of.names[i] for i in unknown[:5]) + ", …" * (len(unknown) > 5)
                raise UserError(
                    f"{split} has classes of which train has no labelled image: {names}; add some to train, "
                    "or leave them out"
                )


def _joined(parts: Sequence[Targets]) -> Targets:
    """Return the targets of several data sets as those of one."""
    first = parts[0]
    return Targets(
        first.kind,
        first.names,
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.known for part in parts]),
    )
