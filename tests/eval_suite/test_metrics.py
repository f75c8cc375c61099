"""The table of metrics agrees with what an evaluation writes."""

import numpy as np
import pytest

from eval_suite.metrics import CLOUD, METHODS, REPRESENTATION, SCORES, headlines
from eval_suite.usefulness.folds.measure_folds import ONLY
from eval_suite.usefulness.selection import JUDGES

OF_ANGLES = {"uniformity_over_null"}
"""Metrics that only the angles of a torus head have."""
RANDOM = np.random.default_rng(0)
TARGETS = {
    "multiclass": RANDOM.integers(3, size=30),
    "multilabel": RANDOM.integers(2, size=(30, 3)),
    "regression": RANDOM.normal(size=(30, 3)),
}


def test_every_row_has_its_place_in_the_results(evaluated):
    pretrained = evaluated.results["representations"]["pretrained"]
    rows = [(pretrained, metric.path) for metric in REPRESENTATION]
    rows += [
        (evaluated.results["geometry"]["embedding"], metric.path)
        for metric in CLOUD
        if metric.path not in OF_ANGLES
    ]
    for method, described in METHODS.items():
        if method in ONLY or not described.of_vectors:
            continue
        assert method in pretrained
        if described.predicts:
            rows += [(pretrained[method], score) for score in headlines("multiclass")]
    rows += [(pretrained["retrieval"], score) for score in ("map", "recall_at_1")]
    for parent, path in rows:
        for key in path.split("/"):
            assert key in parent, path
            parent = parent[key]


@pytest.mark.parametrize("kind", list(TARGETS))
def test_every_score_that_is_computed_has_a_row(kind: str):
    y, predicted = TARGETS[kind], RANDOM.normal(size=(30, 3))
    computed = set(JUDGES[kind].summary(y, predicted))
    in_detail = {key for row in JUDGES[kind].per_column(y, predicted) for key in row} - {"support"}
    assert computed | in_detail <= set(SCORES)
    assert set(headlines(kind)) <= computed
    assert sum(SCORES[score].decides for score in headlines(kind)) == 1
