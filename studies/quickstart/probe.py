"""Out-of-fold scores of a logistic probe, with near copies on one side of every division.

Five folds; in each fold n labels are drawn from the other four (all of them, or several draws of
few), the features are standardised and the probe's strength is chosen on those labels alone. AUROC is
computed within a fold and averaged over folds, repeats and draws.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split
from sklearn.preprocessing import StandardScaler

FOLDS, REPEATS = 5, 1
STRENGTHS = np.logspace(-4, 0, 9)
LABELS = {"20": 20, "100": 100, "1000": 1000, "all": None}
DRAWS = {"20": 4, "100": 4, "1000": 1, "all": 1}
"""Draws of labels in each fold."""
INNER = 4
BOOTSTRAPS = 400
_GROUPED_FROM = 500
"""With fewer labels the inner folds do not look at groups: near copies among so few are rare."""


@dataclass(frozen=True)
class OutOfFold:
    """Scores of every scored cell by probes that did not see it."""

    scores: NDArray[np.float32]
    """(repeats, draws, n)"""
    folds: NDArray[np.int8]
    """(repeats, n): the fold that a cell is held out in."""

    def auroc(self, y: NDArray[np.int64], weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """The mean over repeats, draws and folds for each row of `weights` (b, n), by default of ones."""
        weights = np.ones((1, len(y))) if weights is None else weights
        total, count = np.zeros(len(weights)), 0
        for repeat, fold_of in enumerate(self.folds):
            for fold in range(FOLDS):
                held = np.flatnonzero(fold_of == fold)
                for scores in self.scores[repeat]:
                    total += weighted_auroc(scores[held], y[held], weights[:, held])
                    count += 1
        return total / count


def weighted_auroc(
    scores: NDArray[np.float32], y: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """AUROC of scores (n,) of classes (n,) for each row of weights (b, n); ties count half."""
    order = np.argsort(scores, kind="stable")
    ordered, positive, w = scores[order], y[order] == 1, weights[:, order]
    negatives = np.where(positive, 0, w)
    below = np.cumsum(negatives, axis=1)
    first = np.searchsorted(ordered, ordered, side="left")
    last = np.searchsorted(ordered, ordered, side="right")
    padded = np.pad(below, ((0, 0), (1, 0)))
    ahead = (padded[:, first] + padded[:, last]) / 2
    won = (np.where(positive, w, 0) * ahead).sum(axis=1)
    return won / (np.where(positive, w, 0).sum(axis=1) * negatives.sum(axis=1))


def divisions(y: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int8]:
    """(repeats, n): the fold of each cell."""
    folds = np.empty((REPEATS, len(y)), dtype=np.int8)
    for repeat in range(REPEATS):
        splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=repeat)
        for fold, (_, held) in enumerate(splitter.split(y, y, groups)):
            folds[repeat, held] = fold
    return folds


def draw(
    y: NDArray[np.int64], candidates: NDArray[np.int64], labels: int | None, seed: tuple[int, ...]
) -> NDArray[np.int64]:
    """So many of the candidates, each class in its share."""
    if labels is None or labels >= len(candidates):
        return candidates
    state = int(np.random.default_rng(seed).integers(2**31))
    chosen, _ = train_test_split(candidates, train_size=labels, stratify=y[candidates], random_state=state)
    return np.asarray(chosen)


def fit_predict(
    x: NDArray[np.float32], y: NDArray[np.int64], groups: NDArray[np.int64], unseen: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Decision values of `unseen` by a probe whose strength is chosen by log-loss within (x, y)."""
    scaler = StandardScaler().fit(x)
    x, unseen = scaler.transform(x), scaler.transform(unseen)
    if len(x) < x.shape[1]:  # a turn of the axes changes no probe; those on which all x are 0 are left out
        axes = np.linalg.svd(x, full_matrices=False)[2].T
        x, unseen = x @ axes, unseen @ axes
    few = min(INNER, int(np.bincount(y).min()))
    if len(y) >= _GROUPED_FROM:
        inner = list(StratifiedGroupKFold(INNER, shuffle=True, random_state=0).split(x, y, groups))
    else:
        inner = list(StratifiedKFold(few, shuffle=True, random_state=0).split(x, y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = LogisticRegressionCV(
            Cs=STRENGTHS, cv=inner, scoring="neg_log_loss", tol=1e-3, max_iter=300, refit=False
        ).fit(x, y)
        strength = float(np.atleast_1d(search.C_)[0])
        probe = LogisticRegression(C=strength, tol=1e-3, max_iter=300).fit(x, y)
    return np.asarray(probe.decision_function(unseen), dtype=np.float32)


def out_of_fold(
    x: NDArray[np.float32], y: NDArray[np.int64], groups: NDArray[np.int64], labels: str
) -> OutOfFold:
    """Scores of all cells of features (n, d), with `labels` of `LABELS` for each probe."""
    folds = divisions(y, groups)
    scores = np.empty((REPEATS, DRAWS[labels], len(y)), dtype=np.float32)
    for repeat in range(REPEATS):
        for fold in range(FOLDS):
            held, others = np.flatnonzero(folds[repeat] == fold), np.flatnonzero(folds[repeat] != fold)
            for number in range(DRAWS[labels]):
                chosen = draw(y, others, LABELS[labels], (repeat, fold, number))
                scores[repeat, number, held] = fit_predict(x[chosen], y[chosen], groups[chosen], x[held])
    return OutOfFold(scores, folds)


def bootstrap_weights(groups: NDArray[np.int64], seed: int = 0) -> NDArray[np.float64]:
    """(b, n): how often each cell is drawn when groups are drawn with replacement."""
    _, member = np.unique(groups, return_inverse=True)
    count = int(member.max()) + 1
    rng = np.random.default_rng(seed)
    return np.stack(
        [rng.multinomial(count, np.full(count, 1 / count))[member] for _ in range(BOOTSTRAPS)]
    ).astype(np.float64)
