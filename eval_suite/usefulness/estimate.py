"""Scores with the samples behind their intervals, so that two scores can be subtracted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from eval_suite.usefulness import scores
from eval_suite.usefulness.resampling import Groups, most_frequent
from eval_suite.usefulness.selection import JUDGES

MOST_CLASSES = 100
"""Largest number of classes for which the results hold the confusion matrix."""
RANGE = {"r2": (-np.inf, 1.0), "spearman": (-1.0, 1.0), "mae": (0.0, np.inf)}
"""Smallest and largest value of each score; those of other scores are 0 and 1."""


@dataclass(frozen=True)
class Sampling:
    """How precisely a bootstrap over groups within classes can know a variance."""

    freedom: float
    """Degrees of freedom."""
    inflation: float
    """Variance of new samples, divided by that of the bootstrap's samples."""


@dataclass(frozen=True)
class Estimate:
    """A score, its values on bootstrap test sets, and for folds its changes with the training samples."""

    value: float
    resampled: NDArray[np.float64]
    """The score on each bootstrap test set, (resamples,)."""
    changes: tuple[NDArray[np.float64], ...] = ()
    """For folds: how the score on a fold changes with other training samples, one array for each cause. The
    first array holds the changes (pairs,) when one more fold is added to the training samples."""
    sampling: Sampling | None = None
    """None for a single split."""

    def __sub__(self, other: "Estimate") -> "Estimate":
        changes = tuple(a - b for a, b in zip(self.changes, other.changes, strict=True))
        return Estimate(self.value - other.value, self.resampled - other.resampled, changes, self.sampling)

    def interval(self, score: str | None = None) -> list[float]:
        """Return the 95 % interval [low, high] within the range of the named `score`; None for a difference.

        For a single split it is the percentile interval of the bootstrap. For folds it is an interval for the
        expected score of a probe that is fitted on all folds but one: value ± t √(c·(V + D)). V is the
        variance over bootstrap test sets, with the probes unchanged. D accounts for the choice of the
        training samples: it is the variance of the `changes`, summed over their causes. That D enters with a
        factor of 1 was found in studies/coverage. c corrects the bootstrap for drawing from few groups, and t
        is the 97.5 % quantile of Student's distribution with the degrees of freedom of Welch (1947,
        Biometrika 34).
        """
        if self.sampling is None:
            return scores.interval(self.resampled)
        known = self.resampled[~np.isnan(self.resampled)]
        moved = [of[~np.isnan(of)] for of in self.changes]
        if min(map(len, (known, *moved))) < 2:
            return [float("nan")] * 2
        variance = self.sampling.inflation * (known.var() + sum(of.var(ddof=1) for of in moved))
        half = t.ppf(0.975, self.sampling.freedom) * variance**0.5
        low, high = (-np.inf, np.inf) if score is None else RANGE.get(score, (0.0, 1.0))
        return [float(max(self.value - half, low)), float(min(self.value + half, high))]


def sampling(y: NDArray[Any], unit: NDArray[np.int64]) -> Sampling:
    """Return how precisely groups `unit` (n,) of samples with targets `y` (n,) or (n, columns) are sampled.

    A class with m groups contributes 1/m of the variance of a group to the variance of a mean over classes.
    The bootstrap draws from these m groups and so sees only the share (m − 1)/m of it. The groups of all
    classes are assumed to have the same variance.
    """
    classes = most_frequent(y, unit) if y.ndim == 1 else np.zeros(int(unit.max()) + 1, dtype=np.int64)
    counts = np.unique(classes, return_counts=True)[1].astype(np.float64)
    counts = counts[counts > 1]
    if not len(counts):
        return Sampling(1.0, 2.0)
    share = 1 / counts
    freedom = share.sum() ** 2 / (share**2 / (counts - 1)).sum()
    return Sampling(float(freedom), float((1 / (counts - 1)).sum() / share.sum()))


Estimates = dict[str, Estimate]
"""The scores of a method."""


def differences(estimates: Mapping[str, Mapping[str, Estimates]]) -> dict[str, Any]:
    """Return pretrained minus each other representation, by its name, method and score.

    `estimates` are given by representation and method; those of one method have the same resampled test sets.
    Scores on a test split beside folds, which have the key "<method>/test", become the entry `test` of the
    method.
    """
    found: dict[str, Any] = {}
    ours = estimates["pretrained"]
    for name, methods in estimates.items():
        for key in methods if name != "pretrained" else ():
            method, _, place = key.partition("/")
            scored = {
                score: {
                    "value": (difference := ours[key][score] - theirs).value,
                    "interval": difference.interval(),
                }
                for score, theirs in methods[key].items()
                if key in ours and not np.isnan(ours[key][score].value - theirs.value)
            }
            if scored:
                entry = found.setdefault(name, {}).setdefault(method, {})
                entry |= {place: scored} if place else scored
    return found


def of_test(
    measured: dict[str, Any],
    y: NDArray[Any],
    groups: Groups,
    kind: str,
    names: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> tuple[dict[str, Any], Estimates]:
    """Replace the predictions `test_scores` in `measured` by intervals and what `by_class` returns.

    `y` are the targets of the test set, whose samples of one of the `groups` are drawn together. Also returns
    the estimate of each score.
    """
    judge, predicted = JUDGES[kind], measured["test_scores"]
    drawn = judge.bootstrap(y, predicted, resamples=resamples, seed=seed, groups=groups)
    judged = {key.removeprefix("test_"): of for key, of in measured.items() if key != "test_scores"}
    estimates = {score: Estimate(judged[score], values) for score, values in drawn.items()}
    judged |= {f"{score}_interval": of.interval(score) for score, of in estimates.items()}
    return judged | by_class(y, predicted, kind, names), estimates


def by_class(y: NDArray[Any], predicted: NDArray[Any], kind: str, names: Sequence[str]) -> dict[str, Any]:
    """Return `per_class`, a row for each class or column, and the confusion of up to `MOST_CLASSES`."""
    rows = zip(names, JUDGES[kind].per_column(y, predicted), strict=True)
    found: dict[str, Any] = {"per_class": [{"name": name, **row} for name, row in rows]}
    if kind == "multiclass" and len(names) <= MOST_CLASSES:
        found["confusion"] = scores.confusion(y, predicted).tolist()
    return found
