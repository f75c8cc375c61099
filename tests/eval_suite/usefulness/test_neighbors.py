"""The k-NN classifier against scikit-learn's with the same votes."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from eval_suite.usefulness import neighbors


@pytest.fixture(scope="module")
def blobs() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    centres = random.normal(size=(4, 12))
    y = random.integers(4, size=500)
    x = (centres[y] + 1.2 * random.normal(size=(500, 12))).astype(np.float32)
    return x[:300], y[:300], x[300:], y[300:]


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 0.01), (200, 0.5)])
def test_labels_and_scores_agree_with_sklearn(blobs, k: int, temperature: float):
    train_x, train_y, test_x, _ = blobs
    reference = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp(-d / temperature))
    reference.fit(train_x, train_y)
    ours = neighbors.knn_scores(train_x, train_y, test_x, (k,), temperature)[0]
    np.testing.assert_allclose(ours, reference.predict_proba(test_x), atol=2e-4)
    labels = neighbors.knn_classify(train_x, train_y + 5, test_x, k, temperature)
    assert np.array_equal(labels, ours.argmax(1) + 5)


def test_one_search_serves_every_k(blobs):
    train_x, train_y, test_x, _ = blobs
    together = neighbors.knn_scores(train_x, train_y, test_x, (3, 50))
    for slot, k in enumerate((3, 50)):
        np.testing.assert_allclose(together[slot], neighbors.knn_scores(train_x, train_y, test_x, (k,))[0])


def test_length_of_vectors_does_not_matter(blobs):
    train_x, train_y, test_x, _ = blobs
    scaled = train_x * np.random.default_rng(1).uniform(0.1, 10, size=(300, 1))
    expected = neighbors.knn_classify(train_x, train_y, test_x)
    assert np.array_equal(neighbors.knn_classify(scaled, train_y, test_x * 7), expected)


def test_the_closest_comes_first_and_too_many_are_refused(blobs):
    train_x = blobs[0]
    similarity, ids = neighbors.nearest(train_x, train_x, 3)
    assert np.array_equal(ids[:, 0], np.arange(300))
    assert (np.diff(similarity) <= 0).all()
    with pytest.raises(ValueError, match="301 neighbours of 300"):
        neighbors.nearest(train_x, train_x, 301)


def test_k_is_chosen_on_val_and_reported_on_test(blobs):
    train_x, train_y, test_x, test_y = blobs
    val_x, val_y = test_x[:100], test_y[:100]
    # Only the single nearest neighbour predicts these labels of val.
    val_y = neighbors.knn_classify(train_x, train_y, val_x, k=1)
    result = neighbors.evaluate(train_x, train_y, val_x, val_y, test_x, test_y, k=(1, 30))
    assert result["k"] == 1
    assert [row["k"] for row in result["val"]] == [1, 30]
    expected = (neighbors.knn_classify(train_x, train_y, test_x, k=1) == test_y).mean()
    assert result["test_accuracy"] == pytest.approx(expected)
