"""What an evaluation is compared with beside its baselines: other encoders, and features from elsewhere."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.index import Dataset
from data_pipeline.targets.targets import key_hashes
from eval_suite.inputs import find
from eval_suite.inputs import vectors as files
from eval_suite.inputs.checkpoints import TIMM_WEIGHTS, Checkpoint
from eval_suite.inputs.splits import Splits
from eval_suite.metrics import AVERAGED
from isotorus.errors import UserError
from pretrain.models.description import TIMM_DESCRIPTION

FOLDER = "ISOTORUS_BASELINES"
"""Environment variable: a folder whose timm model folders join every evaluation of a checkpoint."""
_TAKEN = re.compile(f"pretrained|{AVERAGED}|untrained.*|pixels|handmade|projector|angles|geometry")
"""Names of rows and columns that every evaluation may have."""
BySplit = Mapping[str, NDArray[np.floating]]
"""Features (n, d) by split."""


@dataclass(frozen=True)
class Against:
    """Encoders and features, each with a name of its own."""

    encoders: dict[str, Checkpoint] = field(default_factory=dict)
    features: dict[str, BySplit] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    """The inputs of each one's features, for results.json."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Why models of the folder `FOLDER` are left out, by name."""


def with_average(others: Against, checkpoint: Checkpoint) -> Against:
    """Return what a checkpoint is compared with: its averaged weights, if it has any, and `others`.

    Averaged weights that are damaged are left out, since nobody named them.
    """
    average = checkpoint.average
    if average is None:
        return others
    try:
        average.require_fit()
    except UserError as error:
        return replace(others, left_out=others.left_out | {AVERAGED: str(error)})
    encoders, inputs = {AVERAGED: average}, {AVERAGED: _inputs(average)}
    return replace(others, encoders=encoders | others.encoders, inputs=inputs | others.inputs)


def named(given: Sequence[str], splits: Splits, check: Callable[[Checkpoint], None]) -> Against:
    """Open what --against names, and the models of the folder in the environment variable `FOLDER`.

    `check` raises UserError for an encoder that cannot embed the images. A model of the folder that cannot be
    used is left out. Raises UserError if a named one cannot be used.
    """
    found = Against()
    for name in given:
        try:
            if files.is_vectors(name):
                file = files.read(name)
                _add_rows(file, rows_of(file, splits), found)
                continue
            for each in find.find([name]):
                checkpoint = each.for_images_of(*splits.items().values())
                check(checkpoint)
                _add(checkpoint, found)
        except UserError as error:
            raise UserError(f"--against {name}: {error}") from None
    folder = os.environ.get(FOLDER)
    for place in _models(Path(folder), found) if folder else ():
        try:
            (model,) = find.find([str(place)])
            checkpoint = model.for_images_of(*splits.items().values())
            check(checkpoint)
            _add(checkpoint, found)
        except UserError as error:
            found.left_out[f"{FOLDER}/{place.name}"] = str(error)
    return found


def beside(given: Sequence[str], ours: files.Vectors) -> Against:
    """Open the files of features that --against names beside a file that is evaluated, which has no images.

    `features` then has one entry, "", the rows (n, d) in the order of `ours`. Rows are matched by their keys
    if both files have keys; otherwise both files must have the same number of rows, in the same order. Raises
    UserError for anything else.
    """
    found = Against()
    for name in given:
        if not files.is_vectors(name):
            raise UserError(
                f"--against {name} needs images, which {ours.file} does not have; name files of features "
                "with as many rows, or evaluate checkpoints"
            )
        file = files.read(name)
        rows = np.arange(len(file.x))
        if file.keys is not None and ours.keys is not None:
            place = {key: row for row, key in enumerate(file.keys)}
            rows = np.array([place.get(key, -1) for key in ours.keys])
        if len(rows) != len(ours.x) or (rows < 0).any():
            raise UserError(
                f"--against {file.file}: its {len(file.x)} rows are not those of {ours.file}, which has "
                f"{len(ours.x)}; give a row for each, with the same keys or in the same order"
            )
        _add_rows(file, {"": file.x[rows]}, found)
    return found


def _add(checkpoint: Checkpoint, found: Against) -> None:
    """Add an encoder under a name of its own."""
    name = _free(checkpoint.name, found)
    found.encoders[name] = checkpoint
    found.inputs[name] = _inputs(checkpoint)


def _inputs(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what the features of an encoder depend on, for results.json."""
    return {"weights_sha256": checkpoint.weights_sha256, "encoder": checkpoint.encoder.inputs()}


def _add_rows(file: files.Vectors, rows: BySplit, found: Against) -> None:
    """Add the features of a file under a name of their own."""
    name = _free(file.name, found)
    found.features[name] = rows
    found.inputs[name] = {"file_sha256": file.sha256}


def _models(folder: Path, found: Against) -> Iterable[Path]:
    """Return the timm model folders in a folder; says in `left_out` that there are none."""
    models = []
    if folder.is_dir():
        files = (TIMM_DESCRIPTION, TIMM_WEIGHTS)
        models = sorted(p for p in folder.iterdir() if any((p / file).exists() for file in files))
    if not models:
        found.left_out[FOLDER] = f"{folder} has no folder with {TIMM_DESCRIPTION} and {TIMM_WEIGHTS}"
    return models


def rows_of(file: files.Vectors, splits: Splits) -> BySplit:
    """Return the features of the images of each split, in their order.

    Rows are matched by the file's keys. A file without keys has a row for each image, in the order of the
    data sets; its column `split` divides it, or else train comes first, then val, then test. Raises UserError
    if images have no row, or if the numbers differ.
    """
    datasets = splits.items()
    divided = bool((file.split != "train").any())
    if file.keys is not None:
        return {split: file.x[_matched(file, split if divided else None, d)] for split, d in datasets.items()}
    ends = np.cumsum([len(data) for data in datasets.values()])
    rows = {
        split: np.flatnonzero(file.rows(split)) if divided else np.arange(end - len(data), end)
        for (split, data), end in zip(datasets.items(), ends.tolist(), strict=True)
    }
    fits = all(len(rows[split]) == len(data) for split, data in datasets.items())
    if not fits or len(file.x) != ends[-1]:
        counts = ", ".join(f"{split} {len(data)}" for split, data in datasets.items())
        raise UserError(
            f"{len(file.x)} rows without keys, but the images are {counts}; add a "
            "column key with the images' paths, or give a row for each image in their order"
        )
    return {split: file.x[index] for split, index in rows.items()}


def _matched(file: files.Vectors, split: str | None, dataset: Dataset) -> NDArray[np.int64]:
    """Return the row of each image of a data set, among the rows of a split if one is given."""
    assert file.keys is not None
    samples = np.asarray(dataset.rows["key"])
    candidates = np.arange(len(file.x)) if split is None else np.flatnonzero(file.rows(split))
    hashes = key_hashes([file.keys[row] for row in candidates.tolist()], dataset)
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    first, last = np.searchsorted(ordered, samples), np.searchsorted(ordered, samples, side="right")
    for wrong, problem in ((last == first, "no row"), (last > first + 1, "several rows")):
        if wrong.any():
            sample = int(np.flatnonzero(wrong)[0])
            raise UserError(
                f"{int(wrong.sum())} of {len(dataset)} images of {dataset.path} have "
                f"{problem} (the first: {dataset.key(sample)!r}); give one row for each image"
            )
    return candidates[order[first]]


def _free(name: str, found: Against) -> str:
    """Return a name for a row that no other row has, with signs that MLflow takes."""
    name = re.sub(r"[^\w.\- ]+", "_", name)
    taken = {*found.encoders, *found.features}
    numbered = (name, *(f"{name}_{number}" for number in range(2, len(taken) + 3)))
    return next(each for each in numbered if each not in taken and not _TAKEN.fullmatch(each))
