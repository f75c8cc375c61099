"""The score of the probe over the number of labelled images that it is fitted on."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from eval_suite.attempts import Unmeasurable
from eval_suite.usefulness.estimate import Estimates
from eval_suite.usefulness.folds.cross_validation import Array, Method, Predicted, estimates
from eval_suite.usefulness.folds.division import Division, assign
from eval_suite.usefulness.selection import JUDGES
from isotorus.randomness import generator

DRAWS = {20: 4, 50: 2, 100: 2}
"""Number of random choices of labelled images in each fold, by the number of labels; 1 for more labels."""
_LEAST = 2  # images of each class: one to fit, one to choose the settings
_INNER = 2  # parts of the labelled images; each in turn chooses the settings
_WEAK = 0.2  # strength times labels below which a penalty is as good as none, and the fit slow
_MANY = 200  # labels; with more, only the first part chooses, because the others cost too much


def label_curve(
    x: Mapping[str, Array],
    y: NDArray[np.int64],
    division: Division,
    method: Method,
    whole: Predicted,
    *,
    resamples: int,
    seed: int,
) -> Iterator[tuple[int, int, Estimates]]:
    """Yield each number of labels, the number of random choices in each fold, and the scores.

    `x` holds features (n, d) by feature set, `y` class indices (n,), and `whole` the predictions with all
    labels of each fold's training part, which is the last point. The images are drawn within each class from
    (seed, fold, draw); a smaller choice is a part of a larger one. Feature set and setting are chosen by the
    logarithm of the predicted probability, the mean over classes, inside the chosen images.

    The intervals also cover the random choice of images: its variance is that of the change of a score on one
    fold against all labels. At most n (1 − 1/k) / labels of the choices count as independent, for n samples
    in k folds. Raises Unmeasurable if no number of labels is smaller than the training part of a fold.
    """
    fold = division.fold[0]
    parts = [np.flatnonzero(fold != number) for number in range(division.folds)]
    all_labels = min(map(len, parts))
    counts = [count for count in _counts(all_labels) if count >= _LEAST * len(np.unique(y))]
    if not counts:
        raise Unmeasurable(f"folds leave {all_labels} labelled images, no more than the fewest of the curve")
    once = replace(division, fold=division.fold[:1])
    everything = replace(whole, predicted=whole.predicted[:1])
    with_all = _of_folds(everything, y, once)
    for count in counts:
        strong = [strength for strength in method.grid if strength * count >= _WEAK]
        sized = replace(method, grid=strong or method.grid)
        draws = DRAWS.get(count, 1)
        predicted = [np.empty_like(whole.predicted[0]) for _ in range(draws)]
        for number, part in enumerate(parts):
            held = fold == number
            for draw in range(draws):
                rows = part[_draw(y[part], count, seed, number, draw)]
                predicted[draw][held] = _fitted(x, y, division.unit, rows, held, sized, (seed, number, draw))
        found = Predicted(predicted, [], whole.changes, [], {}, True)
        repeated = replace(division, fold=np.repeat(division.fold[:1], draws, axis=0))
        independent = min(draws * division.folds, all_labels / count)
        scored = estimates(found, y, "multiclass", repeated, resamples, seed)
        moved = {
            score: (of - np.tile(with_all[score], draws)) / independent**0.5
            for score, of in _of_folds(found, y, repeated).items()
        }
        yield (
            count,
            draws,
            {score: replace(of, changes=(*of.changes, moved[score])) for score, of in scored.items()},
        )
    yield all_labels, 1, estimates(whole, y, "multiclass", division, resamples, seed)


def _counts(most: int) -> Iterator[int]:
    """Yield 20, 50, 100, 200, 500, … below `most`."""
    power = 10
    while power < most:
        yield from (count for count in (power, 2 * power, 5 * power) if 20 <= count < most)
        power *= 10


def _draw(y: NDArray[np.int64], count: int, seed: int, fold: int, draw: int) -> NDArray[np.int64]:
    """Return about `count` of the samples with classes `y` (n,), with the classes' shares.

    Every class gives at least two samples, or all that it has. With the same `draw`, a smaller choice is a
    part of a larger one.
    """
    shuffled = generator(seed, fold, (0, 0, 0, draw)).permutation(len(y))
    chosen = []
    for label, size in zip(*np.unique(y, return_counts=True), strict=True):
        of = shuffled[y[shuffled] == label]
        chosen.append(of[: max(_LEAST, round(count * size / len(y)))])
    return np.sort(np.concatenate(chosen))


def _fitted(
    x: Mapping[str, Array],
    y: NDArray[np.int64],
    unit: NDArray[np.int64],
    rows: NDArray[np.int64],
    held: NDArray[np.bool_],
    method: Method,
    state: tuple[int, int, int],
) -> Array:
    """Choose on parts of the samples `rows`, fit on all of them, and predict the samples `held`."""
    seed, fold, draw = state
    part = assign(y[rows], unit[rows], _INNER, seed, 1000 * (fold + 1) + draw)
    best: tuple[float, str, int] | None = None
    inner = range(_INNER if len(rows) <= _MANY else 1)
    usable = [
        number for number in inner if len(np.unique(y[rows[part != number]])) > 1 and (part == number).any()
    ]
    for key, of in x.items():
        gained = np.zeros(len(method.grid))
        for number in usable:
            fitted, judged = rows[part != number], rows[part == number]
            predicted, _ = method.predict(key, of[fitted], y[fitted], of[judged], method.grid)
            gained += [_log_probability(y[judged], each) for each in predicted]
        place = int(np.flatnonzero(gained == gained.max())[-1])
        if best is None or gained[place] > best[0]:
            best = gained[place], key, place
    assert best is not None
    _, key, place = best
    (final, *_), _ = method.predict(key, x[key][rows], y[rows], x[key][held], method.grid[place : place + 1])
    return final


def _log_probability(y: NDArray[np.int64], predicted: Array) -> float:
    """Return the mean over classes of the mean logarithm of the probability (n, classes) of the right one."""
    of_right = np.log(np.maximum(predicted[np.arange(len(y)), y], 1e-12))
    return float(np.mean([of_right[y == label].mean() for label in np.unique(y)]))


def _of_folds(found: Predicted, y: NDArray[np.int64], division: Division) -> dict[str, NDArray[np.float64]]:
    """Return each score of every repeat and fold, (repeats × folds,)."""
    scored = [
        JUDGES["multiclass"].summary(y[held], found.predicted[repeat][held]) for repeat, _, held in division
    ]
    return {score: np.array([of[score] for of in scored]) for score in scored[0]}
