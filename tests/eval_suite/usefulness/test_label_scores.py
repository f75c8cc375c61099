"""Scores of labels that may occur together, against scikit-learn, and the probe of such labels."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from eval_suite.usefulness import areas, label_scores, probe


@pytest.fixture
def tied() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = (random.random((150, 3)) < [0.5, 0.1, 0.3]).astype(int)
    return labels, np.round(labels / 4 + random.random((150, 3)), 1)


def test_means_over_labels_agree_with_sklearn_with_ties(tied):
    labels, p = tied
    assert label_scores.summary(labels, p)["auroc"] == pytest.approx(
        roc_auc_score(labels, p, average="macro")
    )
    expected = average_precision_score(labels, p, average="macro")
    assert label_scores.summary(labels, p)["average_precision"] == pytest.approx(expected)


def test_a_resample_scores_as_the_samples_that_it_repeats(tied):
    labels, p = tied
    counts = np.random.default_rng(1).integers(4, size=(2, 150)).astype(np.uint16)
    area, precision = areas.areas(labels > 0, p, counts)
    for b in range(2):
        rows = np.repeat(np.arange(150), counts[b])
        for c in range(3):
            assert area[c, b] == pytest.approx(roc_auc_score(labels[rows, c], p[rows, c]))
            assert precision[c, b] == pytest.approx(average_precision_score(labels[rows, c], p[rows, c]))


def test_a_label_that_never_occurs_is_left_out_of_the_mean(tied):
    labels, p = tied
    rows = label_scores.per_column(np.insert(labels, 3, 0, axis=1), np.insert(p, 3, 0.5, axis=1))
    assert np.isnan(rows[3]["auroc"])
    assert rows[3]["support"] == 0
    without = label_scores.summary(np.insert(labels, 3, 0, axis=1), np.insert(p, 3, 0.5, axis=1))
    assert without == pytest.approx(label_scores.summary(labels, p))
    assert np.isnan(label_scores.summary(0 * labels, p)["auroc"])


def test_equal_seeds_draw_equal_test_sets(tied):
    labels, p = tied
    one = label_scores.bootstrap(labels, p, resamples=40, seed=1)["auroc"]
    assert np.array_equal(one, label_scores.bootstrap(labels, p + 1, resamples=40, seed=1)["auroc"])
    assert not np.array_equal(one, label_scores.bootstrap(labels, p, resamples=40, seed=2)["auroc"])


def test_the_probe_is_a_logistic_regression_for_each_label():
    random = np.random.default_rng(2)
    x = random.normal(size=(300, 12)) * random.uniform(0.1, 9, 12)
    y = (x @ random.normal(size=(12, 3)) + 5 * random.normal(size=(300, 3)) > [0, 12, -5]).astype(int)
    y = np.insert(y, 3, 0, axis=1)  # a label that never occurs
    scaled = StandardScaler().fit_transform(x)
    for l2 in (1e-2, 1.0):
        found = probe.linear_probe(x, y, x, y, x, y, l2=(l2,))
        assert found["converged"]
        for c in range(3):
            reference = LogisticRegression(C=1 / (l2 * 300), tol=1e-9, max_iter=5000).fit(scaled, y[:, c])
            expected = reference.predict_proba(scaled)[:, 1]
            np.testing.assert_allclose(found["test_scores"][:, c], expected, atol=2e-3)
        assert found["test_scores"][:, 3].max() < 1e-3
        assert found["test_auroc"] == pytest.approx(roc_auc_score(y[:, :3], found["test_scores"][:, :3]))
