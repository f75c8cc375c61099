"""The linear probe: a logistic regression on frozen features, its strength chosen on validation data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval_suite import logistic, scores

Array = NDArray[np.floating]
Labels = NDArray[np.integer]

L2_GRID = tuple(float(l2) for l2 in np.logspace(-4, 1, 11))
"""L2 strengths relative to the mean loss, from nearly free to nearly constant."""


def linear_probe(
    train_x: Array,
    train_y: Labels,
    val_x: Array,
    val_y: Labels,
    test_x: Array,
    test_y: Labels,
    *,
    l2: Sequence[float] = L2_GRID,
    balanced: bool = True,
    classes: int | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Fit on train at every strength in `l2`, choose on val, report test once.

    Features (n, d) are standardised by the train split's mean and deviation; labels are class indices ≥ 0.
    `balanced` weights each class alike. The choice is the largest balanced accuracy on val, ties by AUROC,
    then the strongest penalty. Deterministic.

    Returns test_accuracy, test_balanced_accuracy, test_auroc; l2, the chosen strength; converged, whether
    every fit did; val, one {l2, balanced_accuracy, auroc} for each strength; test_scores (n, classes).
    Raises ValueError when train holds fewer than two classes.
    """
    present, y = np.unique(train_y, return_inverse=True)
    if len(present) < 2:
        raise ValueError(f"a probe needs two classes or more in train, found {len(present)}")
    if classes is None:
        classes = int(max(train_y.max(), val_y.max(), test_y.max())) + 1
    dtype = torch.float64 if train_x.size <= 50_000_000 else torch.float32
    mean, std = train_x.mean(axis=0, dtype=np.float64), train_x.std(axis=0, dtype=np.float64)
    std[std < 1e-6 * max(float(std.max()), 1e-30)] = 1.0

    def standardised(x: Array) -> Tensor:
        return torch.as_tensor((x - mean) / std, dtype=dtype, device=device)

    counts = np.bincount(y)
    weight = (len(y) / (len(counts) * counts))[y] if balanced else np.ones(len(y))
    fit = logistic.solve(
        standardised(train_x),
        torch.as_tensor(y, device=device),
        l2,
        torch.as_tensor(weight, dtype=dtype, device=device),
        len(present),
    )

    def class_scores(x: Tensor, member: int) -> NDArray[np.float64]:
        spread = np.zeros((len(x), classes))
        predicted = logistic.probabilities(x, fit.weight[member], fit.bias[member])
        spread[:, present] = predicted.double().cpu().numpy()
        return spread

    val, best, best_key = [], 0, (-1.0, -1.0, -1.0)
    standard_val = standardised(val_x)
    for member, strength in enumerate(l2):
        predicted = class_scores(standard_val, member)
        balanced_accuracy, area = scores.balanced_accuracy(val_y, predicted), scores.auroc(val_y, predicted)
        val.append({"l2": float(strength), "balanced_accuracy": balanced_accuracy, "auroc": area})
        key = (balanced_accuracy, np.nan_to_num(area), float(strength))
        if key > best_key:
            best, best_key = member, key
    test_scores = class_scores(standardised(test_x), best)
    return {
        "test_accuracy": scores.accuracy(test_y, test_scores),
        "test_balanced_accuracy": scores.balanced_accuracy(test_y, test_scores),
        "test_auroc": scores.auroc(test_y, test_scores),
        "l2": float(l2[best]),
        "converged": bool(fit.converged.all()),
        "val": val,
        "test_scores": test_scores,
    }
