"""Scores against known values and scikit-learn, intervals against theory."""

import numpy as np
import pytest
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
)

from eval_suite.usefulness import scores


def binary(score: list[float]) -> np.ndarray:
    column = np.asarray(score, dtype=np.float64)
    return np.stack([-column, column], axis=1)


@pytest.mark.parametrize(
    ("labels", "score", "area"),
    [
        ([0, 0, 1, 1], [1, 2, 3, 4], 1.0),
        ([1, 1, 0, 0], [1, 2, 3, 4], 0.0),
        ([0, 1, 0, 1], [5, 5, 5, 5], 0.5),
        ([0, 1, 0, 1], [1, 2, 3, 4], 0.75),
        ([0, 1, 1], [2, 2, 3], 0.75),
        ([0, 1, 1], [-np.inf, -np.inf, 3], 0.75),
    ],
)
def test_auroc_in_closed_cases(labels: list[int], score: list[float], area: float):
    assert scores.auroc(np.array(labels), binary(score)) == pytest.approx(area)


def test_scores_agree_with_sklearn_on_three_classes_with_ties():
    random = np.random.default_rng(0)
    labels = random.integers(3, size=200)
    p = np.round(random.dirichlet(np.ones(3), size=200) + np.eye(3)[labels] / 4, 1)
    p /= p.sum(axis=1, keepdims=True)
    expected = roc_auc_score(labels, p, multi_class="ovr", average="macro")
    assert scores.auroc(labels, p) == pytest.approx(expected)
    assert scores.balanced_accuracy(labels, p) == pytest.approx(balanced_accuracy_score(labels, p.argmax(1)))
    assert scores.accuracy(labels, p) == pytest.approx((p.argmax(1) == labels).mean())


def test_auroc_of_one_class_is_not_a_number():
    assert np.isnan(scores.auroc(np.zeros(4, int), binary([1, 2, 3, 4])))


def test_bootstrap_spread_is_that_of_proportions():
    labels = np.repeat([0, 1], [300, 100])
    right = np.concatenate([np.arange(300) < 240, np.arange(100) < 60])
    predicted = np.eye(2)[np.where(right, labels, 1 - labels)]
    values = scores.bootstrap(labels, predicted, resamples=4000)["balanced_accuracy"]
    deviation = np.sqrt(0.8 * 0.2 / 300 + 0.6 * 0.4 / 100) / 2
    assert values.mean() == pytest.approx(0.7, abs=0.002)
    assert values.std() == pytest.approx(deviation, rel=0.06)
    low, high = scores.interval(values)
    assert (low, high) == pytest.approx((0.7 - 1.96 * deviation, 0.7 + 1.96 * deviation), abs=0.006)


def test_bootstrap_is_repeatable_and_pairs_classifiers():
    random = np.random.default_rng(1)
    labels = random.integers(2, size=60)
    first, second = random.normal(size=(2, 60, 2))
    again = scores.bootstrap(labels, first, resamples=50)
    assert np.array_equal(again["auroc"], scores.bootstrap(labels, first, resamples=50)["auroc"])
    assert not np.array_equal(again["auroc"], scores.bootstrap(labels, first, resamples=50, seed=1)["auroc"])
    shifted = scores.bootstrap(labels, first + 1, resamples=50)
    assert np.array_equal(again["auroc"], shifted["auroc"])
    assert not np.array_equal(again["auroc"], scores.bootstrap(labels, second, resamples=50)["auroc"])


def test_resamples_in_several_chunks_are_all_different():
    labels = np.arange(100_000) % 2
    predicted = np.random.default_rng(0).normal(size=(100_000, 2))
    values = scores.bootstrap(labels, predicted, resamples=60)["auroc"]
    assert len(np.unique(values)) == 60


def test_per_class_table_and_confusion_agree_with_sklearn():
    random = np.random.default_rng(2)
    labels = random.integers(3, size=120)
    p = np.round(random.dirichlet(np.ones(4), size=120) + np.eye(4)[labels] / 2, 2)  # class 3 never occurs
    predicted = p.argmax(axis=1)
    assert np.array_equal(scores.confusion(labels, p), confusion_matrix(labels, predicted, labels=range(4)))
    rows = scores.per_column(labels, p)
    expected = precision_recall_fscore_support(labels, predicted, labels=range(3))
    for c in range(3):
        assert rows[c]["precision"] == pytest.approx(expected[0][c])
        assert rows[c]["recall"] == pytest.approx(expected[1][c])
        assert rows[c]["support"] == expected[3][c]
        assert rows[c]["auroc"] == pytest.approx(roc_auc_score(labels == c, p[:, c]))
    assert rows[3]["support"] == 0
    assert np.isnan(rows[3]["recall"])
    assert np.isnan(rows[3]["auroc"])
