"""The linear probe: a logistic regression on frozen features, its setting chosen on validation data."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eval_suite.usefulness import label_scores, logistic, scores
from eval_suite.usefulness.selection import Array, Candidate, FeatureSets, Unmeasurable, choose, label, named
from eval_suite.usefulness.standardise import standardiser

Labels = NDArray[np.integer]

L2_GRID = tuple(float(l2) for l2 in np.logspace(-4, 1, 11))
"""L2 strengths relative to the mean loss, from nearly free to nearly constant."""
DOUBLE = 2_000_000
"""Training features (n × d) up to which the fit is in float64 and to a tolerance of 1e-8; above it is in
float32 and to 1e-6, which changes no probability by more than about a thousandth."""


def linear_probe(
    train_x: FeatureSets,
    train_y: Labels,
    val_x: FeatureSets,
    val_y: Labels,
    test_x: FeatureSets,
    test_y: Labels,
    *,
    l2: Sequence[float] = L2_GRID,
    balanced: bool = True,
    classes: int | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Fit on train at every strength in `l2`, choose on val, report test once.

    Features (n, d) are standardised by the train split's mean and deviation; or they are several feature
    sets by name, and val chooses one of them together with the strength. Labels are class indices ≥ 0
    (n,), of which `balanced` weights each class alike; or 0s and 1s (n, labels) that may occur together,
    each of which gets a regression of its own. The choice is the largest balanced accuracy on val, ties by
    AUROC (of labels: the largest mean AUROC, ties by average precision), then the strongest penalty.
    Deterministic.

    Returns test_accuracy, test_balanced_accuracy, test_auroc (of labels: test_auroc,
    test_average_precision); l2, the chosen strength; converged, whether every fit did; val, one
    {l2, balanced_accuracy, auroc} for each strength; test_scores (n, classes); of several feature sets
    also feature_set, here and in val. Raises Unmeasurable (a ValueError) when train holds fewer than two
    classes.
    """
    if train_y.ndim == 1 and len(np.unique(train_y)) < 2:
        raise Unmeasurable(f"a probe needs two classes or more in train, found {len(np.unique(train_y))}")
    if classes is None:
        classes = int(max(train_y.max(), val_y.max(), test_y.max())) + 1
    judge = scores if train_y.ndim == 1 else label_scores
    converged: list[bool] = []

    def candidates() -> Iterator[Candidate]:
        val, test = named(val_x), named(test_x)
        for name, x in named(train_x).items():
            fit = _Fit(x, train_y, l2, balanced, classes, device)
            converged.append(fit.converged)
            for member in np.argsort(l2, kind="stable"):
                yield Candidate(
                    {**label(name), "l2": float(l2[member])},
                    fit.scores(val[name], member),
                    functools.partial(fit.scores, test[name], member),
                )

    setting, test_scores, val = choose(candidates(), val_y, judge.quality)
    return {
        **{f"test_{score}": value for score, value in judge.summary(test_y, test_scores).items()},
        **setting,
        "converged": all(converged),
        "val": val,
        "test_scores": test_scores,
    }


class _Fit:
    """Regressions on one feature set, one for each strength."""

    def __init__(
        self,
        x: Array,
        y: Labels,
        l2: Sequence[float],
        balanced: bool,
        classes: int,
        device: str | torch.device,
    ) -> None:
        self._device, self._classes = device, classes
        double = x.size <= DOUBLE
        self._dtype = torch.float64 if double else torch.float32
        self._standardised = standardiser(x)
        weight = np.ones(len(y))
        self._present: Labels | None = None
        if y.ndim == 1:
            self._present, y = np.unique(y, return_inverse=True)
            counts = np.bincount(y)
            weight = (len(y) / (len(counts) * counts))[y] if balanced else weight
        self._solution = logistic.solve(
            self._tensor(x),
            torch.as_tensor(y, device=device),
            l2,
            torch.as_tensor(weight, dtype=self._dtype, device=device),
            None if self._present is None else len(self._present),
            tolerance=1e-8 if double else 1e-6,
        )
        self.converged = bool(self._solution.converged.all())

    def scores(self, x: Array, member: int) -> NDArray[np.float64]:
        """Probabilities (m, classes) or (m, labels) by the strength number `member`."""
        weight, bias = self._solution.weight[member], self._solution.bias[member]
        if self._present is None:
            return (self._tensor(x) @ weight + bias).sigmoid().double().cpu().numpy()
        spread = np.zeros((len(x), self._classes))
        spread[:, self._present] = (
            logistic.probabilities(self._tensor(x), weight, bias).double().cpu().numpy()
        )
        return spread

    def _tensor(self, x: Array) -> torch.Tensor:
        return torch.as_tensor(self._standardised(x), dtype=self._dtype, device=self._device)
