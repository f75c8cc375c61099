"""Nearest neighbours by cosine similarity (FAISS), and the weighted k-NN classifier."""

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from eval_suite import scores

Array = NDArray[np.floating]

K_GRID = (10, 20, 100)


def nearest(train_x: Array, test_x: Array, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `k` most similar rows of `train_x` (n, d) for each row of `test_x` (m, d).

    Returns cosine similarities and train indices, both (m, k), most similar first. Exact search. Raises
    ValueError when k exceeds n.
    """
    if not 1 <= k <= len(train_x):
        raise ValueError(f"k = {k} neighbours of {len(train_x)} samples; k lies in 1 … {len(train_x)}")
    index = faiss.IndexFlatIP(train_x.shape[1])
    index.add(_normalised(train_x))
    similarity, ids = index.search(_normalised(test_x), k)
    return similarity, ids


def knn_scores(
    train_x: Array,
    train_y: NDArray[np.integer],
    test_x: Array,
    k: Sequence[int] = (20,),
    temperature: float = 0.07,
    classes: int | None = None,
) -> NDArray[np.float64]:
    """Class scores (len(k), m, classes) for each of several `k`, from one search; rows sum to 1.

    A neighbour votes with e^{similarity / temperature} (Wu et al. 2018, arXiv:1805.01978). `train_y` holds
    class indices ≥ 0; `classes` defaults to the largest one + 1.
    """
    similarity, ids = nearest(train_x, test_x, max(k))
    # Relative to the closest neighbour: the same vote, and no overflow at small temperatures.
    votes = np.exp((similarity - similarity[:, :1]).astype(np.float64) / temperature)
    neighbour_y = train_y[ids]
    classes = int(train_y.max()) + 1 if classes is None else classes
    rows = np.arange(len(test_x))[:, None]
    total = np.zeros((len(k), len(test_x), classes))
    for slot, count in enumerate(k):
        np.add.at(total[slot], (rows, neighbour_y[:, :count]), votes[:, :count])
    return total / total.sum(axis=2, keepdims=True)


def knn_classify(
    train_x: Array,
    train_y: NDArray[np.integer],
    test_x: Array,
    k: int = 20,
    temperature: float = 0.07,
) -> NDArray[np.integer]:
    """The label (m,) with the largest weighted vote among the `k` nearest; ties go to the lower label."""
    labels, train_index = np.unique(train_y, return_inverse=True)
    return labels[knn_scores(train_x, train_index, test_x, (k,), temperature)[0].argmax(axis=1)]


def evaluate(
    train_x: Array,
    train_y: NDArray[np.integer],
    val_x: Array,
    val_y: NDArray[np.integer],
    test_x: Array,
    test_y: NDArray[np.integer],
    *,
    k: Sequence[int] = K_GRID,
    temperature: float = 0.07,
    classes: int | None = None,
) -> dict[str, Any]:
    """Choose `k` on val, report test once; labels are class indices ≥ 0.

    The choice is the largest balanced accuracy on val, ties by AUROC, then the first in `k`. Returns
    test_accuracy, test_balanced_accuracy, test_auroc; k, the chosen one; val, one {k, balanced_accuracy,
    auroc} for each; test_scores (m, classes).
    """
    if classes is None:
        classes = int(max(train_y.max(), val_y.max(), test_y.max())) + 1
    val: list[dict[str, Any]] = []
    for count, predicted in zip(k, knn_scores(train_x, train_y, val_x, k, temperature, classes), strict=True):
        balanced_accuracy, area = scores.balanced_accuracy(val_y, predicted), scores.auroc(val_y, predicted)
        val.append({"k": count, "balanced_accuracy": balanced_accuracy, "auroc": area})
    best = max(val, key=lambda row: (row["balanced_accuracy"], np.nan_to_num(row["auroc"])))["k"]
    test_scores = knn_scores(train_x, train_y, test_x, (best,), temperature, classes)[0]
    return {
        "test_accuracy": scores.accuracy(test_y, test_scores),
        "test_balanced_accuracy": scores.balanced_accuracy(test_y, test_scores),
        "test_auroc": scores.auroc(test_y, test_scores),
        "k": best,
        "val": val,
        "test_scores": test_scores,
    }


def _normalised(x: Array) -> NDArray[np.float32]:
    """Rows on the unit sphere; a zero row stays zero."""
    x = np.asarray(x, dtype=np.float64)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.ascontiguousarray(x / np.maximum(norm, 1e-12), dtype=np.float32)
