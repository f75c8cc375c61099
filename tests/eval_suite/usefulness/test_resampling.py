"""Test sets of whole groups: which samples go together, and the width of intervals."""

import numpy as np
import pytest

from eval_suite.usefulness import label_scores, number_scores, resampling, scores


def test_samples_of_a_group_are_drawn_together_and_others_alone():
    groups = np.array([5, 0, 5, 9, 0, 9, 5], dtype=np.uint64)
    unit = resampling.units(groups)
    assert unit.max() + 1 == 4 and len({unit[1], unit[4], unit[0], unit[3]}) == 4
    for counts in (
        resampling.over_all(7, 50, 0, groups),
        resampling.within_classes(np.array([0, 1, 1, 0, 1, 1, 0]), 50, 0, groups=groups),
    ):
        assert (counts[:, [0]] == counts[:, [2, 6]]).all() and (counts[:, 3] == counts[:, 5]).all()
        assert (counts[:, unit == unit[1]].sum(axis=1) != counts[:, unit == unit[4]].sum(axis=1)).any()


def test_groups_of_one_give_the_test_sets_that_samples_give():
    labels, n = np.array([0, 1, 1, 2, 0, 2]), 6
    alone = np.zeros(n, dtype=np.uint64)
    np.testing.assert_array_equal(resampling.over_all(n, 40, 3), resampling.over_all(n, 40, 3, alone))
    np.testing.assert_array_equal(
        resampling.within_classes(labels, 40, 3), resampling.within_classes(labels, 40, 3, groups=alone)
    )


def test_each_class_keeps_its_number_of_groups():
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    groups = np.array([1, 1, 2, 3, 3, 4, 5, 5], dtype=np.uint64)  # 5 has one sample of each: class 0
    counts = resampling.within_classes(labels, 200, 1, groups=groups)
    first = [np.flatnonzero(groups == group)[0] for group in (1, 2, 3, 4, 5)]
    assert (counts[:, [first[0], first[1], first[4]]].sum(axis=1) == 3).all()
    assert (counts[:, [first[2], first[3]]].sum(axis=1) == 2).all()


@pytest.mark.parametrize("size", [1, 4, 25])
def test_intervals_are_those_of_independent_groups(size: int):
    """All samples of a group are right or wrong together, so groups count, not samples."""
    number = 400 // size
    groups = np.repeat(np.arange(1, 2 * number + 1, dtype=np.uint64), size)
    labels = np.repeat([0, 1], 400)
    right = np.repeat(np.tile(np.arange(4) > 0, number)[: 2 * number], size)
    predicted = np.eye(2)[np.where(right, labels, 1 - labels)]
    values = scores.bootstrap(labels, predicted, resamples=2000, groups=groups)["balanced_accuracy"]
    found = scores.accuracy(labels, predicted)
    assert values.std() == pytest.approx(np.sqrt(found * (1 - found) / number / 2), rel=0.12)
    numbers = labels[:, None] + np.where(right, 0.0, 1.0)[:, None]
    errors = number_scores.bootstrap(labels[:, None].astype(float), numbers, resamples=500, groups=groups)[
        "mae"
    ]
    assert errors.std() == pytest.approx(np.sqrt(found * (1 - found) / number / 2), rel=0.2)


def test_a_class_in_one_group_may_be_missing_from_a_test_set():
    labels = np.array([0, 0, 1, 1, 0, 0])
    groups = np.array([1, 1, 1, 1, 2, 2], dtype=np.uint64)
    predicted = np.eye(2)[np.array([0, 1, 1, 1, 0, 0])]
    for values in scores.bootstrap(labels, predicted, resamples=200, groups=groups).values():
        assert np.isfinite(scores.interval(values)).all()
    both = np.stack([labels, 1 - labels], axis=1)
    area = label_scores.bootstrap(both, predicted, resamples=200, groups=groups)["auroc"]
    assert np.isnan(area).any() and np.isfinite(scores.interval(area)).all()
