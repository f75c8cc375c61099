"""Few-shot classification: what a handful of labelled samples a class is enough for.

The classifier is the nearest class mean of features that are centred by train's mean and scaled to unit
length (Wang et al. 2019, "SimpleShot", arXiv:1911.04623, CL2N). It has no strength to be chosen, for which
ten samples a class leave no honest validation set, and with one shot it is the nearest neighbour. Train's
mean needs no labels.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from eval_suite.usefulness import scores
from eval_suite.usefulness.selection import Unmeasurable
from isotorus.randomness import generator

Array = NDArray[np.floating]
Labels = NDArray[np.integer]


def few_shot(
    train_x: Array,
    train_y: Labels,
    test_x: Array,
    test_y: Labels,
    *,
    shots: int,
    draws: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores over `draws` random choices of `shots` train samples of every class that train has.

    Features are (n, d), labels class indices ≥ 0; a class that only test has counts as never found. The
    choices are a function of (seed, draw, train_y). Returns, for accuracy and balanced_accuracy, the mean
    over draws and under <score>_interval the 95 % interval of that mean by Student's t: it tells how far
    the mean depends on the draws, not on the test samples. Raises Unmeasurable when a class of train has
    fewer samples than `shots`, ValueError when there are fewer than two draws.
    """
    if draws < 2:
        raise ValueError(f"{draws} draws: an interval needs two or more")
    present, y = np.unique(train_y, return_inverse=True)
    if np.bincount(y).min() < shots:
        raise Unmeasurable(f"a class of train has {np.bincount(y).min()} samples, fewer than {shots} shots")
    mean = train_x.mean(axis=0, dtype=np.float64)
    train, test = _unit(train_x - mean), _unit(test_x - mean)
    classes = int(max(present[-1], test_y.max())) + 1
    found: dict[str, list[float]] = {"accuracy": [], "balanced_accuracy": []}
    for chosen in draw(y, shots, draws, seed):
        means = train[chosen].mean(axis=1)
        spread = np.full((len(test), classes), -np.inf)
        spread[:, present] = 2 * test @ means.T - (means**2).sum(axis=1)  # minus the squared distance
        found["accuracy"].append(scores.accuracy(test_y, spread))
        found["balanced_accuracy"].append(scores.balanced_accuracy(test_y, spread))
    result: dict[str, Any] = {"shots": shots, "draws": draws}
    for score, values in found.items():
        middle, half = np.mean(values), t.ppf(0.975, draws - 1) * np.std(values, ddof=1) / draws**0.5
        result |= {score: float(middle), f"{score}_interval": [float(middle - half), float(middle + half)]}
    return result


def draw(y: Labels, shots: int, draws: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Rows (classes, shots) of each draw, without replacement; `y` holds all class indices from 0 up."""
    counts = np.bincount(y)
    starts = np.cumsum([0, *counts[:-1]])
    for number in range(draws):
        shuffled = generator(seed, number).permutation(len(y))
        by_class = shuffled[np.argsort(y[shuffled], kind="stable")]
        yield by_class[starts[:, None] + np.arange(shots)]


def _unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
