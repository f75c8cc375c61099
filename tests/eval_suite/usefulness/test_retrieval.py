"""Retrieval against a loop over scikit-learn's average precision."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from eval_suite.attempts import Unmeasurable
from eval_suite.usefulness.retrieval import retrieval


def blobs(n: int, m: int) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(0)
    y = random.integers(4, size=n + m)
    x = random.normal(size=(4, 6))[y] + 1.5 * random.normal(size=(n + m, 6))
    return x[:n], y[:n], x[n:], y[n:]


def test_agrees_with_a_plain_loop_duplicates_included():
    gallery_x, gallery_y, query_x, query_y = blobs(200, 40)
    gallery_x = np.concatenate([gallery_x, gallery_x[:100]])  # ties, with other labels
    gallery_y = np.concatenate([gallery_y, (gallery_y[:100] + 1) % 4])
    found = retrieval(gallery_x, gallery_y, query_x, query_y)
    unit = gallery_x / np.linalg.norm(gallery_x, axis=1, keepdims=True)
    precision, recall = [], {1: [], 5: [], 10: []}
    for x, y in zip(query_x, query_y, strict=True):
        cosine = np.round(unit @ x / np.linalg.norm(x) * 2**20)
        precision.append(average_precision_score(gallery_y == y, cosine))
        # Among equally similar samples, those of another class come first.
        ranked = (gallery_y == y)[np.lexsort((gallery_y == y, -cosine))]
        for k, hits in recall.items():
            hits.append(ranked[:k].any())
    assert found["map"] == pytest.approx(np.mean(precision), abs=1e-4)
    for k, hits in recall.items():
        assert found[f"recall_at_{k}"] == pytest.approx(np.mean(hits))
    half = 1.96 * np.std(precision) / 40**0.5
    assert found["map_interval"] == pytest.approx(
        [np.mean(precision) - half, np.mean(precision) + half], abs=1e-4
    )


def test_perfect_and_collapsed_features():
    y = np.arange(60) % 3
    perfect = retrieval(np.eye(3)[y], y, np.eye(3)[y], y)
    assert perfect["map"] == perfect["recall_at_1"] == 1
    collapsed = retrieval(np.ones((60, 5)), y, np.ones((60, 5)), y)
    assert collapsed["map"] == pytest.approx(1 / 3)
    assert collapsed["recall_at_10"] == 0


def test_queries_without_relevant_samples_are_counted_and_left_out():
    gallery_x, gallery_y, query_x, query_y = blobs(100, 30)
    known = retrieval(gallery_x, gallery_y, query_x, query_y)
    more = retrieval(
        gallery_x, gallery_y, np.concatenate([query_x, query_x[:5]]), np.concatenate([query_y, np.full(5, 9)])
    )
    assert more == {**known, "without_relevant": 5}
    with pytest.raises(Unmeasurable, match="no query"):
        retrieval(gallery_x, gallery_y, query_x, query_y + 10)


def test_a_part_of_the_queries_stands_for_all_of_them():
    parts = blobs(100, 400)
    whole, part = retrieval(*parts), retrieval(*parts, most_pairs=20_000, seed=1)
    assert (whole["queries"], part["queries"]) == (400, 200)
    assert part == retrieval(*parts, most_pairs=20_000, seed=1)
    low, high = part["map_interval"]
    assert low - 0.02 < whole["map"] < high + 0.02
