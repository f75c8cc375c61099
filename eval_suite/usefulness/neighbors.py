"""Nearest neighbours by cosine similarity, and the weighted k-NN classifier.

FAISS does the search. Only the votes are counted here: scikit-learn's `KNeighborsClassifier` repeats the
search for each k, while one search serves all of them here. The gain was not measured.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from eval_suite.attempts import Unmeasurable
from eval_suite.features import faiss_gpu
from eval_suite.features.constant import is_constant
from eval_suite.usefulness import selection
from eval_suite.usefulness.selection import Array, Candidate, FeatureSets
from isotorus.errors import UserError

K_GRID = (10, 20, 100, 200)
"""Numbers of neighbours to choose from."""
SAME_DIRECTION = 2.0**-20
"""Mean of 1 − cosine over all pairs, below which float32 does not tell cosines apart."""
SMALLEST = float(np.finfo(np.float64).tiny)


def check_number(k: Sequence[int], available: int) -> None:
    """Raise UserError if a `k` that the user chose exceeds `available`, the number of labelled train samples.

    Numbers of the default grid that are too large raise nothing; they are skipped.
    """
    if tuple(k) != K_GRID and 0 < available < max(k):
        raise UserError(
            f"k = {max(k)} neighbours, but train has {available} labelled samples; give smaller ones, "
            f"e.g. --k {max(1, available // 4)}"
        )


def nearest(train_x: Array, test_x: Array, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find the `k` rows of `train_x` (n, d) that are most similar to each row of `test_x` (m, d).

    Returns cosine similarities and train indices, both (m, k), most similar first. The search is exact and
    in float32, on a GPU too, because votes depend on the similarity. Raises ValueError when k is not in
    1 … n.
    """
    if not 1 <= k <= len(train_x):
        raise ValueError(f"k = {k} neighbours of {len(train_x)} samples; k lies in 1 … {len(train_x)}")
    index: Any = faiss.IndexFlatIP(train_x.shape[1])
    if faiss_gpu.available() and k <= faiss_gpu.MOST_NEIGHBOURS:
        faiss_gpu.make_room()
        index = faiss.index_cpu_to_gpu(faiss_gpu.resources(), faiss_gpu.device(), index)
    index.add(normalised(train_x))
    similarity, ids = index.search(normalised(test_x), k)
    return similarity, ids


def knn_scores(
    train_x: Array,
    train_y: NDArray[np.integer],
    test_x: Array,
    k: Sequence[int] = (20,),
    temperature: float = 0.07,
    classes: int | None = None,
) -> NDArray[np.float64]:
    """Return class scores (len(k), m, classes) for each of several `k`, from one search; rows sum to 1.

    A neighbour votes with weight e^{similarity / temperature} (Wu et al. 2018, arXiv:1805.01978). `train_y`
    (n,) holds class indices ≥ 0; `classes` defaults to the largest one + 1.
    """
    classes = selection.count_classes(train_y) if classes is None else classes
    votes, neighbour_y = _votes(train_x, train_y, test_x, max(k), temperature)
    return np.stack([_counted(votes, neighbour_y, count, classes) for count in k])


def knn_classify(
    train_x: Array,
    train_y: NDArray[np.integer],
    test_x: Array,
    k: int = 20,
    temperature: float = 0.07,
) -> NDArray[np.integer]:
    """Return the label (m,) with the most votes among the `k` nearest; ties go to the lower label."""
    labels, train_index = np.unique(train_y, return_inverse=True)
    return labels[knn_scores(train_x, train_index, test_x, (k,), temperature)[0].argmax(axis=1)]


def evaluate(
    train_x: FeatureSets,
    train_y: NDArray[np.integer],
    val_x: FeatureSets,
    val_y: NDArray[np.integer],
    test_x: FeatureSets,
    test_y: NDArray[np.integer],
    *,
    k: Sequence[int] = K_GRID,
    temperature: float = 0.07,
    classes: int | None = None,
) -> dict[str, Any]:
    """Choose `k` on val, report scores on test; labels are class indices ≥ 0.

    Features are (n, d), or several sets of them by name: then val chooses a set together with `k`. Best on
    val is the largest balanced accuracy, then the largest AUROC, then the first in `k`. Returns what
    `selection.choose` does, with `k` as the setting.
    """
    classes = classes or selection.count_classes(train_y, val_y, test_y)
    train, val, test = selection.named(train_x), selection.named(val_x), selection.named(test_x)

    def test_scores(name: str, count: int) -> NDArray[np.float64]:
        return knn_scores(train[name], train_y, test[name], (count,), temperature, classes)[0]

    def candidates() -> Iterator[Candidate]:
        for name, x in reversed(list(train.items())):
            votes, neighbour_y = _votes(x, train_y, val[name], max(k), temperature)
            for count in reversed(k):
                yield Candidate(
                    {**selection.label(name), "k": count},
                    _counted(votes, neighbour_y, count, classes),
                    functools.partial(test_scores, name, count),
                )

    chosen = selection.choose(candidates(), val_y, test_y, "multiclass")
    return {**chosen, "val": chosen["val"][::-1]}


def normalised(x: Array) -> NDArray[np.float32]:
    """Scale the rows of `x` (n, d) to length 1; a zero row stays zero."""
    return np.ascontiguousarray(unit(x), dtype=np.float32)


def unit(x: Array) -> NDArray[np.float64]:
    """Scale the rows of `x` (n, d) to length 1 in float64, whatever their size; a zero row stays zero."""
    x = np.asarray(x, dtype=np.float64)
    # Squares of the largest and smallest float64 numbers overflow, those of numbers up to 1 do not.
    x = x / np.maximum(np.abs(x).max(axis=1, keepdims=True), SMALLEST)
    result: NDArray[np.float64] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), SMALLEST)
    return result


def require_directions(x: Array) -> None:
    """Raise Unmeasurable if all rows of `x` (n, d) point the same way, but are not all the same.

    Cosine similarity depends on the origin: moving features far away from it leaves no differences that
    float32 can hold.
    """
    mean = unit(x).mean(axis=0)
    if 1 - float(mean @ mean) < SAME_DIRECTION and not is_constant(x):
        offset = float(np.linalg.norm(x.mean(axis=0, dtype=np.float64)))
        spread = float(np.sqrt(x.var(axis=0, dtype=np.float64).sum()))
        raise Unmeasurable(
            f"the features lie {offset / max(spread, SMALLEST):.1e} times their spread away from the origin, "
            "so all cosines are 1; subtract the mean of train before"
        )


def with_directions(sets: Mapping[str, Array]) -> dict[str, Array]:
    """Return the feature sets that `require_directions` accepts; raises Unmeasurable if it accepts none."""
    kept, reasons = {}, []
    for name, x in sets.items():
        try:
            require_directions(x)
            kept[name] = x
        except Unmeasurable as reason:
            reasons.append(reason)
    if not kept:
        raise reasons[0]
    return kept


def _votes(
    train_x: Array, train_y: NDArray[np.integer], test_x: Array, k: int, temperature: float
) -> tuple[NDArray[np.float64], NDArray[np.integer]]:
    """Return the vote and the label of each neighbour, (m, k) each, most similar first."""
    similarity, ids = nearest(train_x, test_x, k)
    # Votes relative to the closest neighbour give the same shares and cannot overflow.
    return np.exp((similarity - similarity[:, :1]).astype(np.float64) / temperature), train_y[ids]


def _counted(
    votes: NDArray[np.float64], neighbour_y: NDArray[np.integer], k: int, classes: int
) -> NDArray[np.float64]:
    """Return the share (m, classes) of the votes of the `k` closest neighbours that each class gets."""
    m = len(votes)
    bins = np.arange(m)[:, None] * classes + neighbour_y[:, :k]
    total = np.bincount(bins.ravel(), votes[:, :k].ravel(), minlength=m * classes).reshape(m, classes)
    return total / total.sum(axis=1, keepdims=True)
