"""Cross-validation of one method: every choice is made and fitted without the fold that is scored.

The settings for a fold are chosen on one other fold, after fitting on the rest. Folds are taken in pairs: a
fit without both folds of a pair serves the choice for each of the two. So five folds cost three fits of the
whole grid and five fits of a single setting.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_suite.metrics import headlines
from eval_suite.usefulness import estimate
from eval_suite.usefulness.areas import Counts, once
from eval_suite.usefulness.estimate import Estimate, sampling
from eval_suite.usefulness.folds.division import Division
from eval_suite.usefulness.label_scores import mean_over_columns
from eval_suite.usefulness.resampling import over_all, within_classes
from eval_suite.usefulness.scores import WORK
from eval_suite.usefulness.selection import JUDGES, label

Array = NDArray[np.floating]
Predict = Callable[[str, Array, NDArray[Any], Array, Sequence[Any]], tuple[Sequence[Array], bool]]
"""Fits features and targets of some samples; returns the predictions for others at every value of the grid,
and whether all fits converged. The name is that of the feature set."""


@dataclass(frozen=True)
class Method:
    """What is cross-validated."""

    setting: str
    """Name of the setting that is chosen, such as "l2"."""
    grid: Sequence[Any]
    """Its values; among values with equal scores the last one is chosen."""
    predict: Predict
    on_train: bool = False
    """Whether it is also scored on the samples that it was fitted on."""


@dataclass(frozen=True)
class Predicted:
    """The predictions of a method for every sample by fits without its fold."""

    predicted: list[Array]
    """Predictions (n, columns) of each repeat."""
    chosen: list[dict[str, Any]]
    """The setting of each repeat and fold."""
    changes: list[dict[str, float]]
    """Change of each score on one fold when the fit includes one more fold, for each pair of folds and
    repeat."""
    tried: list[dict[str, Any]]
    """Every setting with its headline scores, averaged over the folds on which settings are chosen."""
    best: dict[str, Any]
    """The setting that is best in `tried`, for a fit on all samples."""
    converged: bool
    train: dict[str, float] = field(default_factory=dict)
    """Scores on the samples that were fitted, mean over folds and repeats; empty without `on_train`."""


def cross_validate(
    x: Mapping[str, Array], y: NDArray[Any], kind: str, division: Division, method: Method
) -> Predicted:
    """Predict all samples; `x` holds features (n, d) by feature set, which is chosen like the setting.

    The best setting has the largest mean of the headline scores of the kind of targets. Balanced accuracy
    alone would have too few different values on a small fold.
    """
    judge = JUDGES[kind]
    candidates = [(name, place) for name in x for place in range(len(method.grid))]
    settings = [{**label(name), method.setting: method.grid[place]} for name, place in candidates]
    found: list[Array] = []
    chosen: list[dict[str, Any]] = []
    changes: list[dict[str, float]] = []
    fitted: list[dict[str, float]] = []
    inner: list[NDArray[np.float64]] = []
    converged = True
    for fold in division.fold:
        on_fold: dict[tuple[int, int], list[dict[str, float]]] = {}
        for pair in _pairs(division.folds):
            held = np.isin(fold, pair)
            scored: dict[int, list[dict[str, float]]] = {number: [] for number in pair}
            for name, of in x.items():
                predicted, fine = method.predict(name, of[~held], y[~held], of[held], method.grid)
                converged &= fine
                for number in pair:
                    here = fold[held] == number
                    scored[number] += [judge.summary(y[held][here], each[here]) for each in predicted]
            for number, other in (pair, pair[::-1]):
                on_fold[other, number] = scored[number]
        inner += [_headlines(on_fold[key], kind) for key in on_fold]
        whole: Array | None = None
        for number in range(division.folds):
            others = [judged for outer, judged in on_fold if outer == number]
            of_candidates = [_headlines(on_fold[number, judged], kind) for judged in others]
            best = _best(np.mean(of_candidates, axis=0))
            name, place = candidates[best]
            held = fold == number
            wanted = held | method.on_train
            (final, *_), fine = method.predict(
                name, x[name][~held], y[~held], x[name][wanted], method.grid[place : place + 1]
            )
            if method.on_train:
                fitted.append(judge.summary(y[~held], final[~held]))
                final = final[held]
            converged &= fine
            chosen.append(settings[best])
            whole = np.empty((len(y), final.shape[1])) if whole is None else whole
            whole[held] = final
            now = judge.summary(y[held], final)
            for judged in others:
                before = on_fold[judged, number][best]
                changes.append({score: now[score] - before[score] for score in now})
        assert whole is not None
        found.append(whole)
    mean = mean_over_columns(np.stack(inner))
    tried = [
        {**setting, **dict(zip(headlines(kind), row, strict=True))}
        for setting, row in zip(settings, mean.tolist(), strict=True)
    ]
    scores = fitted[0] if fitted else {}
    train = {s: float(mean_over_columns(np.array([of[s] for of in fitted]))) for s in scores}
    return Predicted(found, chosen, changes, tried, settings[_best(mean)], converged, train)


def estimates(
    found: Predicted, y: NDArray[Any], kind: str, division: Division, resamples: int, seed: int
) -> dict[str, Estimate]:
    """Return each score: the mean over the folds that hold a class or column, then over classes or columns.

    The bootstrap test sets depend only on the targets, the groups and the seed.
    """
    columns = found.predicted[0].shape[1]
    resamples = int(np.clip(WORK // max(len(y) * columns, 1), min(200, resamples), resamples))
    chunk = max(1, 5_000_000 // len(y))
    groups = division.unit.astype(np.uint64) + 1
    exact = {score: float(of[0]) for score, of in _over_folds(found, y, kind, division, once(len(y))).items()}
    parts = []
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        if kind == "multiclass":
            counts = within_classes(y, count, seed, start, groups)
        else:
            counts = over_all(len(y), resamples, seed, groups)[start : start + count]
        parts.append(_over_folds(found, y, kind, division, counts))
    how = sampling(y, division.unit)
    return {
        score: Estimate(
            value,
            np.concatenate([part[score] for part in parts]),
            (np.array([change[score] for change in found.changes]),),
            how,
        )
        for score, value in exact.items()
    }


def by_class(
    found: Predicted, y: NDArray[Any], kind: str, division: Division, names: Sequence[str]
) -> dict[str, Any]:
    """Return the same as `estimate.by_class` for the first repeat; scores of all repeats within folds."""
    judged = estimate.by_class(y, found.predicted[0], kind, names)
    within = _columns(found, y, kind, division, once(len(y)))
    for place, row in enumerate(judged["per_class"]):
        for score in row.keys() & within.keys():
            row[score] = float(mean_over_columns(within[score][:, place, 0]))
    return judged


def _over_folds(
    found: Predicted, y: NDArray[Any], kind: str, division: Division, counts: Counts
) -> dict[str, NDArray[np.float64]]:
    """Return each score (resamples,); `counts` (resamples, n) is how often each sample is drawn."""
    within = _columns(found, y, kind, division, counts)
    return {score: mean_over_columns(mean_over_columns(of)) for score, of in within.items()}


def _columns(
    found: Predicted, y: NDArray[Any], kind: str, division: Division, counts: Counts
) -> dict[str, NDArray[np.float64]]:
    """Return each score by fold (of all repeats) and by class or column, (folds, columns, resamples)."""
    parts: list[dict[str, NDArray[np.float64]]] = []
    for repeat, _, held in division:
        of = np.ascontiguousarray(counts[:, held])
        parts.append(JUDGES[kind].by_column(y[held], found.predicted[repeat][held], of))
    return {score: np.stack([part[score] for part in parts]) for score in parts[0]}


def _pairs(folds: int) -> Iterator[tuple[int, int]]:
    """Yield pairs that cover all folds; if their number is odd, the first fold is in two pairs."""
    for first in range(0, folds, 2):
        yield first, (first + 1) % folds


def _headlines(scored: Sequence[Mapping[str, float]], kind: str) -> NDArray[np.float64]:
    """Return the headline scores of every candidate, (candidates, scores)."""
    return np.array([[of[score] for score in headlines(kind)] for of in scored])


def _best(values: NDArray[np.float64]) -> int:
    """Return the last of the candidates (candidates, scores) whose mean over the scores is largest."""
    mean = mean_over_columns(values.T)
    mean = np.where(np.isnan(mean), -np.inf, mean)
    return int(np.flatnonzero(mean == mean.max())[-1])
