"""Image retrieval: do samples of the same class come first when a gallery is sorted by similarity?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_suite.attempts import Unmeasurable
from eval_suite.usefulness.neighbors import normalised
from isotorus.randomness import generator

Array = NDArray[np.floating]
Labels = NDArray[np.integer]

RECALL_AT = (1, 5, 10)
MOST_PAIRS = 400_000_000
"""Largest number of pairs of query and gallery sample; above it, only a random part of the queries is
ranked."""
LEVEL = 2.0**-20
"""Cosines are rounded to multiples of this, so that the rounding of float32 does not decide between them."""


def retrieval(
    gallery_x: Array,
    gallery_y: Labels,
    query_x: Array,
    query_y: Labels,
    *,
    recall_at: Sequence[int] = RECALL_AT,
    most_pairs: int = MOST_PAIRS,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute mean average precision and recall@k of queries (m, d) in a gallery (n, d), by cosine.

    A gallery sample is relevant if it has the class of the query. The average precision of a query is the
    mean, over its relevant samples i, of the share of relevant ones among all gallery samples that are at
    least as similar as i; this is scikit-learn's `average_precision_score` over the whole ranking. Recall@k
    of a query is 1 if a relevant sample is among the first k, where ties count against it, else 0. Both are
    averaged over the queries that have a relevant sample. The whole gallery is sorted for each query, so a
    nearest-neighbour index would not help.

    Returns map and map_interval, its 95 % interval over queries by normal approximation; recall_at_<k>;
    queries, the number that was ranked (at most most_pairs / n, drawn from the seed); and without_relevant,
    the number that was left out. Raises Unmeasurable if no query has a relevant sample.
    """
    rows = np.flatnonzero(np.isin(query_y, gallery_y))
    without = len(query_y) - len(rows)
    if not len(rows):
        raise Unmeasurable("no query has a sample of its class in the gallery")
    most = max(1, most_pairs // len(gallery_y))
    if len(rows) > most:
        rows = np.sort(generator(seed, len(rows)).choice(rows, most, replace=False))
    gallery, queries = normalised(gallery_x), normalised(query_x[rows])
    members = {label: np.flatnonzero(gallery_y == label) for label in np.unique(query_y[rows])}
    precision, before = np.empty(len(rows)), np.empty(len(rows), dtype=np.int64)
    chunk = max(1, 20_000_000 // len(gallery))
    for start in range(0, len(rows), chunk):
        # Negative cosines, rounded to levels: ascending order is from the most to the least similar.
        levels = np.rint(queries[start : start + chunk] @ gallery.T / -LEVEL).astype(np.int32)
        relevant = [levels[i, members[query_y[row]]] for i, row in enumerate(rows[start : start + chunk])]
        levels.sort(axis=1)
        for i, (ranked, own) in enumerate(zip(levels, relevant, strict=True), start):
            own.sort()
            above = np.searchsorted(ranked, own, side="right")
            own_above = np.searchsorted(own, own, side="right")
            precision[i] = (own_above / above).mean()
            # Samples of other classes that are at least as similar as the closest relevant one.
            before[i] = above[0] - own_above[0]
    mean, half = precision.mean(), 1.96 * precision.std() / len(rows) ** 0.5
    return {
        "map": float(mean),
        "map_interval": [float(mean - half), float(mean + half)],
        **{f"recall_at_{k}": float((before < k).mean()) for k in recall_at},
        "queries": len(rows),
        "without_relevant": without,
    }
