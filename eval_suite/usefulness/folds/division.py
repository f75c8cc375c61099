"""The folds of cross-validation: the labelled images of train and val, divided once for all representations.

Images of one group, such as a patient, are in one fold, and so are near copies of each other.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from data_pipeline.targets.targets import Targets, aligned
from eval_suite.attempts import Unmeasurable
from eval_suite.metrics import FEW_LABELS, LEAST_FOLDS, USUAL_FOLDS
from eval_suite.usefulness.resampling import units
from isotorus.randomness import generator

SPLITS = ("train", "val")
_STRATA = 5  # ranges of numbers that every fold has a share of

Codes = Mapping[str, NDArray[np.uint64] | None]
"""Group of each sample (n,) by split, 0 for none; None or absent for a split without groups."""


@dataclass(frozen=True)
class Division:
    """The n labelled samples of train and val, those of train first, and the fold of each."""

    rows: dict[str, NDArray[np.int64]]
    """The samples of each split that are used."""
    targets: Targets
    """Their targets; all are known."""
    unit: NDArray[np.int64]
    """Number of the group of each sample (n,), from 0 up; a sample without a group has one of its own."""
    fold: NDArray[np.int64]
    """Fold of each sample in each repeat (repeats, n)."""
    about: dict[str, Any]
    """What results.json says about the folds."""

    @property
    def folds(self) -> int:
        """Number of folds."""
        return int(self.fold.max()) + 1

    def features(self, by_split: Mapping[str, NDArray[np.floating]]) -> NDArray[np.floating]:
        """Return the features (n, d) of the samples, given those of all samples by split."""
        return np.concatenate([by_split[split][rows] for split, rows in self.rows.items()])

    def __iter__(self) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
        """Yield each repeat and fold, and which samples (n,) the fold holds."""
        for repeat, fold in enumerate(self.fold):
            for number in range(self.folds):
                yield repeat, number, fold == number


def wanted(targets: Mapping[str, Targets], folds: int | None) -> int:
    """Return the number of folds to use, 0 for a single split; `folds` is None where nobody chose it."""
    if folds is not None:
        return folds
    labelled = sum(int(targets[split].known.sum()) for split in SPLITS if split in targets)
    return USUAL_FOLDS if 0 < labelled < FEW_LABELS else 0


def divide(
    targets: Mapping[str, Targets], folds: int, repeats: int, seed: int, copies: Sequence[Codes] = ()
) -> Division:
    """Divide the labelled samples of train and val into `folds` folds, `repeats` times.

    `copies` are groups of copies; they and the groups of the targets are joined where they share a sample.
    The shares of the classes are similar in all folds (stratified), as far as the groups allow. Fewer folds
    are used if some would have fewer than two classes. A class whose samples are all of one group is left
    out, because it cannot be fitted and scored.

    Raises Unmeasurable if three folds cannot be made.
    """
    present = {split: of for split, of in targets.items() if split in SPLITS and of.known.any()}
    if not present:
        raise Unmeasurable("neither train nor val has labels")
    try:
        joined = aligned(present)
    except ValueError as error:
        raise Unmeasurable(str(error)) from None
    rows = {split: np.flatnonzero(of.known) for split, of in joined.items()}
    given = _joined(rows, {split: of.groups for split, of in joined.items()})
    copied = [_joined(rows, codes) for codes in copies]
    first = next(iter(joined.values()))
    values = np.concatenate([of.values[rows[split]] for split, of in joined.items()])
    unit = together(given, *copied)

    names: list[str] = []
    if first.kind == "multiclass":
        spread = np.array([len(np.unique(unit[values == c])) for c in range(len(first.names))])
        names = [first.names[c] for c in np.flatnonzero(spread == 1)]
        if (spread > 1).sum() < 2:
            raise Unmeasurable(_why_not(first.names, spread))
        used = (spread > 1)[values]
        ends = np.cumsum([0, *map(len, rows.values())])
        rows = {s: r[used[a:b]] for (s, r), a, b in zip(rows.items(), ends, ends[1:], strict=False)}
        values, unit = values[used], np.unique(unit[used], return_inverse=True)[1]
    number = int(unit.max()) + 1
    if number < LEAST_FOLDS:
        raise Unmeasurable(f"all labelled images are of {number} group{'s' * (number > 1)}; folds need 3")
    strata = _strata(values, first.kind)
    fold = None
    for count in range(min(folds, number), LEAST_FOLDS - 1, -1):
        fold = np.stack([assign(strata, unit, count, seed, repeat) for repeat in range(repeats)])
        if first.kind != "multiclass" or _two_classes_everywhere(values, fold):
            break
        fold = None
    if fold is None:
        raise Unmeasurable("groups cannot be split into 3 folds that all have two classes")
    about = {
        "folds": count,
        "asked_for": folds,
        "repeats": repeats,
        "samples": len(values),
        "groups": number,
        "copies": _alike(copied),
        "classes_left_out": names,
    }
    targets_used = replace(
        first, values=values, known=np.ones(len(values), dtype=bool), groups=None, without_row=0
    )
    return Division(rows, targets_used, unit, fold, about)


def together(*codes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return a number from 0 up for the group of each sample (n,), where several groupings are joined.

    Samples are in one group if a chain of groups of any of the `codes` (n,) connects them; 0 is no group.
    """
    n = len(codes[0])
    ends = [units(code) for code in codes]
    starts = np.cumsum([n, *(int(end.max(initial=-1)) + 1 for end in ends)])
    edges = np.concatenate([end + start for end, start in zip(ends, starts, strict=False)])
    sample = np.tile(np.arange(n), len(codes))
    graph = coo_array((np.ones(len(edges)), (sample, edges)), shape=(starts[-1], starts[-1]))
    component = connected_components(graph, directed=False)[1][:n]
    return np.unique(component, return_inverse=True)[1].astype(np.int64)


def _alike(copied: Sequence[NDArray[np.uint64]]) -> int:
    """Count the samples that have a copy among the others."""
    if not copied:
        return 0
    unit = together(*copied)
    return int((np.bincount(unit)[unit] > 1).sum())


def sentence(about: Mapping[str, Any]) -> str | None:
    """Say in one line where the folds differ from what was asked for; None if they do not."""
    said = []
    if about["folds"] < about["asked_for"]:
        said.append(
            f"{about['folds']} folds instead of {about['asked_for']}, as more would leave one without two "
            "classes or groups"
        )
    if names := about["classes_left_out"]:
        some = ", ".join(names[:5]) + ", …" * (len(names) > 5)
        said.append(f"{some} left out of the folds, as all images of such a class are of one group")
    return "; ".join(said) or None


def _joined(rows: Mapping[str, NDArray[np.int64]], codes: Codes) -> NDArray[np.uint64]:
    """Return the groups of the used samples of all splits, (n,); a split without groups has zeros."""
    parts = []
    for split, used in rows.items():
        of = codes.get(split)
        parts.append(np.zeros(len(used), np.uint64) if of is None else of[used])
    return np.concatenate(parts)


def _strata(values: NDArray[Any], kind: str) -> NDArray[np.int64]:
    """Return for each sample (n,) the stratum that every fold gets a share of.

    For classes it is the class. For labels that occur together it is the rarest label of the sample. For
    numbers it is the fifth of the samples, by the first column, in which the sample lies.
    """
    if kind == "multiclass":
        return values
    if kind == "multilabel":
        common = np.where(values > 0, values.sum(axis=0), len(values) + 1)
        return np.where(values.any(axis=1), common.argmin(axis=1), -1)
    ranks = np.argsort(np.argsort(values[:, 0], kind="stable"), kind="stable")
    return ranks * _STRATA // len(values)


def assign(
    strata: NDArray[np.int64], unit: NDArray[np.int64], folds: int, seed: int, repeat: int
) -> NDArray[np.int64]:
    """Return the fold of each sample (n,)."""
    state = int(generator(seed, repeat).integers(2**31))
    fold = np.empty(len(strata), dtype=np.int64)
    # The splitter for groups takes half a second for 2,000 samples.
    alone = len(np.unique(unit)) == len(unit)
    kind = StratifiedKFold if alone else StratifiedGroupKFold
    splitter = kind(folds, shuffle=True, random_state=state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer samples than folds
        for number, (_, held) in enumerate(splitter.split(strata, strata, unit)):
            fold[held] = number
    return fold


def _two_classes_everywhere(values: NDArray[np.int64], fold: NDArray[np.int64]) -> bool:
    """Say whether each fold, and the rest without two neighbouring folds, has two classes or more."""
    for of in fold:
        counts = np.zeros((of.max() + 1, values.max() + 1), dtype=np.int64)
        np.add.at(counts, (of, values), 1)
        pairs = counts.sum(axis=0) - counts - np.roll(counts, 1, axis=0)
        if ((counts > 0).sum(axis=1) < 2).any() or ((pairs > 0).sum(axis=1) < 2).any():
            return False
    return True


def _why_not(names: list[str], spread: NDArray[np.int64]) -> str:
    """Say why fewer than two classes can be divided."""
    present = np.flatnonzero(spread)
    if len(present) == 1:
        return f"all labelled samples of train and val are of one class, {names[present[0]]}"
    single = names[int(np.flatnonzero(spread == 1)[0])]
    return f"all images of class {single} are of one group or copies of one image, so no fold can hold it out"
