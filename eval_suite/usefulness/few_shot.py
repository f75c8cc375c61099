"""Few-shot classification: accuracy with only a few labelled samples per class.

The classifier assigns the nearest class mean. Features are centred by the mean of train, which needs no
labels, and scaled to length 1 (CL2N of Wang et al. 2019, "SimpleShot", arXiv:1911.04623). It has no
hyperparameter, because ten samples per class are too few to choose one. With one shot it is the nearest
neighbour.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from eval_suite.attempts import Unmeasurable
from eval_suite.usefulness import scores
from eval_suite.usefulness.neighbors import unit
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
    """Score the classifier over `draws` random choices of `shots` train samples from every class.

    Features are (n, d), labels (n,) class indices ≥ 0; a class that is missing in train is never predicted.
    The choices depend only on (seed, draw, train_y). Returns the mean over draws of accuracy and
    balanced_accuracy, and as <score>_interval its 95 % interval by Student's t, which covers the random
    choices but not the choice of test samples. Raises Unmeasurable when a class of train has fewer samples
    than `shots`, and ValueError for fewer than two draws.
    """
    if draws < 2:
        raise ValueError(f"{draws} draws: an interval needs two or more")
    present, y = np.unique(train_y, return_inverse=True)
    if np.bincount(y).min() < shots:
        raise Unmeasurable(f"a class of train has {np.bincount(y).min()} samples, fewer than {shots} shots")
    mean = train_x.mean(axis=0, dtype=np.float64)
    train, test = unit(train_x - mean), unit(test_x - mean)
    classes = int(max(present[-1], test_y.max())) + 1
    values: dict[str, list[float]] = {"accuracy": [], "balanced_accuracy": []}
    for chosen in draw(y, shots, draws, seed):
        means = train[chosen].mean(axis=1)
        spread = np.full((len(test), classes), -np.inf)
        spread[:, present] = 2 * test @ means.T - (means**2).sum(axis=1)  # minus the squared distance
        values["accuracy"].append(scores.accuracy(test_y, spread))
        values["balanced_accuracy"].append(scores.balanced_accuracy(test_y, spread))
    result: dict[str, Any] = {"shots": shots, "draws": draws}
    for score, drawn in values.items():
        middle, half = np.mean(drawn), t.ppf(0.975, draws - 1) * np.std(drawn, ddof=1) / draws**0.5
        result |= {score: float(middle), f"{score}_interval": [float(middle - half), float(middle + half)]}
    return result


def draw(y: Labels, shots: int, draws: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield the chosen rows (classes, shots) of each draw, without replacement.

    `y` (n,) must hold every class index from 0 to the largest one.
    """
    counts = np.bincount(y)
    starts = np.cumsum([0, *counts[:-1]])
    for number in range(draws):
        shuffled = generator(seed, number).permutation(len(y))
        by_class = shuffled[np.argsort(y[shuffled], kind="stable")]
        yield by_class[starts[:, None] + np.arange(shots)]
