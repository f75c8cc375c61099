"""Choosing a setting on the validation split, and the preparation of features that all probes share."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from eval_suite.attempts import Unmeasurable
from eval_suite.features.constant import rounding
from eval_suite.metrics import headlines
from eval_suite.usefulness import label_scores, number_scores, scores

Array = NDArray[np.floating]
FeatureSets = Array | Mapping[str, Array]
"""Features (n, d), or several sets of them for the same n samples, by name."""
JUDGES: Mapping[str, Any] = {
    "multiclass": scores,
    "multilabel": label_scores,
    "regression": number_scores,
}
"""The module that scores predictions, by the kind of targets; each has summary, per_column and bootstrap."""

_Value = TypeVar("_Value")


class Candidate(NamedTuple):
    """One setting with its predictions for val, and functions that predict the other splits."""

    setting: dict[str, Any]
    val: NDArray[np.floating]
    """(n, columns), as `JUDGES` take them."""
    test: Callable[[], NDArray[np.floating]]
    train: Callable[[], NDArray[np.floating]] | None = None
    """Predictions for the samples that it was fitted on; None for a method that holds those samples."""


def choose(
    candidates: Iterable[Candidate],
    val_y: NDArray[Any],
    test_y: NDArray[Any],
    kind: str,
    train_y: NDArray[Any] | None = None,
) -> dict[str, Any]:
    """Choose the candidate that is best on val, and score its predictions for test.

    Candidates are compared by the headline scores of the kind of targets, in the order of
    `eval_suite.metrics`, where nan is below everything; among equals the later candidate is chosen. Returns
    test_<score> for each score; the chosen setting; `val`, the setting and scores of every candidate; with
    `train_y` also `train`, the scores on the samples that were fitted; and `test_scores`, the predictions for
    test.
    """
    judge = JUDGES[kind]
    tried: list[dict[str, Any]] = []
    best: Candidate | None = None
    best_key: tuple[float, ...] = ()
    for candidate in candidates:
        measured = judge.summary(val_y, candidate.val)
        compared = {score: measured[score] for score in headlines(kind)}
        tried.append({**candidate.setting, **compared})
        key = tuple(-np.inf if np.isnan(value) else value for value in compared.values())
        if best is None or key >= best_key:
            best, best_key = candidate, key
    assert best is not None
    predicted = best.test()
    fitted = {} if train_y is None or best.train is None else {"train": judge.summary(train_y, best.train())}
    return {
        **{f"test_{score}": value for score, value in judge.summary(test_y, predicted).items()},
        **best.setting,
        "val": tried,
        **fitted,
        "test_scores": predicted,
    }


def named(x: _Value | Mapping[str, _Value]) -> Mapping[str, _Value]:
    """Return the feature sets by name; a single set without a name gets the name ''."""
    return x if isinstance(x, Mapping) else {"": x}


def label(feature_set: str) -> dict[str, str]:
    """Return the part of a setting that names its feature set; empty for a set without a name."""
    return {"feature_set": feature_set} if feature_set else {}


def count_classes(*labels: NDArray[np.integer]) -> int:
    """Return the largest class index in any of the splits, plus 1."""
    return int(max(y.max() for y in labels)) + 1


def require_two_classes(train_y: NDArray[np.integer]) -> None:
    """Raise Unmeasurable if class indices (n,) are all the same; labels (n, columns) are not checked."""
    if train_y.ndim == 1 and (count := len(np.unique(train_y))) < 2:
        raise Unmeasurable(f"a probe needs two classes or more in train, found {count}")


def standardiser(train_x: Array) -> Callable[[Array], NDArray[np.float64]]:
    """Return a function that subtracts the mean of `train_x` (n, d) and divides by its standard deviation.

    A dimension whose deviation is below a millionth of the largest one is only centred; one whose deviation
    lies within the rounding of its values becomes 0.
    """
    mean, std = train_x.mean(axis=0, dtype=np.float64), train_x.std(axis=0, dtype=np.float64)
    size = np.maximum(train_x.max(axis=0), -train_x.min(axis=0)).astype(np.float64)
    constant = std <= 16 * rounding(train_x) * size  # the mean is rounded as well
    std[std < 1e-6 * std.max()] = 1.0
    std[constant] = np.inf  # only rounding is left of such values, and it must not decide a class
    return lambda x: (x - mean) / std


def unstandardised(
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    standardise: Callable[[Array], NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight (columns, d) and bias (columns,) of a linear layer for features as they are.

    Its outputs are those of the layer of `weight` and `bias` on the standardised features.
    """
    width = weight.shape[1]
    offset = standardise(np.zeros((1, width)))[0]
    scale = standardise(np.ones((1, width)))[0] - offset
    return weight * scale, bias + weight @ offset
